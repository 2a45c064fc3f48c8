"""The folder beside an unfinished OME-TIFF: who works on it, what is done, and how it becomes the file.

For `x.ome.tif` it is `x.ome.tif.unfinished/`: `job.json` (create-only), `lock.NNNNNN`, the growing `tiles.tif` with its
`journal`, and, while a blend makes its pixels, their OME-Zarr. It outlives a killed run; a finished one removes it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiledblend.bytes.new_file import refuse_existing
from tiledblend.bytes.objects import TEMPORARY_PREFIX, DirectoryStore, mapped_errors, storage_error, sync_folder
from tiledblend.containers import commit, ledger
from tiledblend.containers.lock import Lock, refuse_living
from tiledblend.errors import RefusedError, StorageError

SUFFIX = ".unfinished"
LOCK = "lock."
_JOB, _TILES, _JOURNAL, _PIXELS = "job.json", "tiles.tif", "journal", "pixels.ome.zarr"


class WorkFolder:
    """The folder of the OME-TIFF `target`. Making the object touches nothing."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = Path(os.path.abspath(target))
        self.path = self.target.with_name(self.target.name + SUFFIX)
        self.store = DirectoryStore(self.path)

    @property
    def tiles(self) -> Path:
        """The file while it grows."""
        return self.path / _TILES

    @property
    def journal(self) -> Path:
        """What of `tiles` is on disk."""
        return self.path / _JOURNAL

    @property
    def pixels(self) -> Path:
        """The OME-Zarr that a blend makes first."""
        return self.path / _PIXELS

    @property
    def exists(self) -> bool:
        """True after a run that was begun and not finished."""
        return os.path.lexists(self.path)

    @property
    def ended(self) -> bool:
        """True when something has the target's name and no run is unfinished: at most a removal is."""
        if not os.path.lexists(self.target):
            return False
        return not self.exists or self.published or next(self.store.list(), None) is None

    @property
    def published(self) -> bool:
        """True when the file has its name already and only this folder was not removed yet."""
        try:
            return os.path.samefile(self.tiles, self.target)
        except OSError:
            return False

    def begin(self, *, resume: bool, shared: bool = False) -> None:
        """Make the folder, or go on in it (resume). shared: several runs of one output may meet here.

        Raises RefusedError when the target is there, or an unfinished run that was not asked to go on; StorageError.
        """
        self.refuse_taken(unfinished=not (resume or shared))
        try:
            self.path.mkdir(exist_ok=resume or shared)
            sync_folder(self.path.parent)
        except OSError as error:
            raise storage_error(error, "create", self.path) from error

    def refuse_taken(self, *, unfinished: bool = True) -> None:
        """Raise RefusedError when the target is there, or (`unfinished`) a run of it that did not end."""
        if not self.published:
            refuse_existing(self.target)
        if unfinished and self.exists:
            self.refuse_living()
            raise RefusedError(
                f"{self.target}: an unfinished run is there; continue it with --resume or remove it with "
                f"`tiledblend clean {self.target}`"
            )

    def refuse_living(self) -> None:
        """Raise RefusedError when a living process of this machine works here."""
        for store in (self.store, DirectoryStore(f"{self.pixels}{ledger.SUFFIX}")):
            refuse_living(store, LOCK)

    def lock(self, identity: dict[str, Any]) -> Lock:
        """Hold the folder as the one writer of this job. identity: plain JSON values that decide the file's bytes.

        Raises RefusedError when another run holds it or the unfinished one is of another job.
        """
        refuse_living(self.store, LOCK)
        document = json.dumps(identity, indent=1, allow_nan=False) + "\n"
        if not self.store.put_new(_JOB, document.encode()) and (stored := self._job()) != (now := json.loads(document)):
            lines = "; ".join(ledger.differences(stored, now)[:4])
            raise RefusedError(f"{self.target}: the run to resume is of another job: {lines}")
        return Lock.acquire(self.store, LOCK)

    def _job(self) -> Any:
        try:
            return json.loads(self.store.get(_JOB) or b"")
        except ValueError as error:
            raise StorageError(
                f"{self.path / _JOB} is damaged; `tiledblend clean {self.target}` and run again"
            ) from error

    def publish(self) -> None:
        """Give `tiles` its name, only if that is still free. Raises RefusedError, StorageError."""
        try:
            os.link(self.tiles, self.target)
        except FileExistsError:
            refuse_existing(self.target)
        except OSError:
            # No hard links here (FAT, some network shares): the gap between looking and naming is as small as can be.
            refuse_existing(self.target)
            try:
                os.rename(self.tiles, self.target)
            except OSError as error:
                raise storage_error(error, "create", self.target) from error
        with mapped_errors("sync", self.target.parent):
            sync_folder(self.target.parent)

    def remove(self) -> tuple[str, ...]:
        """Remove the folder and what runs put there; returns the names of what is not theirs and stays."""
        self.remove_pixels()
        self.remove_tiles()
        return tuple(sorted(key for key, _ in self.store.list()))

    def remove_pixels(self) -> None:
        """Remove the OME-Zarr, finished or not."""
        if ledger.exists(DirectoryStore(self.pixels)):
            commit.clean(self.pixels)
        commit.remove_result(self.pixels)
        # What is left of one after a removal that was cut off.
        ledger.remove_ledger(DirectoryStore(f"{self.pixels}{ledger.SUFFIX}"))

    def remove_tiles(self) -> None:
        """Remove the growing file and what belongs to it, then the folder if that leaves it empty.

        The tiles go last: until then a removal that was cut off after `publish` is known by them.
        """
        others = [key for key, _ in self.store.list() if key.startswith((LOCK, TEMPORARY_PREFIX))]
        for name in (*others, _JOURNAL, _JOB, _TILES):
            self.store.delete(name)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the folder alone, if nothing is in it."""
        with suppress(OSError):
            self.path.rmdir()


def clean_ometiff(target: str | os.PathLike[str]) -> commit.CleanReport:
    """Remove what a dead run of an OME-TIFF left. A complete file stays.

    Raises RefusedError if there is no such run or it still lives.
    """
    work = WorkFolder(target)
    if not work.exists:
        raise RefusedError(f"{work.target}: there is no unfinished run to clean up")
    work.refuse_living()
    finished = work.published
    found = len(list(work.store.list()))
    kept = work.remove()
    return commit.CleanReport(found - len(kept), kept, finished)
