"""One new file or object of the user's choosing: whole or not at all, never over one that is there."""

from __future__ import annotations

import os
from pathlib import Path

from tiledblend.bytes.objects import Blob, ObjectStore, open_store, parts_of, split_parent
from tiledblend.errors import RefusedError, StorageError

_OF_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raises RefusedError when something is at `path` (a local one or a bucket's) or it would lie in a zarr on this
    machine, StorageError when its folder is missing or the bucket refuses."""
    store, name = _place(path)
    folder = store.local_path()
    if os.path.lexists(folder / name) if folder is not None else store.size(name) is not None:
        raise RefusedError(f"{os.fspath(path)}: exists; name another output or remove it first")
    if folder is not None and not folder.is_dir():
        raise StorageError(f"{os.fspath(path)}: folder {folder} does not exist; make it first")
    if folder is not None and (zarr := _zarr_around(folder.resolve())) is not None:
        raise RefusedError(f"{os.fspath(path)}: lies inside the zarr {zarr}, which holds an image; name another place")


def _zarr_around(folder: Path) -> Path | None:
    """The folder, or one around it, that is a zarr group or array."""
    holds = (one for one in (folder, *folder.parents) if any(os.path.lexists(one / name) for name in _OF_ZARR))
    return next(holds, None)


def _place(path: str | os.PathLike[str]) -> tuple[ObjectStore, str]:
    """The folder or prefix that an output lies in, and its name there."""
    return split_parent(open_store(path))


def write_new(path: str | os.PathLike[str], data: Blob) -> int:
    """Create the file or object `path` with this content, whole or not at all, only if the name is still free.

    Returns the number of bytes. Raises RefusedError when `path` exists, StorageError when disk or bucket refuse.
    """
    refuse_existing(path)
    store, name = _place(path)
    if not store.put_new(name, data):
        refuse_existing(path)
    return sum(map(len, parts_of(data)))
