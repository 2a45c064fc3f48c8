"""Zarr v2 and v3 arrays, sharded or not, and OME-Zarr images.

`metadata` (documents, judged before zarr-python sees them), `stored` (which chunks are there), `encoded` (chunks as
they are stored), `bounded` (decoding within limits), `remote` (buckets), `source` (the face).
"""
