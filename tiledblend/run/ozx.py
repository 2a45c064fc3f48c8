"""Runs whose result is an OME-Zarr in one file."""

from __future__ import annotations

import os
from dataclasses import replace

from tiledblend.bytes.objects import open_store
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.ozx.name import is_ozx_path
from tiledblend.errors import UsageError
from tiledblend.run.plan import Plan


def planned_for(planned: Plan, path: str | os.PathLike[str]) -> Plan:
    """The plan, for a result at `path`: for one file where that is an .ozx.

    Raises UsageError for a bucket, and for OME-Zarr 0.4.
    """
    text = os.fspath(path)
    if not is_ozx_path(text) or not isinstance(planned.layout, ArrayLayout):
        return planned
    if open_store(text).local_path() is None:
        raise UsageError(f"{text}: an .ozx is written to a path on this machine; copy it to the bucket then")
    return replace(planned, layout=replace(planned.layout, packed=True))
