"""zarr-python's view of a bucket: its own store over this process's client, with failures told in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
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
        """As zarr's own, in the calling thread: obstore's coroutines have been seen never to wake its event loop."""
        tries = Repeating()
        with told(f"{self._root}/{key}", "cannot be read"):
            while True:
                try:
                    return self._get(key, prototype, byte_range)
                except Exception as error:
                    if not tries.pause_after(error):
                        raise

    def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        import obstore

        try:
            if isinstance(byte_range, RangeByteRequest):
                part = obstore.get_range(self.store, key, start=byte_range.start, end=byte_range.end)
                return prototype.buffer.from_bytes(bytes(part))
            if isinstance(byte_range, SuffixByteRequest):
                # Azure has no ranges that count from the end.
                size = obstore.head(self.store, key)["size"]
                byte_range = OffsetByteRequest(max(0, size - byte_range.suffix))
            options: Any = {"range": {"offset": byte_range.offset}} if byte_range is not None else None
            return prototype.buffer.from_bytes(bytes(obstore.get(self.store, key, options=options).bytes()))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def zarr_path(uri: str) -> StorePath:
    """What zarr-python opens an array at a URL from."""
    root, key = split_url(uri)
    return StorePath(BucketStore(root), key)
