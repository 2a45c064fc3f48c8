"""An OME-TIFF's place: a file (or a bucket's object), and beside it, while it is made, the folder of its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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
from tiledblend.containers.ometiff.bigtiff import header
from tiledblend.containers.ometiff.joining import JOINED, ORDER, Order, join, reveal, stored_parts
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.pages import TileTables, directories
from tiledblend.containers.ometiff.seal import Origin, checksum, job_digest, seal, stored_job, verify_ometiff
from tiledblend.containers.ometiff.xml import ome_xml
from tiledblend.containers.output import Output
from tiledblend.containers.place import Place
from tiledblend.containers.publishing import publish
from tiledblend.errors import RefusedError, StorageError, UsageError, VerificationError

SUFFIX = ".unfinished"


class TiffPlace(Place):
    """As `Place`, of an OME-TIFF."""

    def require_usable(self) -> None:
        """Raise StorageError when the folder is missing, UsageError for a bucket."""
        path = self._path
        if not path.parent.is_dir() and not _is_file_above(path):
            raise StorageError(f"{path}: folder {path.parent} does not exist; make it first")

    def require_replaceable(self) -> None:
        """On file systems only."""
        self._path  # noqa: B018 - asked for its error

    def is_occupied(self) -> bool:
        """True when something is there."""
        return os.path.lexists(self._path)

    def is_result(self) -> bool:
        """True for a file that ends as ours do."""
        return self._path.is_file() and stored_job(self._path) is not None

    def refuse_foreign(self) -> None:
        """Nothing of ours lies beside it."""

    def older(self) -> dict[str, Any]:
        """A file holds nothing else."""
        return {"older": {}}

    def is_of(self, layout: Container, job: dict[str, Any]) -> bool:
        """By the digest at the file's end."""
        return stored_job(self._path) == _digest_of(layout.as_dict(), job)

    def building(self, document: dict[str, Any]) -> ObjectStore:
        """The folder of the parts."""
        return beside(self.final, SUFFIX)

    def make(self, building: ObjectStore, *, shared: bool) -> None:
        """As `Place.make`."""
        folder = building.local_path()
        if folder is None:
            return
        try:
            folder.mkdir(exist_ok=shared)
            sync_folder(folder.parent)
        except FileExistsError as error:
            raise RefusedError(f"{folder} is in the way; move it away or give another output path") from error
        except OSError as error:
            raise storage_error(error, "create", folder) from error

    def hide(self, building: ObjectStore) -> None:
        """Nothing is to be seen before the file has its name."""

    def stored(self, building: ObjectStore) -> ObjectStore:
        """As `Place.stored`."""
        layout = ledgers.stored_job(self.final)
        return building if layout is None else stored_parts(building, TiffLayout.from_dict(layout["layout"]))

    def settle(self, building: ObjectStore, ledger: Ledger) -> tuple[str, ...] | None:
        """The file has its name: what is left of its parts goes."""
        document = ledger.job
        named = self.is_occupied() and self.is_result()
        if not named or stored_job(self._path) != _digest_of(document["layout"], document["job"]):
            return None
        return self.remove(building, ledger.layout)[1]

    def repair(self, layout: Container, document: dict[str, Any]) -> Output:
        """Read a complete file once: it is right, damaged (VerificationError), or another job's (RefusedError)."""
        path = self._path
        if not self.is_of(layout, document["job"]):
            raise RefusedError(f"{path}: exists and is not this job's result; name another output or remove it first")
        if damaged := verify_ometiff(path).damaged:
            raise VerificationError(
                f"{path}: is this job's result, but damaged ({damaged[0]}); remove it and run again"
            )
        ledgers.remove_ledger(beside(self.final, ledgers.SUFFIX))
        return Output(self, layout, self.building(document), None)

    def commit(self, output: Output, image: ImageMetadata) -> tuple[str, tuple[str, ...]]:
        """Join the parts, write the directories, give the file its name."""
        ledger, layout, store = output.open_ledger(), output.layout, output.store
        assert isinstance(layout, TiffLayout)
        assert isinstance(store, DirectoryStore)
        made_by = _digest_of(ledger.job["layout"], ledger.job["job"])
        descriptor, order = join(store, layout, ledger.lock.check)
        joined = store.local_path(JOINED)
        with mapped_errors("write", joined):
            try:
                parts, first = _ending(layout, order, image, made_by)
                reveal(descriptor, order.end, parts, first)
            finally:
                os.close(descriptor)
        ledger.lock.check()
        publish(joined, self._path, replace=output.replaces)
        return made_by.hex(), self.remove(store, layout)[1]

    def remove(self, building: ObjectStore, layout: Container) -> tuple[int, tuple[str, ...]]:
        """The run's parts, then the folder if that leaves it empty."""
        found = [key for key, _ in building.list()]
        own = [key for key in found if _is_own(key, layout)]
        for key in own:
            building.delete(key)
        if (root := building.local_path()) is not None:
            _prune(root)
        return len(own), tuple(sorted(set(found) - set(own)))

    @property
    def _path(self) -> Path:
        path = self.final.local_path()
        if path is None:
            raise UsageError(
                f"{self.final.uri}: an OME-TIFF is written to a path on this machine; copy it to the bucket then"
            )
        return path


def _ending(layout: TiffLayout, order: Order, image: ImageMetadata, job: bytes) -> tuple[list[bytes], int]:
    """(directories and seal, offset of the first directory)."""
    tables = TileTables(layout)
    for tile, end in order.ends.items():
        tables.add(tile, end.places, order.starts[tile])
    tail, first = directories(layout, tables, order.end, image, ome_xml(image, layout))
    head, origin = header(first), Origin(layout.as_dict(), _description(image), tables.passed).packed()
    sizes = [len(head), *(end.data_bytes for end in order.ends.values()), len(tail), len(origin)]
    checksums = [checksum([head]), *(end.checksum for end in order.ends.values()), checksum([tail]), checksum([origin])]
    return [tail, origin, seal(sizes, checksums, job)], first


def _description(image: ImageMetadata) -> dict[str, Any] | None:
    """The job without its output: a file's bytes do not depend on where it lies."""
    description = (image.tiledblend or {}).get("description")
    return None if description is None else {key: value for key, value in description.items() if key != "output"}


def _digest_of(layout: dict[str, Any], job: dict[str, Any]) -> bytes:
    return job_digest({"layout": layout, "job": job})


def _is_own(key: str, layout: Container) -> bool:
    name = key.rpartition("/")[2]
    return key in (JOINED, ORDER) or name.startswith(TEMPORARY_PREFIX) or layout.object_number(key) is not None


def _prune(root: Path) -> None:
    for folder in _folders(root):
        with suppress(OSError):
            folder.rmdir()


def _folders(root: Path) -> Iterator[Path]:
    """Folders below, the deepest first."""
    for folder, _, _ in os.walk(root, topdown=False):
        yield Path(folder)


def _is_file_above(path: Path) -> bool:
    """A path below a file, which the check against the inputs tells better."""
    return any(parent.is_file() for parent in path.parents)
