"""Which containers there are: from what a ledger or a root keeps back to the container."""

from __future__ import annotations

from typing import Any

from tiledblend.containers.container import Container


def container_of(document: dict[str, Any]) -> Container:
    """The container of an `as_dict` document. Raises UsageError, KeyError, TypeError, ValueError for another one."""
    if document.get("container") == "ome-tiff":
        from tiledblend.containers.ometiff.layout import TiffLayout

        return TiffLayout.from_dict(document)
    from tiledblend.containers.omezarr.layout import ArrayLayout

    return ArrayLayout.from_dict(document)
