"""Runs on real dask schedulers and workers of their own processes, on loopback, with and without TLS."""

from __future__ import annotations

import asyncio
import copy
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

import tiledblend as tb
from tiledblend.bytes.objects import DirectoryStore
from tiledblend.bytes.waiting import never
from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.verify import verify
from tiledblend.demo.tissue import Slides
from tiledblend.errors import BadInputError, InterruptedRun, RefusedError, ResourceError, UsageError
from tiledblend.run import connection, local, stages, versions
from tiledblend.run import scheduler as schedulers
from tiledblend.run.cluster import open_client
from tiledblend.run.driver import Running, write
from tiledblend.run.machine import machine_memory
from tiledblend.run.ometiff import export_ometiff
from tiledblend.run.options import ClusterOptions
from tiledblend.run.scheduler import running_scheduler
from tiledblend.run.tasks import SharedJob, TileJob, errors_told
from tiledblend.run.versions import installed_versions

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
    assert objects(out) == objects(local)


def test_a_death_that_another_job_caused(tmp_path: Path, slides: Slides, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask blames every task of a worker that dies, here at the first death: none of these tiles harms a process."""
    local, out, killed = tmp_path / "local" / "out.ome.zarr", tmp_path / "out.ome.zarr", list[int]()
    write(composite(slides), str(local), output=SPEC)
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    with dask_processes(tmp_path, workers=2) as processes:

        def kill_one(event: tb.ProgressEvent) -> None:
            if not killed:
                killed.append(event.done_tiles)
                processes[1].kill()

        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        assert write(composite(slides), str(out), output=SPEC, cluster=options, progress=kill_one).complete
    assert killed
    assert objects(out) == objects(local)


def test_a_death_that_another_job_caused_under_an_export(
    tmp_path: Path, slides: Slides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the tiles of an OME-TIFF: the file is that of an undisturbed run."""
    source, whole, out, killed = (
        tb.open(slides.base),
        tmp_path / "whole/out.ome.tif",
        tmp_path / "out.ome.tif",
        list[int](),
    )
    whole.parent.mkdir()
    export_ometiff(source, whole, TiffOptions("zstd", tile=32))
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    with dask_processes(tmp_path, workers=2) as processes:

        def kill_one(event: tb.ProgressEvent) -> None:
            if not killed and event.done_tiles == 3:
                killed.append(event.done_tiles)
                processes[1].kill()

        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        running = Running(cluster=options, progress=kill_one)
        export_ometiff(source, out, TiffOptions("zstd", tile=32), running=running)
    assert killed
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.ome.tif*")) == ["out.ome.tif"]


def test_a_lost_scheduler_is_told_and_resumed(tmp_path: Path, slides: Slides, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.ome.zarr"
    monkeypatch.setattr(connection, "RECONNECT_SECONDS", 1)
    with dask_processes(tmp_path) as processes:
        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        with short_connects(), pytest.raises(InterruptedRun, match=r"scheduler was lost .* --resume") as caught:
            write(composite(slides), str(out), output=SPEC, cluster=options, progress=lambda _: processes[0].kill())
    assert "\n" not in str(caught.value)
    report = write(composite(slides), str(out), output=SPEC, resume=True)
    assert report.resumed_tiles >= 1
    assert verify(str(out), "full").ok


def test_a_restarted_scheduler_is_found_again(tmp_path: Path, slides: Slides) -> None:
    """Scheduler and workers die in mid-run and others start, by the same file: the same call goes on with the rest."""
    local, out = tmp_path / "local" / "out.ome.zarr", tmp_path / "out.ome.zarr"
    write(composite(slides), str(local), output=SPEC)
    done: list[int] = []
    with ExitStack() as stack:
        processes = stack.enter_context(dask_processes(tmp_path, workers=1))

        def restart_once(event: tb.ProgressEvent) -> None:
            done.append(event.done_tiles)
            if len(done) == 3:
                for process in processes:
                    process.kill()
                (tmp_path / "scheduler.json").unlink()
                stack.enter_context(dask_processes(tmp_path, workers=1))

        options = ClusterOptions(scheduler_file=str(tmp_path / "scheduler.json"))
        with short_connects():
            report = write(composite(slides), str(out), output=SPEC, cluster=options, progress=restart_once)
    assert done == list(range(1, report.tiles + 1))
    assert objects(out) == objects(local)


def test_several_composites_at_once_on_one_client(tmp_path: Path, slides: Slides) -> None:
    layers = composite(slides).layers
    made = [tb.Composite(layers), tb.Composite(layers, "average")]
    with open_client(ClusterOptions(threads_per_worker=2)) as client:
        with ThreadPoolExecutor(len(made)) as pool:
            places = [str(tmp_path / f"{number}.zarr") for number in range(len(made))]
            written = [
                pool.submit(write, one, place, output=SPEC, client=client)
                for one, place in zip(made, places, strict=True)
            ]
            assert all(future.result().complete for future in written)
        assert client.status == "running"
    for number, one in enumerate(made):
        write(one, str(tmp_path / "alone" / f"{number}.zarr"), output=SPEC)
        assert objects(tmp_path / f"{number}.zarr") == objects(tmp_path / "alone" / f"{number}.zarr")


def test_clients_that_cannot_be_used(tmp_path: Path, slides: Slides) -> None:
    with open_client(ClusterOptions(threads_per_worker=1)) as client:
        given = {r"a SpecCluster; .*get_client": client.cluster, "a str": client.scheduler.address}
        for words, wrong in given.items():
            with pytest.raises(UsageError, match=words):
                write(composite(slides), str(tmp_path / "x.zarr"), output=SPEC, client=wrong)

        async def inside_an_event_loop() -> None:
            async with Client(client.scheduler.address, asynchronous=True) as other:
                write(composite(slides), str(tmp_path / "x.zarr"), output=SPEC, client=other)

        with pytest.raises(UsageError, match="asynchronous=False"):
            asyncio.run(inside_an_event_loop())
    with pytest.raises(UsageError, match="client is clos"):
        write(composite(slides), str(tmp_path / "x.zarr"), output=SPEC, client=client)
    assert not (tmp_path / "x.zarr").exists()


def test_tls_both_ways(tmp_path: Path, slides: Slides) -> None:
    """By flags in Python, by dask's own configuration on the command line; without or with foreign certificates: no."""
    flags, options = tls_flags(tmp_path)
    with dask_processes(tmp_path, *flags, workers=1):
        file = tmp_path / "scheduler.json"
        out = str(tmp_path / "out.zarr")
        assert write(
            composite(slides), out, output=SPEC, cluster=ClusterOptions(scheduler_file=str(file), **options)
        ).complete
        rogue = {"tls_cert": str(tmp_path / "rogue.pem"), "tls_key": str(tmp_path / "rogue.key")}
        with pytest.raises(ResourceError, match="no dask scheduler answers"), short_connects():
            open_client(ClusterOptions(scheduler_file=str(file), **options | rogue)).__enter__()

        address = json.loads(file.read_text())["address"]
        blend = ["blend", slides.base, "-o", tmp_path / "cli.zarr", "--shard", "512", "--chunk", "128"]
        short = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
        configured = {
            "DASK_SCHEDULER_ADDRESS": address,
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": options["tls_ca_file"],
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": options["tls_cert"],
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": options["tls_key"],
        }
        assert command(*blend, environment=configured)[0] == 0
        blend[3] = tmp_path / "none.zarr"
        code, error = command(*blend, "--scheduler", address)
        assert (code, error.count("\n")) == (2, 1)
        assert "wants certificates; give --tls-ca-file" in error
        code, error = command(*blend, "--scheduler", address.replace("tls:", "tcp:"), environment=short)
        assert (code, error.count("\n")) == (6, 1)
        assert "no dask scheduler answers" in error
        assert not (tmp_path / "none.zarr").exists()


def test_dask_says_nothing_of_a_lost_link(tmp_path: Path) -> None:
    """Its client's own line, which would stand before the command's."""
    program = """
        import logging, sys
        from tiledblend.run.cluster import open_client
        from tiledblend.run.options import ClusterOptions
        from tiledblend.look.lines import start_logging
        start_logging()
        with open_client(ClusterOptions(scheduler_file=sys.argv[1])):
            logging.getLogger("distributed.client").error("Failed to reconnect to scheduler")
    """
    with dask_processes(tmp_path, workers=1):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "scheduler.json")],
            env={name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
            | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert [line for line in done.stderr.splitlines() if "waiting up to" not in line] == []


def command(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and stderr of the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "tiledblend", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def objects(path: Path) -> dict[str, bytes | None]:
    store = DirectoryStore(path)
    return {key: store.get(key) for key, _ in store.list()}


@contextmanager
def short_connects() -> Iterator[None]:
    import dask.config

    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        yield


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_connects(), pytest.raises(ResourceError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"):
        open_client(ClusterOptions(scheduler="tcp://127.0.0.1:9")).__enter__()
    monkeypatch.setattr(schedulers, "SCHEDULER_FILE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="was written by no dask scheduler"):
        open_client(ClusterOptions(scheduler_file=str(tmp_path / "none.json"))).__enter__()
    (tmp_path / "other.json").write_text('{"address"')
    with pytest.raises(ResourceError, match="is not the file of a dask scheduler"):
        open_client(ClusterOptions(scheduler_file=str(tmp_path / "other.json"))).__enter__()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ["[]", "{}", '{"address": 5}', '{"address": ""}'])
def test_a_whole_file_of_something_else_is_not_waited_for(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"other.json is not the file of a dask scheduler: it names no address"):
        open_client(ClusterOptions(scheduler_file=str(tmp_path / "other.json"))).__enter__()
    assert time.monotonic() - started < 5


def test_a_scheduler_file_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "s.json", "Not a directory")):
        with pytest.raises(UsageError, match=f"--scheduler-file {path}: cannot be read: {reason}"):
            open_client(ClusterOptions(scheduler_file=str(path))).__enter__()


def test_another_server_is_not_taken_for_a_lack_of_memory() -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(answer, server)
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with short_connects(), pytest.raises(ResourceError, match="what answers there is no dask scheduler"):
            open_client(ClusterOptions(scheduler=address)).__enter__()
        answered.result(timeout=30)


def test_a_stop_is_noticed_while_something_is_waited_for(
    tmp_path: Path, slides: Slides, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch system that ends a job gives it half a minute."""

    def stopped_after(seconds: float, **options: Any) -> float:
        stop, out = threading.Event(), tmp_path / "out.ome.zarr"
        threading.Timer(seconds, stop.set).start()
        started = time.monotonic()
        with pytest.raises(InterruptedRun, match="stopped; continue with --resume"):
            write(composite(slides), str(out), output=SPEC, cluster=ClusterOptions(**options), stop=stop)
        assert not out.exists()
        return time.monotonic() - started

    file = str(tmp_path / "none.json")
    assert stopped_after(1, scheduler_file=file) < 6
    assert f"waiting up to 60 s for a dask scheduler to write {file}" in caplog.text
    with dask_processes(tmp_path, workers=0):
        until = time.monotonic() + 60
        while not (tmp_path / "scheduler.json").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert stopped_after(4, scheduler_file=str(tmp_path / "scheduler.json")) < 20
    assert "waiting up to 300 s for a worker of the dask cluster" in caplog.text


def test_a_stop_is_noticed_where_the_scheduler_is_frozen(
    tmp_path: Path, slides: Slides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing: dask's own timeouts do not count then."""
    for module in (schedulers, versions, connection, stages):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 1.0)
    out, file = tmp_path / "out.ome.zarr", str(tmp_path / "scheduler.json")
    with dask_processes(tmp_path) as (scheduler, *_):
        with open_client(ClusterOptions(scheduler_file=file)):
            pass
        stop = threading.Event()

        def freeze_once(event: tb.ProgressEvent | None = None) -> None:
            if not frozen:
                scheduler.send_signal(signal.SIGSTOP)
                threading.Timer(1, stop.set).start()
                frozen.append(time.monotonic())

        for progress in (None, freeze_once):
            frozen: list[float] = []
            stop.clear()
            if progress is None:
                freeze_once()
            with pytest.raises(InterruptedRun, match="stopped; continue with --resume"):
                write(
                    composite(slides), str(out), output=SPEC, cluster=ClusterOptions(scheduler_file=file),
                    progress=progress, stop=stop,
                )  # fmt: skip
            scheduler.send_signal(signal.SIGCONT)
            assert time.monotonic() - frozen[0] < 25
        report = write(composite(slides), str(out), output=SPEC, resume=True)
        assert report.resumed_tiles > 0
    assert verify(str(out)).ok


def test_workers_that_were_told_to_end_while_they_started_are_a_stop() -> None:
    def start() -> None:
        raise RuntimeError("Nanny failed to start worker process")

    def check() -> None:
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        local._started(start, check)
    with pytest.raises(ResourceError, match="do not start: Nanny failed"):
        local._started(start, never)


def test_worker_processes_never_hear_a_terminals_ctrl_c() -> None:
    """Until their preload is run they would print a traceback of their imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with local._deaf_children(), ThreadPoolExecutor(1) as pool, multiprocessing.get_context("spawn").Pool(1) as made:
        line = [sys.executable, "-c", "import signal; print(signal.SIGINT in signal.pthread_sigmask(0, []))"]
        assert pool.submit(subprocess.check_output, line).result(timeout=30) == b"True\n"
        assert signal.SIGINT in made.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, []))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_malformed_configuration_of_dask_is_told(tmp_path: Path, slides: Slides) -> None:
    (tmp_path / "dask.yaml").write_text("a: [not closed")
    wanted = {"DASK_CONFIG": str(tmp_path)}
    code, said = command("blend", slides.base, "-o", tmp_path / "out.ome.zarr", environment=wanted)
    assert (code, len(said.splitlines())) == (2, 1), said
    assert "dask.yaml' is malformed" in said


def test_dasks_too_short_timeout_is_named() -> None:
    assert "distributed.comm.timeouts.tcp is too low" in schedulers.dask_reason(AssertionError("Timeout too low"))


def test_an_error_names_the_worker_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        address, name = "tcp://10.0.0.7:4711", "tcp://10.0.0.7:4711"

    class Panic(BaseException):
        """As of a library in Rust."""

    def fail(error: BaseException) -> None:
        with errors_told():
            raise error

    monkeypatch.setattr("distributed.get_worker", Elsewhere)
    with pytest.raises(BadInputError, match=r"^a.tif: no such file \(on worker tcp://10.0.0.7:4711\)$"):
        fail(BadInputError("a.tif: no such file"))
    monkeypatch.setattr(Elsewhere, "address", "tcp://127.0.0.1:4711")
    with pytest.raises(BadInputError, match=r"^a.tif: no such file \(on worker tcp://127.0.0.1:4711\)$"):
        fail(BadInputError("a.tif: no such file"))
    monkeypatch.setattr(Elsewhere, "name", 0)
    with pytest.raises(BadInputError, match=r"^a.tif: no such file$"):
        fail(BadInputError("a.tif: no such file"))
    monkeypatch.setattr(Elsewhere, "address", "inproc://192.0.2.1/1/2")
    with pytest.raises(BadInputError, match=r"^a.tif: no such file$"):
        fail(BadInputError("a.tif: no such file"))
    with pytest.raises(RuntimeError, match="Panic: unwrap"):
        fail(Panic("unwrap"))


def test_a_part_takes_no_cluster(tmp_path: Path, slides: Slides) -> None:
    out = str(tmp_path / "out.ome.zarr")
    with pytest.raises(UsageError, match=r"--part works without dask.*leave out --workers$"):
        write(composite(slides), out, output=SPEC, part=(1, 2), cluster=ClusterOptions(workers=2))
    with pytest.raises(UsageError, match=r"leave out --scheduler$"):
        write(composite(slides), out, output=SPEC, part=(1, 2), cluster=ClusterOptions(scheduler="tcp://h:1"))
    assert list(tmp_path.iterdir()) == []


def test_a_part_tells_its_own_progress_and_whether_all_is_done(tmp_path: Path, slides: Slides) -> None:
    out, told = str(tmp_path / "out.ome.zarr"), list[tb.ProgressEvent]()
    tiles = tb.plan(composite(slides), SPEC).grid.tile_counts()
    for part in (1, 2, 3):
        told.clear()
        report = write(composite(slides), out, output=SPEC, part=(part, 3), progress=told.append)
        share = len(range(part - 1, tiles[0] * tiles[1], 3))
        assert (told[-1].done_tiles, told[-1].tiles, report.complete) == (share, share, False)
        assert told[-1].done_pixels == told[-1].pixels < 400_000
    write(composite(slides), out, output=SPEC, finish=True)
    assert write(composite(slides), out, output=SPEC, part=(2, 3), resume=True).complete


class Cluster:
    """What `Workforce` asks a client for. lacks: workers without the package. paused: those at their limit."""

    status = "running"

    def __init__(self, **threads: int) -> None:
        self.threads = threads
        self.lacks: set[str] = set()
        self.paused: set[str] = set()

    def scheduler_info(self, n_workers: int) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            "workers": {
                name: {
                    "nthreads": n,
                    "memory_limit": 1000 * n,
                    "status": "paused" if name in self.paused else "running",
                }
                for name, n in self.threads.items()
            }
        }

    def run(self, probe: object, names: list[str], workers: list[str] | None, on_error: str) -> dict[str, Any]:
        return {
            name: {"versions": {}, "lacks": "no package tiledblend" if name in self.lacks else None, "pause": 0.8}
            for name in workers or self.threads
        }


def workforce(cluster: Cluster, asked: list[dict[str, Any]]) -> connection.Workforce:
    return connection.Workforce(cluster, asked.append)  # type: ignore[arg-type]


def test_workers_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late worker widens the window and is held to the plan's memory; a cluster without any is told, later."""
    monkeypatch.setattr(connection, "WORKERS_SECONDS", 0)
    asked: list[dict[str, Any]] = []
    cluster = Cluster(a=2)
    workers = workforce(cluster, asked)
    assert workers.window() == 6
    cluster.threads = {"a": 2, "b": 4}
    assert (workers.window(), workers.window()) == (18, 18)
    assert [list(found) for found in asked] == [["a"], ["a", "b"]]
    assert asked[1]["b"]["pause"] == 0.8
    cluster.threads = {}
    assert workers.window() == 3
    monkeypatch.setattr(connection, "NO_WORKER_SECONDS", 0)
    with pytest.raises(InterruptedRun, match=r"no worker for 0 s; .* --resume"):
        workers.window()
    cluster.status = "connecting"
    with pytest.raises(connection.SchedulerLost):
        workers.window()


def test_a_worker_without_the_package_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "WORKERS_SECONDS", 0)
    asked: list[dict[str, Any]] = []
    cluster = Cluster(a=2, bare=8)
    cluster.lacks = {"bare"}
    workers = workforce(cluster, asked)
    assert (workers.window(), workers.window()) == (6, 6)
    assert workers.named() == {"workers": ["a"]}
    assert [list(found) for found in asked] == [["a"]]
    assert caplog.messages == ["dask worker bare is left out: it has no package tiledblend"]
    cluster.threads = {"bare": 8}
    assert workers.window() == 3
    monkeypatch.setattr(connection, "LACKING_SECONDS", 0)
    with pytest.raises(ResourceError, match="dask worker bare has no package tiledblend; install"):
        workers.window()


def test_tasks_that_named_workers_who_have_gone_are_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WORKERS_SECONDS", 0)
    cluster = Cluster(a=2)
    workers = workforce(cluster, [])
    workers.window()
    assert workers.named() == {"workers": ["a"]}
    cluster.threads = {"b": 2}
    with pytest.raises(connection.WorkersGone):
        workers.window()
    assert (workers.window(), workers.named()) == (6, {"workers": ["b"]})
    many = Cluster(**{f"w{number}": 1 for number in range(connection.MOST_NAMED + 1)})
    workers = workforce(many, [])
    workers.window()
    assert workers.named() == {}


def test_a_paused_worker_gives_its_tiles_to_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "WORKERS_SECONDS", 0)
    monkeypatch.setattr(connection, "PAUSED_SECONDS", 0)
    monkeypatch.setattr(versions, "PAUSED_SECONDS", 0)
    cluster = Cluster(a=2, b=4)
    workers = workforce(cluster, [])
    assert workers.window() == 18
    cluster.paused = {"b"}
    assert workers.window() == 18  # not yet for long
    with pytest.raises(connection.HandOutAgain):
        workers.window()
    assert (workers.window(), workers.named()) == (6, {"workers": ["a"]})
    cluster.paused = set()
    assert workers.window() == 18
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "dask worker b has been paused for 0 s",
        "dask worker b works again",
    ]
    cluster.paused = {"a", "b"}
    workers.window()
    with pytest.raises(ResourceError, match=r"every dask worker is paused, a for 0 s: .* --resume"):
        workers.window()


def test_a_stranger_keeps_its_task_on_a_worker_without_the_package(tmp_path: Path, slides: Slides) -> None:
    """Real processes: nothing of ours reaches that worker, the other one makes the result."""
    out, bare = tmp_path / "out.ome.zarr", tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(
        "import sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tiledblend':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Bare())\n"
    )
    with dask_processes(tmp_path, workers=1), ExitStack() as stack:
        file = tmp_path / "scheduler.json"
        wait_for(file)
        command = [sys.executable, "-m", "dask", "worker", "--scheduler-file", str(file), "--host", "127.0.0.1"]
        flags = ["--nthreads", "2", "--no-nanny", "--no-dashboard", "--name", "bare", "--local-directory", str(bare)]
        environment = os.environ | {"PYTHONPATH": str(bare)}
        with (tmp_path / "bare.log").open("wb") as log:
            worker = subprocess.Popen([*command, *flags], stdout=log, stderr=log, cwd=bare, env=environment)
        stack.callback(worker.wait)
        stack.callback(worker.kill)
        stranger = stack.enter_context(Client(scheduler_file=str(file), set_as_default=False))
        stranger.wait_for_workers(2, timeout=60)
        task = stranger.submit(time.sleep, 4, workers=["bare"])
        assert write(
            composite(slides), str(out), output=SPEC, cluster=ClusterOptions(scheduler_file=str(file))
        ).complete
        assert task.result() is None
        assert worker.poll() is None


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_late_worker_with_other_packages_refuses_its_tile(tmp_path: Path, slides: Slides) -> None:
    job = pickle.dumps(TileJob(composite(slides), (), None, None, ()))  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match=r"worker \S+ has other packages: numpy 1.0 here, \S+ there"):
        SharedJob(job, installed_versions() | {"numpy": "1.0"}).open()


def test_unlike_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def wait_for_workers(self, count: int, timeout: float) -> None:
            assert count == 1

        def run(self, function: object, names: object, workers: object, on_error: str) -> dict[str, dict[str, Any]]:
            unlike = installed_versions() | {"numpy": "1.0"}
            return {"tcp://h:1": {"versions": unlike, "lacks": None, "pause": 1.0}}

    with pytest.raises(ResourceError, match=r"worker tcp://h:1 has other packages: numpy \S+ here, 1.0 there"):
        versions.require_same_versions(Elsewhere())  # type: ignore[arg-type]


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    tls_flags(tmp_path)
    ca, cert, key, other = (str(tmp_path / name) for name in ("ca.pem", "node.pem", "node.key", "rogue.key"))
    assert ClusterOptions(tls_ca_file=ca, tls_cert=cert, tls_key=key).tls_ca_file == ca
    with pytest.raises(UsageError, match=r"--tls-ca-file \S+node.key: holds no certificate"):
        ClusterOptions(tls_ca_file=key, tls_cert=cert, tls_key=key)
    with pytest.raises(UsageError, match=r"--tls-cert \S+ and --tls-key \S+rogue.key: not .* and its key"):
        ClusterOptions(tls_ca_file=ca, tls_cert=cert, tls_key=other)
    with pytest.raises(UsageError, match=r"--tls-cert \S+ and --tls-key \S+node.pem: not "):
        ClusterOptions(tls_ca_file=ca, tls_cert=key, tls_key=cert)
    Path(key).write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert ClusterOptions(tls_ca_file=ca, tls_cert=cert, tls_key=key).tls_key == key  # without asking for a password


def test_options_that_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="give all three"):
        ClusterOptions(tls_cert="a.pem")
    with pytest.raises(UsageError, match=r"--tls-ca-file .*none.pem: there is no such file"):
        ClusterOptions(tls_ca_file=str(tmp_path / "none.pem"), tls_cert="b", tls_key="c")
    for wrong in ("much", "4 apples", "-1GiB"):
        with pytest.raises(UsageError, match=rf"--memory-limit '{wrong}' .* such as 4GiB"):
            ClusterOptions(workers=1, memory_limit=wrong)
    for size in ("4GiB", "0", "auto", 1 << 30):
        assert ClusterOptions(workers=1, memory_limit=size).memory_limit == size
    assert ClusterOptions(memory_limit="100MB").memory_here() == 100_000_000
    for options in (ClusterOptions(memory_limit="0"), ClusterOptions(workers=1, memory_limit="100MB")):
        assert options.memory_here() == machine_memory()
    with pytest.raises(UsageError, match="one of them"):
        ClusterOptions(scheduler="tcp://h:1", scheduler_file="f")
    for name in ("scheduler", "scheduler_file"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is empty"):
            ClusterOptions(**dict[str, Any]([(name, "")]))
    with pytest.raises(UsageError, match="--threads-per-worker is for a cluster that is started here"):
        ClusterOptions(scheduler="tcp://h:1", threads_per_worker=2)
    monkeypatch.setattr("tiledblend.run.options._has_bokeh", lambda: False)
    with pytest.raises(UsageError, match=r"--dashboard needs .*tiledblend\[dashboard\]"):
        ClusterOptions(dashboard=True)
    monkeypatch.setattr("tiledblend.run.options._has_bokeh", lambda: True)
    with pytest.raises(RefusedError, match="exists"):
        ClusterOptions(performance_report=str(tmp_path))


def test_a_flag_wins_over_the_configured_scheduler() -> None:
    import dask.config

    with dask.config.set({"scheduler-address": "tcp://h:1"}):
        assert str(running_scheduler(ClusterOptions())) == "tcp://h:1"
        assert str(running_scheduler(ClusterOptions(scheduler="tcp://other:1"))) == "tcp://other:1"
        assert running_scheduler(ClusterOptions(threads_per_worker=2)) is None
    assert running_scheduler(ClusterOptions()) is None


def test_an_embedded_cluster_where_dask_wants_encryption() -> None:
    import dask.config

    with dask.config.set({"distributed.comm.require-encryption": True}):
        with open_client(ClusterOptions(threads_per_worker=1)) as client:
            assert client.submit(int, "7").result() == 7
        with open_client(ClusterOptions(workers=1)) as client:
            assert client.submit(int, "7").result() == 7


def test_what_a_killed_worker_left_goes_with_the_cluster(tmp_path: Path) -> None:
    with open_client(ClusterOptions(workers=1, local_directory=str(tmp_path))):
        (lock,) = tmp_path.rglob("*worker-*.dirlock")
        dead = lock.with_name("worker-dead")
        dead.mkdir()
        (dead / "spilled").write_bytes(b"x")
        lock.with_name("worker-dead.dirlock").touch()
    assert list(tmp_path.iterdir()) == []


def test_clusters_of_two_threads_leave_dasks_configuration_as_it_was() -> None:
    """Entered by one, then by the other, left in the same order: what the second puts back is not the first one's."""
    before = copy.deepcopy(dask.config.config)
    entered, may_leave = threading.Barrier(2, timeout=30), threading.Event()

    def first() -> None:
        with open_client(tb.ClusterOptions(threads_per_worker=1)):
            entered.wait()
            may_leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with open_client(tb.ClusterOptions(threads_per_worker=1)):
        may_leave.set()
        thread.join()
    assert dask.config.config == before
