"""TIFF and what is built on it: SVS, NDPI, OME-TIFF, ImageJ, pyramids of reduced pages.

From bytes to pixels: `structure` (a bounded first walk), `layout` (pages to levels), `metadata` (sizes, names),
`segments` and `jpeg` (what a stored tile says of itself), `reading` (pixels of a region), `source` (the face).
"""
