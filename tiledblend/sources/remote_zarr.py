"""zarr-python's view of a bucket: its own store over this process's client, with failures told in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.storage import ObjectStore, StorePath

from tiledblend.buckets import Repeating, client_of, split_url
from tiledblend.sources.remote import told

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class BucketStore(ObjectStore[Any]):
    """The objects of a bucket or web server, read only. A failed request is a StorageError that names the object."""

    def __init__(self, root: str) -> None:
        super().__init__(client_of(root), read_only=True)
        self._root = root

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As zarr's own."""
        tries = Repeating()
        with told(f"{self._root}/{key}", "cannot be read"):
            while True:
                try:
                    return await super().get(key, prototype, byte_range)
                except Exception as error:
                    if not tries.pause_after(error):
                        raise


def zarr_path(uri: str) -> StorePath:
    """What zarr-python opens an array at a URL from."""
    root, key = split_url(uri)
    return StorePath(BucketStore(root), key)
