"""A result as one OME-TIFF: BigTIFF, tiled, pyramidal, for QuPath, OpenSlide and whatever else reads TIFF."""
