"""An OME-Zarr in one file (.ozx): zip without compression, as OME-NGFF's RFC-9 has it. Its parts are an OME-Zarr's."""
