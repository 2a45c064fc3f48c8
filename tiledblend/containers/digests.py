"""The digest by which stored objects are known: BLAKE3, three times as fast on one core as SHA-256.

Manifests of before have SHA-256; both are 32 bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from blake3 import blake3

ALGORITHM, FORMER = "blake3", "sha256"


def hasher() -> Any:
    """An empty digest with `update` and `hexdigest`."""
    return blake3()


def digest(data: bytes, algorithm: str = ALGORITHM) -> str:
    """64 hexadecimal digits. algorithm: as a manifest names it."""
    return sha256(data) if algorithm == FORMER else str(blake3(data).hexdigest())


def sha256(data: bytes) -> str:
    """Of a manifest itself, which the root's attributes name."""
    return hashlib.sha256(data).hexdigest()
