"""Where one result lies or will lie: the steps of its life that are its container's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.objects import DirectoryStore, ObjectStore

if TYPE_CHECKING:
    from tiledblend.containers.container import Container
    from tiledblend.containers.image import ImageMetadata
    from tiledblend.containers.ledger import Ledger
    from tiledblend.containers.output import Output


class Place(ABC):
    """The place of a result. final: its address. Making one touches nothing."""

    def __init__(self, final: ObjectStore) -> None:
        self.final = final

    @abstractmethod
    def require_usable(self) -> None:
        """Raise StorageError where no result can be begun."""

    @abstractmethod
    def require_replaceable(self) -> None:
        """Raise UsageError where a result cannot be exchanged for another one."""

    @abstractmethod
    def is_occupied(self) -> bool:
        """True when something is there."""

    @abstractmethod
    def is_result(self) -> bool:
        """True when a complete result of tiledblend is there, sound or damaged."""

    @abstractmethod
    def refuse_foreign(self) -> None:
        """Raise RefusedError for what lies beside a place that is not ours."""

    @abstractmethod
    def older(self) -> dict[str, Any]:
        """What the ledger keeps of the result that is to be replaced. Raises RefusedError if more than it is there."""

    @abstractmethod
    def is_of(self, layout: Container, job: dict[str, Any]) -> bool:
        """True when the complete result that is there is of this job."""

    @abstractmethod
    def building(self, document: dict[str, Any]) -> ObjectStore:
        """Where the parts of a run are put. document: the ledger's."""

    @abstractmethod
    def make(self, building: ObjectStore, *, shared: bool) -> None:
        """Make the folder of the parts, where there are folders. shared: another part may have made it."""

    @abstractmethod
    def hide(self, building: ObjectStore) -> None:
        """Nothing opens while parts are made again."""

    def stored(self, building: ObjectStore) -> ObjectStore:
        """The parts that are there, wherever a commit that was cut off has moved them."""
        return building

    @abstractmethod
    def settle(self, building: ObjectStore, ledger: Ledger) -> tuple[str, ...] | None:
        """Carry a commit that was cut off to its end: the keys that are nobody's and stay. None: it had not begun."""

    @abstractmethod
    def repair(self, layout: Container, document: dict[str, Any]) -> Output:
        """Resume a complete result: the same job's, looked at like any other. Raises RefusedError for another's."""

    @abstractmethod
    def commit(self, output: Output, image: ImageMetadata) -> tuple[str, tuple[str, ...]]:
        """Make a result visible whose parts are complete: (digest of it, keys of an older one that stay)."""

    @abstractmethod
    def remove(self, building: ObjectStore, layout: Container) -> tuple[int, tuple[str, ...]]:
        """Delete an unfinished run's objects: (number deleted, keys kept)."""


def drafting(store: ObjectStore, drafts: Path | None) -> ObjectStore:
    """The store with its half-written files outside the result."""
    return DirectoryStore(store.path, drafts) if isinstance(store, DirectoryStore) else store
