"""A finished file gets its name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tiledblend.bytes.objects import mapped_errors, sync_folder
from tiledblend.errors import RefusedError


def publish(joined: Path, target: Path, *, replace: bool) -> None:
    """Give the file its name, only if that is still free (or an older result's, which it replaces)."""
    with mapped_errors("create", target):
        if replace:
            os.replace(joined, target)
        else:
            _link(joined, target)
        sync_folder(target.parent)


def _link(joined: Path, target: Path) -> None:
    try:
        os.link(joined, target)
    except FileExistsError as error:
        raise RefusedError(f"{target}: exists; name another output or remove it first") from error
    except OSError:
        # No hard links here (FAT, some network shares): the gap between looking and naming is as small as can be.
        if os.path.lexists(target):
            raise RefusedError(f"{target}: exists; name another output or remove it first") from None
        os.rename(joined, target)
    with suppress(FileNotFoundError):
        joined.unlink()
