"""Is an .ozx what its run said it was? Every member against its CRC-32, every chunk against its own checksum."""

from __future__ import annotations

from tiledblend.bytes.archive import MAGIC, Archive
from tiledblend.bytes.archive_objects import ArchiveObjects
from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.bytes.ranges import open_bytes
from tiledblend.containers.omezarr.documents import ROOT_KEYS, array_documents
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.result import StoredResult, read_result
from tiledblend.containers.omezarr.stored import object_problem
from tiledblend.containers.verify import Mode, VerifyReport
from tiledblend.errors import BadInputError, VerificationError


def verify_ozx(uri: str, mode: Mode) -> VerifyReport:
    """As `containers.verify.verify`.

    Raises BadInputError for what is no result of ours, VerificationError where the archive's directory or root is
    damaged.
    """
    store = ArchiveObjects(uri)
    result = _result(store)
    if result is None:
        raise BadInputError(f"{uri}: no result of tiledblend here")
    layout, archive = result.layout, store.archive
    documents = array_documents(layout)
    keys = [*layout.planned_objects(), *documents]
    present = [key for key in keys if key in archive.members]
    torn = tuple(key for key in present if archive.members[key].size < CRC_BYTES)
    to_read = [key for key in present if key not in torn] if mode == "full" else [k for k in present if k in documents]
    damaged = tuple(key for key in to_read if not _is_right(archive, layout, documents, key))
    return VerifyReport(
        uri=uri,
        mode=mode,
        objects=len(keys),
        bytes=sum(archive.members[key].size for key in present),
        decoded=len(to_read) if mode == "full" else 0,
        has_manifest=False,
        missing=tuple(key for key in keys if key not in archive.members),
        torn=torn,
        damaged=damaged,
        extra=tuple(sorted(set(archive.members).difference(keys, ROOT_KEYS[:1]))),
        problems=result.problems,
        notes=(),
    )


def _result(store: ArchiveObjects) -> StoredResult | None:
    reader = open_bytes(store.uri)
    is_archive = reader.pread(0, min(4, reader.size)) in MAGIC
    try:
        return read_result(store)
    except BadInputError as error:
        raise VerificationError(str(error)) if is_archive else error from None


def _is_right(archive: Archive, layout: ArrayLayout, documents: dict[str, bytes], key: str) -> bool:
    try:
        data = archive.read(key, archive.members[key].size)
    except BadInputError:
        return False
    if data is None:
        return False
    return data == documents[key] if key in documents else object_problem(layout, key, data) is None
