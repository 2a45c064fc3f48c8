"""Outlines drawn in a viewer, as masks.

One module a format (`geojson`, `asap`, `imagescope`, `halo`, `geoparquet`) makes `features`; `validity` and `negative`
mend and cut them; `files` picks the parser and gives flat arrays of edges; `source` rasterises them region by region.
No image is read here, and nothing is placed: a mask's place is `describe`'s.
"""
