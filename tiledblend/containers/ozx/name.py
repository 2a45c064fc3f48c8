"""What an OME-Zarr in one file is called."""

from __future__ import annotations

import os

SUFFIX = ".ozx"
UNFINISHED = ".unfinished"
"""What is appended for the folder of the parts, until the file is complete."""


def is_ozx_path(path: str | os.PathLike[str]) -> bool:
    """True for a name of RFC-9.

    >>> is_ozx_path("/data/out.ozx"), is_ozx_path("out.ome.zarr")
    (True, False)
    """
    return os.fspath(path).lower().endswith(SUFFIX)
