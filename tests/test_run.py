"""Runs: one task per tile, all or nothing, continued where they stopped."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.bytes.objects import TEMPORARY_PREFIX, DirectoryStore
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.errors import BadInputError, InterruptedRun, RefusedError, UsageError
from tiledblend.geometry import Region, Tile
from tiledblend.look.lines import run_text
from tiledblend.run.cluster import open_client
from tiledblend.run.tasks import TileJob
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec

Array = NDArray[Any]
SMALL = OutputSpec(16, 32)
SHAPE = (100, 130)


class Finished(SchedulerPlugin):
    """Counts the tasks that the scheduler saw through, by the first part of their key."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) == ("processing", "memory"):
            self.counts[str(key).split("-", 1)[0]] += 1


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_client(tb.ClusterOptions(threads_per_worker=2)) as made:
        yield made


def image(seed: int, shape: tuple[int, int] = SHAPE) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def composite(shape: tuple[int, int] = SHAPE) -> Composite:
    mask = np.zeros(shape, bool)
    mask[20:70, 30:90] = True
    return Composite(
        [
            Layer(tb.from_array(image(0, shape), axes="yxc", name="base")),
            Layer(
                tb.from_array(image(1, shape), axes="yxc", name="overlay"),
                tb.from_array(mask, axes="yx", name="mask", mask=True),
                feather=tb.Feather.px(3),
            ),
        ]
    )


def stored(path: Path, level: int = 0) -> Array:
    return np.moveaxis(np.asarray(zarr.open_group(path, mode="r")[str(level)]), 0, 2)


def opens(path: Path) -> bool:
    """True if anything at or below the path can be opened as zarr."""
    if not path.exists():
        return False
    folders = [path, *(p for p in path.rglob("*") if p.is_dir())]
    for folder in folders:
        try:
            zarr.open(folder, mode="r")
        except FileNotFoundError:
            continue
        return True
    return False


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 2), ("uint8", 4), ("uint16", 4), ("float32", 4)])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_result_with_alpha_is_read_as_one(
    tmp_path: Path, client: Client, dtype: str, channels: int, version: str
) -> None:
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels = (np.random.default_rng(0).random((40, 50, channels)) * top).astype(dtype)
    made = Composite([Layer(tb.from_array(pixels, axes="yxc", alpha=Alpha.STRAIGHT))])
    output = OutputSpec(16, 32, ome_zarr=version)
    tb.write(made, str(tmp_path / "a.ome.zarr"), client=client, output=output)
    result = tb.open(str(tmp_path / "a.ome.zarr"))
    assert (result.alpha, result.channels) == (Alpha.STRAIGHT, channels)
    tb.write(Composite([Layer(result)]), str(tmp_path / "b.ome.zarr"), client=client, output=output)
    for level in range(3):
        np.testing.assert_array_equal(stored(tmp_path / "b.ome.zarr", level), stored(tmp_path / "a.ome.zarr", level))


class Breaking(RasterSource):
    """An image that cannot be read in its last row."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.spec, self.dtype, self.channels, self.is_rgb = SourceSpec("broken.svs"), np.dtype(np.uint8), 3, True
        self.levels, self.info = (Level(shape, (16, 16)),), SourceInfo("test", "yxc")

    def __reduce__(self) -> Any:
        return Breaking, (self.shape,)

    def _read(self, region: Region, level: int) -> Array:
        if region.y1 == self.shape[0]:
            raise ValueError("a tile is damaged\nin its middle")
        return np.zeros((*region.shape, 3), np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": "broken.svs"}


def test_one_task_per_tile_and_one_job_per_stage(client: Client, tmp_path: Path) -> None:
    counter = Finished()
    scheduler = client.cluster.scheduler
    scheduler.add_plugin(counter, name="finished")
    planned = tb.plan(composite(), SMALL)
    report = tb.write(composite(), str(tmp_path / "x.zarr"), output=SMALL, client=client)
    scheduler.remove_plugin("finished")
    assert planned.grid.stages == 3
    assert counter.counts == {"tile": planned.tiles, "job": planned.grid.stages}
    assert report.tiles == planned.tiles == 4 * 5 + 1 * 2 + 1
    np.testing.assert_array_equal(stored(tmp_path / "x.zarr"), tb.to_array(composite()))


def test_report_and_progress(client: Client, tmp_path: Path) -> None:
    events: list[tb.ProgressEvent] = []
    path = tmp_path / "x.zarr"
    report = tb.write(composite(), str(path), output=SMALL, client=client, progress=events.append)
    assert [event.done_tiles for event in events] == list(range(1, report.tiles + 1))
    assert {event.tiles for event in events} == {report.tiles}
    assert events[-1].done_pixels == events[-1].pixels == report.pixels == 100 * 130
    assert report.complete
    assert report.background_pixels == 0
    assert sum(report.chunks.values()) == 7 * 9
    assert report.chunks["copied"] > 0
    assert report.chunks["blended"] > 0
    assert report.bytes_written == sum(p.stat().st_size for p in path.glob("*/c/**/*") if p.is_file())
    assert report.objects == sum(p.is_file() for p in path.glob("*/c/**/*"))
    assert report.as_dict()["shape"] == [100, 130]


def test_background_is_counted_and_written(client: Client, tmp_path: Path) -> None:
    layer = Layer(tb.from_array(image(0, (40, 50)), axes="yxc"), offset=(10, -5))
    made = Composite([layer], background=(1, 2, 3), canvas=Canvas(SHAPE))
    report = tb.write(made, str(tmp_path / "x.zarr"), output=SMALL, client=client)
    assert report.background_pixels == 100 * 130 - 40 * 45
    got = stored(tmp_path / "x.zarr")
    expected = np.broadcast_to(np.uint8([1, 2, 3]), (*SHAPE, 3)).copy()
    expected[10:50, :45] = image(0, (40, 50))[:, 5:]
    np.testing.assert_array_equal(got, expected)
    assert report.chunks["empty"] > 0


def interrupted(path: Path, client: Client, after: int) -> int:
    """Starts a run that is stopped after some tiles; returns how many have a receipt."""
    stop, done = threading.Event(), []

    def progress(event: tb.ProgressEvent) -> None:
        done.append(event.done_tiles)
        if event.done_tiles >= after:
            stop.set()

    with pytest.raises(InterruptedRun, match="--resume") as caught:
        tb.write(composite(), str(path), output=SMALL, client=client, progress=progress, stop=stop)
    assert caught.value.exit_code == 75
    return done[-1]


def test_an_interrupted_run_leaves_nothing_that_opens_and_resumes(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    done = interrupted(path, client, 5)
    assert not opens(path)
    with pytest.raises(RefusedError, match="resume"):
        tb.write(composite(), str(path), output=SMALL, client=client)
    report = tb.write(composite(), str(path), output=SMALL, client=client, resume=True)
    assert report.resumed_tiles == done
    assert report.tiles == tb.plan(composite(), SMALL).tiles - done
    np.testing.assert_array_equal(stored(path), tb.to_array(composite()))
    tb.write(composite(), str(tmp_path / "whole.zarr"), output=SMALL, client=client)
    for level in range(5):
        try:
            expected = stored(tmp_path / "whole.zarr", level)
        except KeyError:
            break
        np.testing.assert_array_equal(stored(path, level), expected)


def test_tiles_in_flight_at_a_stop_are_waited_for_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded worker that is closed too early takes half a minute, and its threads write after the end."""
    stop, kept = threading.Event(), []
    render = TileJob._render

    def slowly(self: TileJob, tile: Tile, *rest: Any) -> Any:
        stop.set()
        time.sleep(1)
        return render(self, tile, *rest)

    monkeypatch.setattr(TileJob, "_render", slowly)
    started, path = time.monotonic(), tmp_path / "x.zarr"
    with pytest.raises(InterruptedRun):
        tb.write(
            composite(),
            str(path),
            output=SMALL,
            cluster=tb.ClusterOptions(threads_per_worker=2),
            progress=lambda event: kept.append(event.done_tiles),
            stop=stop,
        )
    assert time.monotonic() - started < 15
    assert kept
    assert kept[-1] <= 2
    monkeypatch.undo()
    report = tb.write(composite(), str(path), output=SMALL, resume=True)
    assert report.resumed_tiles == kept[-1]
    np.testing.assert_array_equal(stored(path), tb.to_array(composite()))


TWICE = """
import os, signal, time
from tiledblend.cli.stopping import stoppable

with stoppable():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
print("still here")
"""


def test_a_second_signal_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (75, "")
    first, second = done.stderr.splitlines()
    assert "waiting for the tiles in flight" in first
    assert second == "tiledblend: error: stopped at once; continue with --resume"


def test_a_finished_result_is_found_so(client: Client, tmp_path: Path) -> None:
    """Nothing is made, everything is counted, and no rate is told for what was not computed."""
    path = tmp_path / "x.zarr"
    first = tb.write(composite(), str(path), output=SMALL, client=client)
    again = tb.write(composite(), str(path), output=SMALL, client=client, resume=True)
    assert (again.tiles, again.resumed_tiles) == (0, first.tiles)
    assert again.bytes_written == first.bytes_written > 0
    assert "Mpx/s" in run_text(first)
    assert "complete already, nothing computed" in run_text(again)
    assert "Mpx/s" not in run_text(again)


def test_resume_of_another_job_is_refused(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    interrupted(path, client, 3)
    other = Composite(composite().layers, "average")
    with pytest.raises(RefusedError) as caught:
        tb.write(other, str(path), output=SMALL, client=client, resume=True)
    assert "\n" not in str(caught.value)
    assert not opens(path)


def test_an_existing_output_is_refused_and_kept(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    for options in ({}, {"resume": True}, {"replace": True}):
        with pytest.raises(RefusedError):
            tb.write(composite(), str(folder), output=SMALL, client=client, **options)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    path = tmp_path / "x.zarr"
    tb.write(composite(), str(path), output=SMALL, client=client)
    with pytest.raises(RefusedError, match="exist"):
        tb.write(composite(), str(path), output=SMALL, client=client)
    np.testing.assert_array_equal(stored(path), tb.to_array(composite()))


def test_output_inside_an_input_is_refused(client: Client, tmp_path: Path) -> None:
    tb.write(composite(), str(tmp_path / "x.zarr"), output=SMALL, client=client)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    again = Composite([Layer(tb.open(str(tmp_path / "x.zarr")))])
    with pytest.raises(RefusedError):
        tb.write(again, str(tmp_path / "x.zarr" / "y.zarr"), output=SMALL, client=client)
    with pytest.raises(RefusedError):
        tb.write(again, str(tmp_path / "x.zarr"), output=SMALL, client=client, replace=True)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_an_unreadable_tile_ends_the_run_in_one_line(client: Client, tmp_path: Path) -> None:
    made = Composite([Layer(Breaking(SHAPE))])
    with pytest.raises(BadInputError, match=r"broken\.svs: level 0, region .*a tile is damaged") as caught:
        tb.write(made, str(tmp_path / "x.zarr"), output=SMALL, client=client)
    assert "\n" not in str(caught.value)
    assert not opens(tmp_path / "x.zarr")


def test_parts_without_a_cluster(tmp_path: Path) -> None:
    path = str(tmp_path / "x.zarr")
    first = tb.write(composite(), path, output=SMALL, part=(1, 2))
    assert not first.complete
    with pytest.raises(RefusedError, match="10 tiles are not made yet"):
        tb.write(composite(), path, output=SMALL, finish=True)
    assert not opens(tmp_path / "x.zarr")
    second = tb.write(composite(), path, output=SMALL, part=(2, 2))
    assert first.tiles + second.tiles == 20
    assert tb.write(composite(), path, output=SMALL, finish=True).complete
    np.testing.assert_array_equal(stored(tmp_path / "x.zarr"), tb.to_array(composite()))


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_a_part_that_is_not_there_leaves_nothing(tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="the part must be from 1 to 2"):
        tb.write(composite(), str(tmp_path / "x.zarr"), output=SMALL, part=part)
    assert list(tmp_path.iterdir()) == []


class Changing(Breaking):
    """An image whose file changes while its last row is read."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self.read_to_its_end = False

    def __reduce__(self) -> Any:
        return Changing, (self.levels[0].shape,)

    def _read(self, region: Region, level: int) -> Array:
        self.read_to_its_end |= region.y1 == self.shape[0]
        return np.zeros((*region.shape, 3), np.uint8)

    def require_unchanged(self) -> None:
        if self.read_to_its_end:
            raise self.changed()


def test_an_input_that_changes_while_a_tile_reads_it(tmp_path: Path) -> None:
    """The tile is not stored: an input that is put back later leaves no pixel of the other one."""
    made = Composite([Layer(Changing(SHAPE))])
    with pytest.raises(BadInputError, match=r"broken\.svs: the input changed while the run was using it"):
        tb.write(made, str(tmp_path / "x.zarr"), output=SMALL, part=(1, 1))
    stored = (path for path in (tmp_path / "x.zarr/0/c/0").rglob("*") if path.is_file())
    assert {path.parent.name for path in stored} == {"0", "1", "2"}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_parts_that_do_not_exist(part: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part"):
        tb.write(composite(), str(tmp_path / "x.zarr"), output=SMALL, part=part)


def test_a_source_without_weight_is_not_read(tmp_path: Path) -> None:
    """Masks are read first: an overlay that cannot be read does no harm where it has no weight."""
    base = Layer(tb.from_array(image(0), axes="yxc"))
    hidden = Layer(
        Breaking(SHAPE), tb.from_array(np.zeros(SHAPE, bool), axes="yx", mask=True), feather=tb.Feather.px(4)
    )
    made = Composite([base, hidden])
    tb.write(made, str(tmp_path / "x.zarr"), output=SMALL, part=(1, 1))
    tb.write(made, str(tmp_path / "x.zarr"), output=SMALL, finish=True)
    np.testing.assert_array_equal(stored(tmp_path / "x.zarr"), image(0))


def test_task_arguments_are_small() -> None:
    """What goes to the workers names its sources; only arrays in memory travel."""
    from tiledblend.run.tasks import TileJob

    planned = tb.plan(Composite([Layer(Breaking((100_000, 100_000)))]))
    job = TileJob(planned.scene, planned.layout, None, ())  # type: ignore[arg-type]
    assert len(pickle.dumps(job)) < 5000


def test_a_thread_that_rendered_a_tile_keeps_no_large_strip(tmp_path: Path) -> None:
    """Nor does the one that planned: a mask's rule is decided by reading it."""
    mask = np.zeros((2200, 4200), np.uint8)
    mask[100:2000] = 255
    for name in ("a", "b", "m"):
        tifffile.imwrite(tmp_path / f"{name}.tif", mask, rowsperstrip=2200, compression="zlib")
    sources: Any = [tb.open(tmp_path / f"{name}.tif", mask=name == "m") for name in "abm"]
    base, over, drawn = sources

    def kept() -> int:
        return sum(len(reader._large._kept) for source in sources for reader in source._readers)

    planned = tb.plan(Composite([Layer(base), Layer(over, drawn)]), OutputSpec(512, 1024), samples=0)
    assert kept() == 0
    drawn.read(Region(0, 0, 9, 9))
    assert kept() == 1
    store = DirectoryStore(tmp_path / "out")
    TileJob(planned.scene, planned.layout, store, ()).run(Tile(0, 0, 0))
    assert kept() == 0


@pytest.mark.parametrize("workers", [None, 1])
def test_a_local_cluster_listens_on_this_machine_only(workers: int | None) -> None:
    with open_client(tb.ClusterOptions(workers=workers, threads_per_worker=1)):
        me = psutil.Process()
        sockets = [s for p in (me, *me.children(recursive=True)) for s in p.net_connections("inet")]
        assert {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN} <= {"127.0.0.1"}


def test_a_path_will_do_as_output(tmp_path: Path) -> None:
    report = tb.write(composite(), tmp_path / "x.zarr", output=SMALL, part=(1, 1))
    assert report.uri == str(tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"uri": None}, "output None"),
        ({"output": "zstd"}, "output 'zstd' must be an OutputSpec"),
        ({"client": "tcp://h:8786"}, "client is a str"),
        ({"cluster": "tcp://h:8786"}, "cluster 'tcp://h:8786' must be ClusterOptions"),
        ({"part": 1}, "part 1"),
        ({"part": (1.0, 2)}, r"part \(1.0, 2\)"),
        ({"part": "1/2"}, "part '1/2'"),
        ({"progress": 3}, "progress 3"),
        ({"job": {"opacity": np.float32(1)}}, "job must hold plain JSON values only: .*float32"),
        ({"planned": tb.plan(Composite([Layer(tb.from_array(image(5), axes="yxc"))]))}, "another composite"),
    ],
)
def test_arguments_of_another_kind_leave_nothing(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        tb.write(composite(), **{"uri": tmp_path / "x.zarr", "output": SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_array_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Composite([Layer(tb.from_array(image(0), axes="yxc", name="sample1"))])
    tb.write(made, "sample1/out.zarr", output=SMALL, part=(1, 1))


@pytest.mark.parametrize("dtype", [">u2", ">f4"])
def test_big_endian_arrays_are_written(dtype: str, tmp_path: Path) -> None:
    pixels = image(0).astype(dtype)
    opacity: Any = np.float32(1)
    made = Composite([Layer(tb.from_array(pixels, axes="yxc"), opacity=opacity)])
    tb.write(made, tmp_path / "x.zarr", output=SMALL)
    np.testing.assert_array_equal(stored(tmp_path / "x.zarr"), pixels)


def test_large_arrays_are_written_within_a_task_of_another_cluster(client: Client, tmp_path: Path) -> None:
    pixels = image(0, (600, 700))
    made = Composite([Layer(tb.from_array(pixels, axes="yxc"))])
    written = client.submit(tb.write, made, str(tmp_path / "x.zarr"), pure=False)
    assert written.result(timeout=60).complete
    np.testing.assert_array_equal(stored(tmp_path / "x.zarr"), pixels)
