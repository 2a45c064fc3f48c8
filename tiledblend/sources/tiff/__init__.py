"""TIFF and what is built on it: SVS, NDPI, OME-TIFF, ImageJ, pyramids of reduced pages.

From bytes to pixels: `structure` (a first walk); `images` (which pages are an image: `ome`, `series`, `stacks`);
`metadata`, `told` (sizes, names); `pages`, `samples`, `layout` (pages to levels); `segments`, `coding`, `jpeg`,
`jpeg2000`, `codecs` (what a stored tile says of itself); `reading`, `kept` (pixels of a region); `source` (the face).
"""
