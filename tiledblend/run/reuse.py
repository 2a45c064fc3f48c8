"""Taking what is right already from an older result: whose parts, how many, and what is told of it afterwards."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blake3 import blake3

from tiledblend.compose.keys import TileKeys
from tiledblend.compose.scene import Scene
from tiledblend.containers.container import Container
from tiledblend.containers.older import Older, open_older
from tiledblend.containers.ometiff.options import is_ometiff_path
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.ozx.name import is_ozx_path
from tiledblend.containers.receipts import ReceiptTable
from tiledblend.describe.fingerprint import fingerprint
from tiledblend.errors import BadInputError, StorageError
from tiledblend.geometry import Tile
from tiledblend.run.changes import changed_lines
from tiledblend.run.plan import Plan

log = logging.getLogger("tiledblend")

MOST_REVISIONS = 20
MOST_CHANGES = 8


@dataclass(frozen=True)
class Reuse:
    """keys: of a run's tiles. older: the result whose parts may be taken, None: there is none. identity: the run's
    fingerprint."""

    keys: TileKeys
    identity: dict[str, Any]
    older: Older | None = None

    @classmethod
    def of(
        cls,
        scene: Scene,
        layout: Container,
        identity: dict[str, Any],
        older: str | os.PathLike[str] | None = None,
        *,
        required: bool = True,
    ) -> Reuse:
        """older: where a finished result lies. required: raise BadInputError where there is none, else say so.

        A run that was interrupted may have been about to exchange the older result for its own: it goes on without.
        """
        keys = TileKeys(scene, identity, layout.as_dict())
        if older is not None and (of_no_use := _of_no_use(layout, older)):
            log.warning("%s", of_no_use)
            return cls(keys, identity)
        try:
            return cls(keys, identity, None if older is None else open_older(older))
        except (BadInputError, StorageError) as error:
            if required:
                raise
            log.warning("%s; nothing is reused", error)
            return cls(keys, identity)

    def older_for(self, layout: Container) -> Older | None:
        """The older result if any of its parts can be one of this layout's; else that is said."""
        why_nothing = None if self.older is None else self.older.why_nothing(layout)
        if why_nothing is not None:
            log.warning("%s", why_nothing)
            return None
        return self.older

    def history(self) -> list[dict[str, Any]]:
        """The older result's revisions and this one, the last ones: when it was begun, from what, what has changed."""
        if self.older is None:
            return []
        import tiledblend

        changes = changed_lines(self.older.job, self.identity)
        more = [f"and {len(changes) - MOST_CHANGES} more"] if len(changes) > MOST_CHANGES else []
        revision = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": tiledblend.__version__,
            "job": _digest(self.identity),
            "reused": self.older.uri.rstrip("/").rpartition("/")[2],
            "changed": [*changes[:MOST_CHANGES], *more],
        }
        known = self.older.attributes.get("history")
        return [*(known if isinstance(known, list) else []), revision][-MOST_REVISIONS:]


def _digest(identity: dict[str, Any]) -> str:
    """By which two jobs are told apart: 32 hexadecimal digits."""
    return str(blake3(json.dumps(identity, sort_keys=True).encode()).hexdigest(length=16))


def _of_no_use(layout: Container, older: str | os.PathLike[str]) -> str | None:
    if is_ometiff_path(older) or is_ozx_path(older) or not isinstance(layout, ArrayLayout):
        return f"{os.fspath(older)}: only an OME-Zarr's folder is reused, and for another one; all of it is made"
    return None


@dataclass(frozen=True)
class ReusePlan:
    """How many of a run's tiles, of all stages, are made and how many taken from `older`. note: why none is taken."""

    older: str
    made_tiles: int
    reused_tiles: int
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "older": self.older,
            "made_tiles": self.made_tiles,
            "reused_tiles": self.reused_tiles,
            "note": self.note,
        }


def plan_reuse(planned: Plan, older: str | os.PathLike[str], *, threads: int = 2) -> ReusePlan:
    """What a run with `reuse` would make. Reads every tile's masks, renders nothing. Raises BadInputError."""
    scene, layout = planned.scene, planned.layout
    if of_no_use := _of_no_use(layout, older):
        return ReusePlan(os.fspath(older), planned.tiles, 0, of_no_use)
    found = open_older(older)
    why_nothing = found.why_nothing(layout)
    if why_nothing is not None:
        return ReusePlan(found.uri, planned.tiles, 0, why_nothing)
    keys, table = TileKeys(scene, fingerprint(scene.composite), layout.as_dict()), ReceiptTable(layout)

    def note(tile: Tile) -> bool:
        region = layout.grid.tile_region(tile)
        key = keys.of(scene.fields(region), region).stored
        table.note_key(tile, key)
        return key == found.key_of(tile)

    with ThreadPoolExecutor(threads) as pool:
        reused = sum(pool.map(note, layout.grid.tiles()))
    for stage in range(1, layout.grid.stages):
        reused += sum(found.stands_on_same(tile, table.tile_keys) for tile in layout.grid.tiles(stage))
    return ReusePlan(found.uri, planned.tiles - reused, reused)
