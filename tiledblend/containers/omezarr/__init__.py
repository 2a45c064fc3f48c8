"""OME-Zarr 0.4 and 0.5: shards and chunks, their codecs, the documents."""
