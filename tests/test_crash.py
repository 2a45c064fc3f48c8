"""A decoder that ends its process: one line, the right exit code, the other tiles kept, nothing else harmed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tiledblend.geometry import Region
from tiledblend.guard import crash
from tiledblend.sources import from_array, open_source
from tiledblend.sources.tiff.reading import LevelReader

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a parent watches only on Linux")
CUT = ["--chunk", "64", "--shard", "64"]
HOOK = Path(__file__).parent / "crashing"


@pytest.fixture
def slides(tmp_path: Path) -> tuple[Path, Path]:
    """A sound base, and an overlay of which one tile, [192:256, 128:192], crashes its decoder."""
    rng = np.random.default_rng(1)
    for name in ("base", "over"):
        pixels = rng.integers(80, 256, (320, 320), dtype=np.uint8)
        if name == "over":
            pixels[192:256, 128:192] = 77
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, tile=(64, 64), compression="lzw")
    return tmp_path / "base.tif", tmp_path / "over.tif"


def run(folder: Path, *arguments: object, by: str | None = "null") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONFAULTHANDLER": "", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    if by is not None:
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment |= {"PYTHONPATH": path, "CRASH_BY": by}
    command = [sys.executable, "-m", "tiledblend", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("cluster", [["--threads-per-worker", "2"], ["--workers", "2"]], ids=["embedded", "workers"])
def test_a_crash_is_one_line_and_the_rest_is_kept(
    slides: tuple[Path, Path], tmp_path: Path, cluster: list[str]
) -> None:
    base, over = slides
    job = ["blend", base, over, "-o", "out.ome.zarr", *CUT, *cluster]
    done = run(tmp_path, *job)
    assert done.returncode == 4, done.stderr
    lines = [text for text in done.stderr.splitlines() if "note" not in text and " %, " not in text]
    assert len(lines) == 1, done.stderr
    (line,) = lines
    assert line.startswith(
        f"tiledblend: error: {over}: level 0, region [192:256, 128:192]: its decoder crashed (SIGSEGV)"
    )
    assert not (tmp_path / "out.ome.zarr" / "zarr.json").exists()
    kept = run(tmp_path, *job, "--resume", "--json", by=None)
    assert kept.returncode == 0, kept.stderr
    assert '"resumed_tiles": 0' not in kept.stdout
    pixels = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["0"][0]
    np.testing.assert_array_equal(pixels, tifffile.imread(over))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.tif", "out.ome.zarr", "out.ome.zarr.manifest", "over.tif"
    ]  # fmt: skip


def test_workers_that_are_killed_under_one_tile(slides: tuple[Path, Path], tmp_path: Path) -> None:
    """No decoder is to blame: the others' tiles are made, and the run is given up after that one was tried again.

    dask counts a death against every tile that the worker has, so another one may be named."""
    base, over = slides
    job = ["blend", base, over, "-o", "out.ome.zarr", *CUT, "--workers", "2"]
    done = run(tmp_path, *job, by="kill")
    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1].startswith("tiledblend: error: workers died 2 times on tile-0-")
    resumed = run(tmp_path, *job, "--resume", "--json", by=None)
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert report["resumed_tiles"] > 10
    pixels = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["0"][0]
    np.testing.assert_array_equal(pixels, tifffile.imread(over))


FROM_PYTHON = """
import tiledblend as tb

if __name__ == "__main__":
    composite = tb.Composite([tb.Layer(tb.open("base.tif")), tb.Layer(tb.open("over.tif"))])
    try:
        tb.write(composite, "out.ome.zarr", output=tb.OutputSpec(64, 64), cluster=tb.ClusterOptions(workers=1))
    except tb.BadInputError as error:
        print("still here:", error)
"""


def test_a_program_outlives_a_crash_in_its_worker_process(slides: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FROM_PYTHON)
    path = os.pathsep.join([str(HOOK), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "CRASH_BY": "null", "PYTHONFAULTHANDLER": ""}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1"
    done = subprocess.run(
        [sys.executable, "program.py"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"still here: {slides[1]}: level 0, region [192:256, 128:192]"), done.stdout


def test_an_abort_while_planning(slides: tuple[Path, Path], tmp_path: Path) -> None:
    base, over = slides
    done = run(tmp_path, "plan", base, base, "--mask", over, "--mask-values", "0,255", by="abort")
    assert done.returncode == 4, done.stderr
    assert f"{over}: level 0, region [0:320, 0:320]: its decoder crashed (SIGABRT)" in done.stderr


def test_a_killed_process_is_told(tmp_path: Path) -> None:
    """By the kernel, most often, when memory is short."""
    big = tmp_path / "big.tif"
    tifffile.imwrite(big, np.random.default_rng(0).integers(0, 256, (4096, 4096), np.uint8), tile=(256, 256))
    command = [sys.executable, "-m", "tiledblend", "blend", str(big), "-o", "out.ome.zarr", "--codec", "zstd:19"]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out.ome.zarr").exists():
        time.sleep(0.02)
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 6
    assert err.splitlines()[-1].startswith("tiledblend: error: the process was killed (SIGKILL): out of memory")


def test_the_command_dies_with_its_parent(tmp_path: Path) -> None:
    big = tmp_path / "big.tif"
    tifffile.imwrite(big, np.random.default_rng(0).integers(0, 256, (4096, 4096), np.uint8), tile=(256, 256))
    command = [sys.executable, "-m", "tiledblend", "blend", str(big), "-o", "out.ome.zarr", "--codec", "zstd:19"]
    parent = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / "out.ome.zarr").exists():
        time.sleep(0.02)
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait(20)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}/cmdline").exists()


def test_notes_are_of_what_runs(monkeypatch: pytest.MonkeyPatch, slides: tuple[Path, Path]) -> None:
    monkeypatch.setattr(crash, "_NOTES", None)
    source = open_source(slides[0])
    source.read(Region(0, 0, 5, 5))  # nobody watches
    notes = crash.share_notes()
    with crash.decoding(source, Region(1, 2, 3, 4), 0):
        (note,) = notes.read()
        assert note.what == f"{slides[0]}: level 0, region [1:3, 2:4]"
        again, region, level = pickle.loads(note.again)
        assert (pickle.loads(again), region, level) == (source, Region(1, 2, 3, 4), 0)
        with crash.decoding(from_array(np.zeros((9, 9), np.uint8), axes="yx", name="a"), Region(0, 0, 1, 1), 0):
            (inner,) = notes.read()  # instead of the outer one
            assert (inner.what, inner.again) == ("a: level 0, region [0:1, 0:1]", b"")
    assert notes.read() == ()
    with notes.noted("x" * 10_000, b"y" * 10_000):
        (note,) = notes.read()
        assert note.again == b""
        assert len(note.what) == crash.SLOT_BYTES // 2
    for _ in range(3 * crash.SLOTS):
        with notes.noted("a", b""):
            assert len(notes.read()) == 1


def test_a_look_at_a_masks_tiles_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(crash, "_NOTES", None)
    path, seen = tmp_path / "mask.tif", []
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=(32, 32), compression="zlib")
    source, notes, original = open_source(str(path), mask=True), crash.share_notes(), LevelReader.uniform

    def uniform(self: LevelReader, region: Region, plane: tuple[int, int]) -> int | None:
        seen.extend(notes.read())
        return original(self, region, plane)

    monkeypatch.setattr(LevelReader, "uniform", uniform)
    assert source.uniform(Region(0, 0, 40, 40)) == 0
    assert [note.what for note in seen] == [f"{path}: level 0, region [0:40, 0:40]"]


def test_what_a_child_was_decoding() -> None:
    death = crash.tried(lambda: os.kill(os.getpid(), signal.SIGTRAP))
    assert (death.code, death.is_crash, death.signal_name) == (-signal.SIGTRAP, True, "SIGTRAP")
    assert crash.tried(lambda: None).code == 0
    assert not crash.tried(lambda: os.kill(os.getpid(), signal.SIGTERM)).is_crash


@pytest.mark.parametrize("kilobytes", [340_000, 420_000, 520_000, 600_000])
def test_too_few_addresses_are_told(slides: tuple[Path, Path], tmp_path: Path, kilobytes: int) -> None:
    """`ulimit -v`: dask waited for ever for threads that could not start."""
    base, over = slides
    shell = f"ulimit -v {kilobytes}; exec {sys.executable} -m tiledblend blend {base} {over} -o out.ome.zarr"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tiledblend: error: ")]
    if done.returncode == 0:
        pytest.skip(f"this run fits into {kilobytes:,} kB of addresses, so there is nothing to tell")
    assert (done.returncode, len(lines)) == (6, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "memory" in lines[0]
    assert not (tmp_path / "out.ome.zarr").exists()


@pytest.mark.parametrize("where", [("--workers", "1"), (), ("--part", "1/2")])
def test_memory_that_does_not_fit_is_refused_by_the_command(
    slides: tuple[Path, Path], tmp_path: Path, where: tuple[str, ...]
) -> None:
    base, over = slides
    done = run(tmp_path, "blend", base, over, "-o", "out.ome.zarr", *where, "--memory-limit", "120MB", by=None)
    assert done.returncode == 6, done.stderr
    assert "but is allowed 120 MB; use " in done.stderr
    assert "--memory-limit" in done.stderr
    assert not list(tmp_path.glob("out*"))
