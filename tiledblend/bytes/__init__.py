"""Stored bytes by name and offset, in files, buckets and on web servers; whole objects put once.

Here: clients of buckets, readers of byte ranges, object stores, digests, the names of chunk encodings. Not here: what
the bytes mean (`sources`, `containers`).
"""
