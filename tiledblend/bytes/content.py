"""A digest of all that a source is stored in: every byte is read once, in pieces, by several threads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tiledblend.bytes.ranges import ByteReader, open_bytes

BLOCK_BYTES = 64 << 20
PIECE_BYTES = 4 << 20
AHEAD = 64
_ALL = 1 << 256


def content_digest(objects: Iterable[tuple[str, str]], *, threads: int) -> str:
    """SHA-256 over (name, path or URL) of objects, in whatever order they come.

    An object's digest is that of the digests of its blocks of 64 MiB, so that one large file keeps all threads busy;
    memory is a piece of 4 MiB per thread. Raises BadInputError for what cannot be read, or ends early.
    """
    total, pending = 0, iter(objects)
    with ThreadPoolExecutor(threads, "hash") as pool:
        while batch := list(islice(pending, AHEAD)):
            readers = list(pool.map(open_bytes, [path for _, path in batch]))
            blocks = [
                [pool.submit(_block_digest, reader, start) for start in range(0, max(1, reader.size), BLOCK_BYTES)]
                for reader in readers
            ]
            for (name, _), reader, digests in zip(batch, readers, blocks, strict=True):
                whole = hashlib.sha256(f"{name}\n{reader.size}\n".encode())
                for digest in digests:
                    whole.update(digest.result())
                total += int.from_bytes(whole.digest(), "little")  # a sum does not depend on the order
                reader.close()
    return f"{total % _ALL:064x}"


def _block_digest(reader: ByteReader, start: int) -> bytes:
    digest = hashlib.sha256()
    for piece in _pieces(reader, start):
        digest.update(piece)
    return digest.digest()


def _pieces(reader: ByteReader, start: int) -> Iterator[bytes]:
    end = min(start + BLOCK_BYTES, reader.size)
    for offset in range(start, end, PIECE_BYTES):
        yield reader.pread(offset, min(PIECE_BYTES, end - offset))
