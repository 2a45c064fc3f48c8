"""The three SLURM workflows on a real slurmctld, undisturbed and with elements requeued and cancelled in mid-run.

apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
pip install dask-jobqueue
python -m pytest -q -m slurm -rs
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from platforms import WORKFLOWS, objects_below, own_programs

from tiledblend.demo.tissue import Slides, make_slides

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
RIGS = ROOT.parent / "shared" / "rigs"
RIG = {"SLURM_RIG_CPUS": "4"}
FLAGS = ("--chunk", "128", "--shard", "512", "--feather", "8px")
SMALL_TILES = ("--chunk", "32", "--shard", "32", "--codec", "zstd:1", "--feather", "8px")
"""Tiles by the hundred, so that a part takes long enough to be disturbed in the middle."""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM of one node. variables: the environment of a user who has logged in there."""

    variables: dict[str, str]

    def submit(self, script: str, *arguments: object, folder: Path, **variables: str) -> str:
        """The job number that a workflow of ours printed."""
        command = [str(WORKFLOWS / script), *map(str, arguments)]
        return self._said(command, folder, variables).strip()

    def control(self, *command: str, folder: Path | None = None) -> str:
        """What a command printed, one of SLURM's own or one that runs in a folder."""
        return self._said(list(command), folder or Path.cwd(), {})

    def jobs(self) -> dict[str, str]:
        """State by job number of all that SLURM remembers; array elements as JOB_INDEX."""
        lines = self.control("squeue", "--noheader", "--all", "--states=all", "--array", "--format=%i %T").split("\n")
        return dict(line.split() for line in lines if line)

    def _said(self, command: list[str], folder: Path, variables: dict[str, str]) -> str:
        done = subprocess.run(
            command, env=self.variables | variables, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing or not (RIGS / "slurm-up.sh").exists() or os.getuid() != 0:
        pytest.skip(f"SLURM cannot be started here: {', '.join(missing) or 'no rig, or not root'}")
    # SLURM's sockets need a short path.
    rig = Path("/tmp") / f"tb-slurm-{os.getpid()}"
    variables = own_programs(tmp_path_factory.mktemp("slurm")) | {"SLURM_CONF": str(rig / "slurm.conf")}
    try:
        up = subprocess.run(
            ["bash", str(RIGS / "slurm-up.sh"), str(rig)], env=variables | RIG,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
        if up.returncode:
            pytest.skip("SLURM did not start: its port is taken, or it cannot run here")
        yield Slurm(variables)
        down = ["bash", str(RIGS / "slurm-down.sh"), str(rig)]
        subprocess.run(down, env=variables, capture_output=True, timeout=90, check=False)
    finally:
        shutil.rmtree(rig, ignore_errors=True)


def local(slides: Slides, out: Path, *flags: str) -> tuple[list[str], dict[str, bytes | None]]:
    """blend's arguments, and the objects of a run here."""
    arguments = [str(slides.base), str(slides.overlay), "--mask", str(slides.mask), *flags]
    command = [sys.executable, "-m", "tiledblend", "blend", *arguments, "-o", str(out)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120, capture_output=True)
    return arguments, objects_below(out)


def wait_until(true: Callable[[], object], logs: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        said = {path.name: path.read_text()[-300:] for path in logs.rglob("*.log")}
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def test_a_dask_cluster_and_parts(slurm: Slurm, tmp_path: Path, slides: Slides) -> None:
    """A dask cluster of SLURM jobs and an array without dask give one local run's bits."""
    inputs, expected = local(slides, tmp_path / "local.ome.zarr", *FLAGS)
    places = {name: tmp_path / name / "out.ome.zarr" for name in ("slurm_dask.sh", "slurm_parts.sh")}
    variables = {"INTERFACE": "lo", "WORKERS": "2", "THREADS": "1", "PARTS": "3"}
    for name, place in places.items():
        place.parent.mkdir()
        slurm.submit(name, *inputs, "-o", place, folder=place.parent, **variables)
    for place in places.values():
        wait_until((place / "zarr.json").exists, tmp_path)
        assert objects_below(place) == expected


def test_dask_jobqueue(slurm: Slurm, tmp_path: Path, slides: Slides) -> None:
    """Workers that dask-jobqueue asks the real slurmctld for; they have left the queue when the script ends."""
    if find_spec("dask_jobqueue") is None:
        pytest.skip("no dask-jobqueue here: pip install dask-jobqueue")
    out, before = tmp_path / "out.ome.zarr", set(slurm.jobs())
    _, expected = local(slides, tmp_path / "local.ome.zarr", "--feather", "8px")
    said = slurm.control(
        sys.executable, str(WORKFLOWS / "slurm_jobqueue.py"), str(slides.base), str(slides.overlay), str(slides.mask),
        str(out), "--feather", "8px", "--jobs", "2", "--cores", "1", "--memory", "2GiB", "--interface", "lo",
        folder=tmp_path,
    )  # fmt: skip
    assert str(out) in said
    assert objects_below(out) == expected
    assert len(set(slurm.jobs()) - before) == 2
    wait_until(lambda: not {"RUNNING", "PENDING"} & set(slurm.jobs().values()), tmp_path, 30)


def test_elements_requeued_and_cancelled(slurm: Slurm, tmp_path: Path, slides: Slides) -> None:
    """An element requeued in mid-run ends by itself; after one was cancelled, the same line with --resume goes on."""
    inputs, expected = local(slides, tmp_path / "local.ome.zarr", *SMALL_TILES)
    out = tmp_path / "out.ome.zarr"
    command = [*inputs, "-o", str(out)]
    array, finish = slurm.submit("slurm_parts.sh", *command, folder=tmp_path, PARTS="3").split()
    for element in (1, 3):
        wait_until(lambda element=element: receipts(out, element) >= 5, tmp_path)  # type: ignore[misc]
        verb = ("scontrol", "requeue") if element == 1 else ("scancel",)
        slurm.control(*verb, f"{array}_{element}")
    disturbed = {element: receipts(out, element) for element in (1, 3)}
    wait_until(lambda: slurm.jobs().get(finish) == "CANCELLED", tmp_path)
    assert [slurm.jobs()[f"{array}_{element}"] for element in (1, 2, 3)] == ["COMPLETED", "COMPLETED", "CANCELLED"]
    assert not (out / "zarr.json").exists()
    assert not list(out.glob("zarr.json*"))
    done = {element: receipts(out, element) for element in (1, 2, 3)}
    # the requeued element went on, the cancelled one did not, and neither was nearly ready when it was stopped
    assert max(disturbed.values()) < done[2] * 0.8
    assert "Restarts=1 " in slurm.control("scontrol", "show", "job", f"{array}_1")
    assert done[1] - done[2] in (0, 1)
    assert done[3] < done[2]
    assert f"PARTS=3 {WORKFLOWS}/slurm_parts.sh" not in (tmp_path / f"tiledblend-{array}_2.log").read_text()

    slurm.submit("slurm_parts.sh", *command, "--resume", folder=tmp_path, PARTS="3")
    wait_until((out / "zarr.json").exists, tmp_path)
    assert objects_below(out) == expected


def test_a_failing_element_says_how_to_go_on(slurm: Slurm, tmp_path: Path, slides: Slides) -> None:
    command = (str(slides.base), str(tmp_path / "none.tif"), "-o", str(tmp_path / "out.ome.zarr"))
    array, finish = slurm.submit("slurm_parts.sh", *command, folder=tmp_path, PARTS="1").split()
    wait_until(lambda: slurm.jobs().get(finish) == "CANCELLED", tmp_path)
    said = (tmp_path / f"tiledblend-{array}_1.log").read_text().splitlines()
    assert said[-2:] == [
        "element 1 of 1 ended with exit code 4; when its cause is mended, go on with",
        f"  PARTS=1 {WORKFLOWS}/slurm_parts.sh {' '.join(command)} --resume",
    ]


def test_a_requeued_driver_goes_on_and_no_worker_stays_behind(slurm: Slurm, tmp_path: Path, slides: Slides) -> None:
    inputs, expected = local(slides, tmp_path / "local.ome.zarr", *SMALL_TILES)
    out, variables = tmp_path / "out.ome.zarr", {"INTERFACE": "lo", "WORKERS": "2", "THREADS": "1"}
    driver = slurm.submit("slurm_dask.sh", *inputs, "-o", out, folder=tmp_path, **variables)
    wait_until(lambda: len(list(out.glob("0/c/0/*/*"))) >= 5, tmp_path)
    slurm.control("scontrol", "requeue", driver)
    wait_until((out / "zarr.json").exists, tmp_path)
    assert "Restarts=1 " in slurm.control("scontrol", "show", "job", driver)
    assert objects_below(out) == expected
    wait_until(lambda: not {"RUNNING", "PENDING"} & set(slurm.jobs().values()), tmp_path, 30)
    # A driver that gives up at once: what starts late holds no CPU.
    slurm.submit("slurm_dask.sh", tmp_path / "none.tif", "-o", tmp_path / "b.ome.zarr", folder=tmp_path, **variables)
    wait_until(lambda: not {"RUNNING", "PENDING"} & set(slurm.jobs().values()), tmp_path, 30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dask_jobqueue_stopped(slurm: Slurm, tmp_path: Path, slides: Slides, number: int) -> None:
    """Exit code 75, no worker job left, and the same line with --resume ends it."""
    if find_spec("dask_jobqueue") is None:
        pytest.skip("no dask-jobqueue here: pip install dask-jobqueue")
    large = make_slides(tmp_path / "slides", 6000, seed=3)
    out = tmp_path / "out.ome.zarr"
    command = [
        sys.executable, WORKFLOWS / "slurm_jobqueue.py", large.base, large.overlay, large.mask, out,
        "--jobs", "2", "--cores", "1", "--memory", "2GiB", "--interface", "lo",
    ]  # fmt: skip
    child = subprocess.Popen(command, env=slurm.variables, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stderr is not None
    assert any("of 5 tiles" in line for line in child.stderr)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
    assert (child.returncode, said.splitlines()[-1].partition(": ")[0]) == (75, "slurm_jobqueue")
    wait_until(lambda: not {"RUNNING", "PENDING"} & set(slurm.jobs().values()), tmp_path, 30)
    assert str(out) in slurm.control(*map(str, command), "--resume", folder=tmp_path)
    assert (out / "zarr.json").exists()


def receipts(out: Path, element: int) -> int:
    """Tiles that a part of three has noted as stored."""
    files = out.parent.glob(f"{out.name}.ledger/part-{element:05}-of-00003/receipts.*")
    return sum(file.read_bytes().count(b"\n") for file in files)
