"""Whose is a ledger that is there already? What it says of tiles is believed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tiledblend.bytes.objects import ObjectStore
from tiledblend.errors import RefusedError


def require_ours(ledger: ObjectStore, made: Path | None) -> None:
    """Raise RefusedError for a ledger in which another account may have put job, receipts or drafts.

    made: a folder in it that we have just made; None where objects are no files, and nobody owns them. Ours is what
    belongs to whom that one belongs: some file systems have one owner, or one mode, for all that is there.
    """
    root = ledger.local_path()
    if root is None or made is None:
        return
    found, own = os.lstat(root), os.stat(made)
    if stat.S_ISLNK(found.st_mode):
        raise RefusedError(f"{root}: the run's ledger is a link; remove it, then run again")
    if found.st_uid != own.st_uid:
        whose = f"belongs to another account ({found.st_uid})"
    elif found.st_mode & ~own.st_mode & stat.S_IWOTH:
        whose = "anybody may write in"
    else:
        return
    raise RefusedError(f"{root}: a ledger that {whose}: what it says of tiles may not be ours; name another output")
