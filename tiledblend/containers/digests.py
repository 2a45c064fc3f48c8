"""The digest by which stored objects are known."""

from __future__ import annotations

import hashlib
from typing import Any

from tiledblend.bytes.objects import Data


def hasher() -> Any:
    """An empty digest with `update` and `hexdigest`."""
    return hashlib.sha256()


def digest(data: Data) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
