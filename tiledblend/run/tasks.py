"""One tile's task: what a worker is given, what it does, and what comes back."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from tiledblend.bytes.objects import ObjectStore
from tiledblend.compose.keeping import render_tile_keeping, shrink_tile_keeping
from tiledblend.compose.keys import TileKeys
from tiledblend.compose.passing import render_tile_passing
from tiledblend.compose.pyramid import TileStats, shrink_tile
from tiledblend.compose.render import TileRenderer, render_rows
from tiledblend.compose.scene import Scene
from tiledblend.containers.container import Container
from tiledblend.containers.older import Older
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.part import finer_pixels
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.receipts import Receipt
from tiledblend.describe.fingerprint import require_unchanged, sources_of
from tiledblend.errors import ResourceError, TiledblendError
from tiledblend.geometry import Region, Tile
from tiledblend.guard.process import prepare_process
from tiledblend.run.cluster import forget_task_names
from tiledblend.run.plan import MOST_STORING
from tiledblend.run.versions import installed_versions, require_versions
from tiledblend.sources.base import Missed


@dataclass(frozen=True)
class TileJob:
    """All that a task needs besides its tile. Pickled once per worker; sources reopen by name.

    inputs: fingerprints that the sources must still have where they are opened. pass_on: chunks that a source stores as
    the output would are taken as they are. keys: makes the tiles' keys. older: a result whose parts are taken where a
    tile's key is the same.
    """

    scene: Scene
    layout: Container
    store: ObjectStore
    inputs: tuple[dict[str, Any], ...]
    pass_on: bool = True
    keys: TileKeys | None = None
    older: Older | None = None

    def run(
        self,
        tile: Tile,
        storing: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        stands_on_same: bool = False,
    ) -> TileResult:
        """Render a tile and store its objects, or take them from the older result; `storing` is entered for what is
        stored. stands_on_same: a tile of a later stage whose tiles below are the older result's."""
        self._missed()  # what a run that failed in this thread left
        taken = self._taken(tile) if stands_on_same else None
        if taken is not None:
            return taken
        with _memory_told(tile), closing(self.layout.writer(self.store, tile)) as sink:
            if tile.stage:
                self._shrink(tile, sink)
                key, stats = b"", TileStats()
            else:
                with self._settled_sources():
                    renderer = TileRenderer(self.scene, self.layout.grid.tile_region(tile))
                    key = b"" if self.keys is None else self.keys.of(renderer.fields, renderer.region).stored
                    if key and self.older is not None and self.older.key_of(tile) == key:
                        taken = self._taken(tile, key)
                    stats = TileStats() if taken is not None else self._render(renderer, tile, sink)
                if taken is not None:
                    return taken
            with storing():
                return TileResult(tile, sink.finish(), stats, self._missed(), key)

    def _taken(self, tile: Tile, key: bytes = b"") -> TileResult | None:
        """A tile as the older result has it, copied; None where that cannot be had."""
        receipts = None if self.older is None else self.older.take(tile, self.store)
        return None if receipts is None else TileResult(tile, receipts, TileStats(), self._missed(), key, reused=True)

    def _shrink(self, tile: Tile, sink: Any) -> None:
        layout = self.layout
        if isinstance(layout, TiffLayout) and layout.keeps:
            shrink_tile_keeping(self.scene, layout, tile, partial(finer_pixels, layout, self.store), sink)
        else:
            shrink_tile(layout.grid, tile, self._read, sink, has_alpha=self.scene.has_alpha)

    def _render(self, renderer: TileRenderer, tile: Tile, sink: Any) -> TileStats:
        if isinstance(self.layout, TiffLayout) and self.layout.keeps:
            return render_tile_keeping(renderer, self.layout, tile, sink)
        if self.pass_on and isinstance(self.layout, ArrayLayout):
            return render_tile_passing(renderer, self.layout, tile, sink)
        return render_rows(renderer, self.layout.grid, tile, sink)

    @contextmanager
    def _settled_sources(self) -> Iterator[None]:
        """However reading ends, the sources rest, and are found to be what they were."""
        try:
            yield
        finally:
            sources = sources_of(self.scene.composite)
            for source in sources:
                source.rest()
            # Nothing of the tile is stored yet. An input that was cut short cannot be decoded: this is the better word.
            for source in sources:
                source.require_unchanged()

    def rehearse(self, tile: Tile) -> None:
        """Render a tile for nobody: to see whether that can be done at all."""
        with self._settled_sources():
            self._render(TileRenderer(self.scene, self.layout.grid.tile_region(tile)), tile, _Nowhere())

    def _missed(self) -> tuple[tuple[int, Missed], ...]:
        found = ((number, source.take_missed()) for number, source in enumerate(sources_of(self.scene.composite)))
        return tuple((number, missed) for number, of_source in found for missed in of_source)

    def require_inputs(self) -> None:
        """Raise BadInputError unless the inputs are the planned ones."""
        require_unchanged(self.scene.composite, list(self.inputs))

    def _read(self, level: int, region: Region) -> Any:
        return self.layout.read(self.store, level, region)


class _Nowhere:
    """A `ChunkSink` for a rehearsal."""

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Any) -> None:
        """Dropped."""

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Any) -> None:
        """Dropped."""

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        """Dropped."""

    def keep_pixels(self, pixels: Any, owner: int = -1) -> None:
        """Dropped."""


@dataclass(frozen=True)
class TileResult:
    """What a task gives back to the driver: proof, not pixels.

    missed: chunks of inputs that were found not to be stored, by the index of their source in `sources_of`. key: the
    tile's, of the first stage. reused: its objects are the older result's.
    """

    tile: Tile
    receipts: tuple[Receipt, ...]
    stats: TileStats
    missed: tuple[tuple[int, Missed], ...] = ()
    key: bytes = b""
    reused: bool = False


@contextmanager
def _memory_told(tile: Tile) -> Iterator[None]:
    """However a library says that it got no memory, as one line of ours."""
    import cv2

    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.STS_NO_MEM:
            raise
        raise ResourceError(
            f"{tile}: out of memory; use fewer threads or a smaller --shard, then run again with --resume"
        ) from error


class SharedJob:
    """A job on its way through a cluster: its bytes, opened once per process by the first task that needs it.

    A job pickles and has `require_inputs()`.

    Opening asks files and servers, so it belongs in a task, where it may take its time and fail in one line, and not
    in dask's own transfers between workers.
    """

    def __init__(self, pickled: bytes, versions: dict[str, str]) -> None:
        self._pickled, self._versions, self._lock = pickled, versions, threading.Lock()
        self._job: Any = None

    def __reduce__(self) -> tuple[type[SharedJob], tuple[bytes, dict[str, str]]]:
        return SharedJob, (self._pickled, self._versions)

    def open(self) -> Any:
        """The job, after a check that packages (a worker may join late) and inputs are the planned ones."""
        with self._lock:
            if self._job is None:
                require_versions(self._versions, installed_versions(), socket.gethostname())
                prepare_process()
                job = _opened(self._pickled)
                job.require_inputs()
                self._job = job
            return self._job


def _opened(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except (TiledblendError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ResourceError(
            f"a worker cannot take the layers' arrays as they were sent: {type(error).__name__}: {error}; compute them "
            "first, or run without a client"
        ) from error


def run_tile(job: SharedJob, tile: Tile, stands_on_same: bool = False) -> TileResult:
    """A task: one tile. While it waits for the disk or the network its thread's place is another tile's."""
    forget_task_names()
    with errors_told():
        result: TileResult = job.open().run(tile, _aside, stands_on_same=stands_on_same)
        return result


@contextmanager
def errors_told() -> Iterator[None]:
    """In a task: errors that say on which host they happened, and that reach the client."""
    from distributed import get_worker

    try:
        yield
    except TiledblendError as error:
        worker = get_worker()
        # dask numbers the workers that this command has started; others see files of their own, on this machine too.
        if worker.address.startswith("inproc://") or isinstance(worker.name, int):
            raise
        raise type(error)(f"{error} (on worker {worker.address})") from error
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A panic of a library in Rust: its class cannot be unpickled, and the client would wait for ever.
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


_STORING = threading.BoundedSemaphore(MOST_STORING)


@contextmanager
def _aside() -> Iterator[None]:
    """Outside the worker's pool of threads, so that the next tile begins; at most MOST_STORING tiles at once."""
    from distributed import secede

    if not _STORING.acquire(blocking=False):
        yield
        return
    try:
        secede()
        yield
    finally:
        _STORING.release()


def is_here(address: str) -> bool:
    """True for a worker of an embedded or local cluster."""
    return address.startswith(("inproc://", "tcp://127.0.0.1:", "tls://127.0.0.1:"))
