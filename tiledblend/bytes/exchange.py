"""Exchange two directories in one step, so that a reader finds the old one or the new one, never none."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from tiledblend.bytes.objects import storage_error, sync_folder

ASIDE = ".tiledblend-old"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, old: Path) -> None:
    """Let `new` and `old` (siblings) trade names. Raises StorageError.

    Linux does it in one step (renameat2). Elsewhere the old one steps aside first: after a crash in between, `old` is
    missing and `settle_aside` puts things right.
    """
    try:
        if not _renameat2(new, old):
            aside = old.with_name(old.name + ASIDE)
            os.rename(old, aside)
            os.rename(new, old)
            os.rename(aside, new)
        sync_folder(old.parent)
    except OSError as error:
        raise storage_error(error, "exchange", old) from error


def settle_aside(new: Path, old: Path) -> None:
    """Finish an exchange that was cut off between its renames; nothing happens if none was."""
    aside = old.with_name(old.name + ASIDE)
    try:
        if aside.exists():
            if not old.exists():
                os.rename(new, old)
            os.rename(aside, new)
            sync_folder(old.parent)
    except OSError as error:
        raise storage_error(error, "exchange", old) from error


def _renameat2(new: Path, old: Path) -> bool:
    """True if done, False where this system or file system cannot. Raises OSError for other failures."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if call(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(old))
