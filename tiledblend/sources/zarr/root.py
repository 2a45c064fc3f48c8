"""Where a zarr begins in a zip archive."""

from __future__ import annotations

from tiledblend.bytes.archive import MARK, open_archive, split_member

ZARR_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def root_of(path: str) -> str | None:
    """The path of the zarr in an archive: at its root (as RFC-9 has it), or in the one folder there; None: none.

    path: of an archive, or of a folder in it.
    """
    archive, folder = split_member(path) or (path, "")
    opened = open_archive(archive, fresh=True)
    if any(f"{folder}/{name}".lstrip("/") in opened.members for name in ZARR_DOCUMENTS):
        return f"{archive}{MARK}{folder}"
    inside = opened.names_below(folder)
    if not folder and len(inside) == 1 and any(f"{inside[0]}/{name}" in opened.members for name in ZARR_DOCUMENTS):
        return f"{archive}{MARK}{inside[0]}"
    return None
