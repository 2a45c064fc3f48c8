"""Runs on real dask schedulers and workers of their own processes, on loopback, with and without TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiledblend as tb
from tiledblend import cluster as clusters
from tiledblend.cluster import ClusterOptions, installed_versions, open_client
from tiledblend.errors import ResourceError, UsageError
from tiledblend.run import write
from tiledblend.store.objects import DirectoryStore
from tiledblend.store.spec import OutputSpec
from tiledblend.store.verify import verify
from tiledblend.tissue import Slides

ROOT = Path(__file__).parents[1]
SPEC = OutputSpec(chunk=64, shard=128)
RIG = ROOT.parent / "shared" / "rigs" / "tls-certs.sh"


def composite(slides: Slides) -> tb.Composite:
    base, overlay, mask = (tb.open(path) for path in (slides.base, slides.overlay, slides.mask))
    return tb.Composite([tb.Layer(base), tb.Layer(overlay, mask=mask, feather=tb.Feather.px(8))])


@contextmanager
def dask_processes(folder: Path, *tls: str, workers: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler, which writes `folder`/scheduler.json, and workers without nannies; ended afterwards."""
    address = folder / "scheduler.json"
    common = ["--scheduler-file", str(address), "--host", "127.0.0.1", "--no-dashboard", *tls]
    protocol = ["--protocol", "tls"] if tls else []
    worker = ["worker", *common, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    arguments = [["scheduler", *common, *protocol, "--port", "0"]] + [worker] * workers
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}
    processes = []
    with (folder / "dask.log").open("wb") as log:
        for line in arguments:
            command = [sys.executable, "-m", "dask", *line]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment))
    try:
        yield processes
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def tls_flags(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Certificates by the rig's script: dask's flags and our options."""
    if not RIG.exists() or shutil.which("openssl") is None:
        pytest.skip("test certificates need openssl and the rig's script")
    subprocess.run(["bash", str(RIG), str(folder)], check=True, capture_output=True, timeout=30)
    files = [str(folder / name) for name in ("ca.pem", "node.pem", "node.key")]
    flags = [text for pair in zip(("--tls-ca-file", "--tls-cert", "--tls-key"), files, strict=True) for text in pair]
    return flags, dict(zip(("tls_ca_file", "tls_cert", "tls_key"), files, strict=True))


def test_a_scheduler_file_and_a_killed_worker(tmp_path: Path, slides: Slides) -> None:
    """One worker dies in mid-run: its tiles are made by the other, and the result is the undisturbed one."""
    local, out = tmp_path / "local" / "out.ome.zarr", tmp_path / "out.ome.zarr"
    write(composite(slides), str(local), output=SPEC)
    with dask_processes(tmp_path) as processes:

        def kill_one(event: object) -> None:
            processes[1].kill()

        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        assert write(composite(slides), str(out), output=SPEC, cluster=options, progress=kill_one).complete
    ours, theirs = DirectoryStore(local), DirectoryStore(out)
    assert {key: ours.get(key) for key, _ in ours.list()} == {key: theirs.get(key) for key, _ in theirs.list()}


def test_a_lost_scheduler_is_told_and_resumed(tmp_path: Path, slides: Slides) -> None:
    out = tmp_path / "out.ome.zarr"
    with dask_processes(tmp_path) as processes:
        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        with short_connects(), pytest.raises(ResourceError, match="scheduler was lost") as caught:
            write(composite(slides), str(out), output=SPEC, cluster=options, progress=lambda _: processes[0].kill())
    assert "\n" not in str(caught.value)
    report = write(composite(slides), str(out), output=SPEC, resume=True)
    assert report.resumed_tiles >= 1
    assert verify(str(out), "full").ok


def test_tls_both_ways(tmp_path: Path, slides: Slides) -> None:
    flags, options = tls_flags(tmp_path)
    with dask_processes(tmp_path, *flags, workers=1):
        file = str(tmp_path / "scheduler.json")
        report = write(
            composite(slides),
            str(tmp_path / "out.zarr"),
            output=SPEC,
            cluster=ClusterOptions(scheduler_file=file, **options),
        )
        assert report.complete
        rogue = {"tls_cert": str(tmp_path / "rogue.pem"), "tls_key": str(tmp_path / "rogue.key")}
        with pytest.raises(ResourceError, match="no dask scheduler answers"), short_connects():
            open_client(ClusterOptions(scheduler_file=file, **options | rogue)).__enter__()


@contextmanager
def short_connects() -> Iterator[None]:
    import dask.config

    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        yield


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_connects(), pytest.raises(ResourceError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"):
        open_client(ClusterOptions(scheduler="tcp://127.0.0.1:9")).__enter__()
    monkeypatch.setattr(clusters, "SCHEDULER_FILE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="no dask scheduler has written"):
        open_client(ClusterOptions(scheduler_file=str(tmp_path / "none.json"))).__enter__()
    assert time.monotonic() - started < 5


def test_unlike_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def wait_for_workers(self, count: int, timeout: float) -> None:
            assert count == 1

        def run(self, function: object) -> dict[str, dict[str, str]]:
            return {"tcp://h:1": installed_versions() | {"numpy": "1.0"}}

    with pytest.raises(ResourceError, match=r"worker tcp://h:1 has other packages: numpy \S+ here, 1.0 there"):
        clusters.require_same_versions(Elsewhere())  # type: ignore[arg-type]


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="give all three"):
        ClusterOptions(tls_cert="a.pem")
    with pytest.raises(UsageError, match="one of them"):
        ClusterOptions(scheduler="tcp://h:1", scheduler_file="f")
