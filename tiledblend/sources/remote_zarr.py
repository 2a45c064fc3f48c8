"""zarr-python's view of a bucket: its own store over this process's client, with failures told in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.storage import ObjectStore, StorePath

from tiledblend.buckets import Repeating, client_of, split_url
from tiledblend.sources.remote import told
from tiledblend.sources.zarr_stored import ObjectGrid, note

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class BucketStore(ObjectStore[Any]):
    """The objects of a bucket or web server, read only. A failed request is a StorageError that names the object.

    What is not there is noted for the read that runs.
    """

    def __init__(self, root: str, folder: str, grid: ObjectGrid) -> None:
        super().__init__(client_of(root), read_only=True)
        self._root, self._prefix, self._grid = root, f"{folder.rstrip('/')}/", grid

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As zarr's own."""
        tries = Repeating()
        with told(f"{self._root}/{key}", "cannot be read"):
            while True:
                try:
                    found = await super().get(key, prototype, byte_range)
                    note(self._grid, key.removeprefix(self._prefix), byte_range, found)
                    return found
                except Exception as error:
                    if not tries.pause_after(error):
                        raise


def zarr_path(uri: str, grid: ObjectGrid) -> StorePath:
    """What zarr-python opens an array at a URL from."""
    root, key = split_url(uri)
    return StorePath(BucketStore(root, key, grid), key)
