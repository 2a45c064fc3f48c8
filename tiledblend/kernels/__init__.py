"""Arrays in, arrays out. No dask, no files, no global state."""
