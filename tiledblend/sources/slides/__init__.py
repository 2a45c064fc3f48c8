"""Vendor slides through the library that knows them: OpenSlide. One picture each, RGB, several levels.

`vendors`: what a file or folder is, by first bytes and tags, without importing OpenSlide; `files`: what one slide
consists of; `source`: the pixels. Not here: SVS, NDPI, OME-TIFF, QPTIFF and plain pyramids, which `tiff` reads.
"""
