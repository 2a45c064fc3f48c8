"""An OME-Zarr in one file: its place is a file, and beside it, while it is made, the folder of its parts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiledblend.bytes.archive_objects import ArchiveObjects
from tiledblend.bytes.objects import (
    TEMPORARY_PREFIX,
    DirectoryStore,
    ObjectStore,
    beside,
    mapped_errors,
    storage_error,
    sync_folder,
)
from tiledblend.containers import ledger as ledgers
from tiledblend.containers.container import Container
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ledger import Ledger
from tiledblend.containers.omezarr.documents import array_documents, root_attributes, root_documents
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.place import prune
from tiledblend.containers.omezarr.result import StoredResult, read_result
from tiledblend.containers.omezarr.windows import windows_of
from tiledblend.containers.output import Output
from tiledblend.containers.ozx.name import UNFINISHED
from tiledblend.containers.ozx.packing import Packer, comment_of, documents_first
from tiledblend.containers.ozx.verify import verify_ozx
from tiledblend.containers.place import Place
from tiledblend.containers.publishing import publish
from tiledblend.errors import BadInputError, RefusedError, StorageError, UsageError, VerificationError

PACKED = "packed.zip"


class OzxPlace(Place):
    """As `Place`, of an OME-Zarr in one file."""

    def require_usable(self) -> None:
        """Raise StorageError when the folder is missing, UsageError for a bucket."""
        path = self._path
        if not path.parent.is_dir() and not any(parent.is_file() for parent in path.parents):
            raise StorageError(f"{path}: folder {path.parent} does not exist; make it first")

    def require_replaceable(self) -> None:
        """On file systems only."""
        self._path  # noqa: B018 - asked for its error

    def is_occupied(self) -> bool:
        """True when something is there."""
        return os.path.lexists(self._path)

    def is_result(self) -> bool:
        """True for an archive whose root says that tiledblend made it."""
        return self._result() is not None

    def refuse_foreign(self) -> None:
        """Nothing of ours lies beside it."""

    def older(self) -> dict[str, Any]:
        """A file holds nothing else."""
        return {"older": {}}

    def is_of(self, layout: Container, job: dict[str, Any]) -> bool:
        """By what its root keeps of its job."""
        result = self._result()
        return result is not None and (result.layout, result.job) == (layout, job)

    def building(self, document: dict[str, Any]) -> ObjectStore:
        """The folder of the parts."""
        return beside(self.final, UNFINISHED)

    def make(self, building: ObjectStore, *, shared: bool) -> None:
        """As `Place.make`."""
        folder = building.local_path()
        assert folder is not None
        try:
            folder.mkdir(exist_ok=shared)
            sync_folder(folder.parent)
        except FileExistsError as error:
            raise RefusedError(f"{folder} is in the way; move it away or give another output path") from error
        except OSError as error:
            raise storage_error(error, "create", folder) from error

    def hide(self, building: ObjectStore) -> None:
        """Nothing is to be seen before the file has its name."""

    def settle(self, building: ObjectStore, ledger: Ledger) -> tuple[str, ...] | None:
        """The file has its name: what is left of its parts goes."""
        if not (self.is_occupied() and self.is_of(ledger.layout, ledger.job["job"])):
            return None
        return self.remove(building, ledger.layout)[1]

    def repair(self, layout: Container, document: dict[str, Any]) -> Output:
        """Read a complete file once: it is right, damaged (VerificationError), or another job's (RefusedError)."""
        path, result = self._path, self._result()
        assert result is not None
        was = {"layout": result.layout.as_dict(), "job": result.job}
        if different := ledgers.differences(was, {"layout": layout.as_dict(), "job": document["job"]}):
            raise RefusedError(f"{path}: the result there is of another job: {'; '.join(different[:4])}")
        found = verify_ozx(str(path), "full")
        if not found.ok:
            raise VerificationError(f"{found.summary()}; remove it and run again")
        ledgers.remove_ledger(beside(self.final, ledgers.SUFFIX))
        return Output(self, layout, self.building(document), None)

    def commit(self, output: Output, image: ImageMetadata) -> tuple[str, tuple[str, ...]]:
        """Pack the documents and then the parts, and give the file its name."""
        ledger, layout, store = output.open_ledger(), output.layout, output.store
        assert isinstance(layout, ArrayLayout)
        assert isinstance(store, DirectoryStore)
        history = {"history": ledger.job["history"]} if ledger.job.get("history") else {}
        own = {**(image.tiledblend or {}), "job": ledger.job["job"], **history}
        described = replace(image, windows=windows_of(layout, store, image.windows), tiledblend=own)
        documents = array_documents(layout) | root_documents(layout, root_attributes(layout, described))
        packed = store.local_path(PACKED)
        with mapped_errors("write", packed):
            _pack(packed, layout, store, documents, ledger)
        ledger.lock.check()
        publish(packed, self._path, replace=output.replaces)
        return str(self._path), self.remove(store, layout)[1]

    def remove(self, building: ObjectStore, layout: Container) -> tuple[int, tuple[str, ...]]:
        """The run's parts, then the folder if that leaves it empty."""
        assert isinstance(layout, ArrayLayout)
        found = [key for key, _ in building.list()]
        own = [key for key in found if _is_own(key, layout)]
        for key in own:
            building.delete(key)
        if (root := building.local_path()) is not None:
            prune(root)
        return len(own), tuple(sorted(set(found) - set(own)))

    @property
    def _path(self) -> Path:
        path = self.final.local_path()
        if path is None:
            raise UsageError(
                f"{self.final.uri}: an .ozx is written to a path on this machine; copy it to the bucket then"
            )
        return path

    def _result(self) -> StoredResult | None:
        if not self._path.is_file():
            return None
        try:
            return read_result(ArchiveObjects(str(self._path)))
        except BadInputError:
            return None


def _pack(
    packed: Path, layout: ArrayLayout, store: DirectoryStore, documents: dict[str, bytes], ledger: Ledger
) -> None:
    descriptor = os.open(packed, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        packer = Packer(descriptor)
        for name in documents_first(documents):
            packer.add(name, documents[name])
        for key in layout.planned_objects():
            path = store.local_path(key)
            source = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                packer.add_file(key, source, os.fstat(source).st_size, ledger.lock.check)
            finally:
                os.close(source)
        packer.finish(comment_of(layout.output.ome_zarr))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_own(key: str, layout: ArrayLayout) -> bool:
    return key == PACKED or key.rpartition("/")[2].startswith(TEMPORARY_PREFIX) or layout.owns(key)
