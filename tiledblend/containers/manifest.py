"""The manifest beside a result: every stored object with its length and digest.

JSON lines: a header with the root attributes, then one `[key, size, digest]` per object in planned order, array
metadata last. Its own SHA-256 is in the root attributes: each proves the other, and a damaged root can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Any

from tiledblend.containers.digests import ALGORITHM, FORMER
from tiledblend.containers.receipts import Receipt

SUFFIX = ".manifest"


@dataclass(frozen=True)
class Manifest:
    """What a finished result consists of. attributes: the root's, without the manifest's hash. receipts: by key.

    keys: of the tiles of the first stage (`ReceiptTable.tile_keys`), one after the other; b"" where it has none.
    algorithm: of the receipts' digests.
    """

    attributes: dict[str, Any]
    receipts: dict[str, Receipt]
    keys: bytes = b""
    algorithm: str = FORMER


def dump_manifest(attributes: dict[str, Any], receipts: Iterable[Receipt], count: int, keys: bytes = b"") -> bytes:
    """The stored bytes. count: of the receipts. keys: as of `Manifest`."""
    header = {"tiledblend_manifest": 1, "objects": count, "digest": ALGORITHM, "attributes": attributes}
    header |= {"keys": keys.hex()} if keys else {}
    data = BytesIO()
    for line in chain([header], receipts):
        data.write(f"{json.dumps(line)}\n".encode())
    return data.getvalue()


def parse_manifest(data: bytes) -> Manifest | None:
    """The manifest of stored bytes; None if they are not one."""
    try:
        header, *lines = data.decode().splitlines()
        parsed = json.loads(header)
        receipts = [Receipt(str(key), int(size), str(digest)) for key, size, digest in map(json.loads, lines)]
        if parsed["tiledblend_manifest"] != 1 or parsed["objects"] != len(receipts):
            return None
        keys = bytes.fromhex(parsed.get("keys", ""))
        algorithm = parsed.get("digest", FORMER)
        if algorithm not in (ALGORITHM, FORMER):
            return None
        return Manifest(dict(parsed["attributes"]), {receipt.key: receipt for receipt in receipts}, keys, algorithm)
    except (ValueError, KeyError, TypeError):
        return None
