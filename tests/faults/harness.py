"""A laboratory for breaking things: a small real job, commands as real processes, and what must hold afterwards.

Every case gets a folder of its own with a canary beside the output. `Case.check_*` raise AssertionError with what was
seen. Nothing here knows how a command is broken: that is in `experiments`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT = 90.0
THREADS = 2
IN_FLIGHT = 3 * THREADS
"""Tiles that a driver of two threads has handed out and not yet noted: run.TASKS_PER_THREAD per thread."""


@functools.cache
def built_shim() -> tuple[Path | None, str]:
    """(the preloaded library, "") or (None, why there is none)."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        return None, "the shim needs Linux and a C compiler"
    source = (HERE / "shim.c").read_bytes()
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"tiledblend-faults-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"shim-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(fresh), str(HERE / "shim.c"), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"{compiler} cannot build the shim: {done.stderr.strip()[:200]}"
        fresh.rename(library)
    return library, ""


@dataclass(frozen=True)
class Ended:
    """A command that has ended. code: negative for a signal."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """What `--json` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    def __str__(self) -> str:
        return f"exit {self.code}, stderr: {self.err.strip()[-800:] or 'nothing'}"


class Zygote:
    """Forks commands on request; see zygote.py. mounts: in a user and mount namespace of its own."""

    def __init__(self, *, mounts: bool = False) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DASK_", "TBF_"))}
        environment |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        shim = built_shim()[0]
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        namespace = ["unshare", "--user", "--map-root-user", "--mount"] if mounts else []
        self._process = subprocess.Popen(
            [*namespace, sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        first = self._process.stdout.readline() if self._process.stdout else ""
        if not first:
            raise RuntimeError(f"no zygote: {' '.join(namespace)} failed")
        self.pid = int(first)
        self._lock = threading.Lock()

    def ask(self, **request: Any) -> Any:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, program: str, *arguments: str, cwd: Path, out: Path, err: Path, **how: Any) -> Running:
        """Fork a command: "tiledblend", or dask's "scheduler" or "worker".

        env: added to the zygote's. limits: of `resource`, by name. as_owner: without root's right to pass over
        permissions. constants: of modules, "module:NAME" to its value.
        """
        out.touch()  # a command may be killed before its own first line
        err.touch()
        request = {"env": {}, "limits": {}, "as_owner": False, "constants": {}} | how
        pid = self.ask(program=program, argv=list(arguments), cwd=str(cwd), out=str(out), err=str(err), **request)
        return Running(self, pid, out, err)

    def run(self, *command: object) -> None:
        """A helper program in the zygote's namespaces."""
        code, error = self.ask(run=[str(part) for part in command])
        assert code == 0, f"{command}: {error}"

    def close(self) -> None:
        """End it; what it forked must have ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass
class Running:
    """A command at work, a session of its own."""

    zygote: Zygote
    pid: int
    out: Path
    err: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        if self.code is None:
            self.code = self.zygote.ask(poll=self.pid)
        return self.code

    def wait(self, seconds: float = TIMEOUT) -> Ended:
        """The end of the command itself; its session must empty itself soon after."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGUSR2)  # every thread's stack, on stderr
                time.sleep(1)
                self.kill_session()
                raise AssertionError(f"hangs after {seconds} s; stderr: {self.err.read_text()[-8000:]}")
            time.sleep(0.004)
        assert self.code is not None
        return Ended(self.code, self.out.read_text(), self.err.read_text())

    def signal(self, number: int) -> None:
        """To the command alone, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def signal_session(self, number: int) -> None:
        """To all its processes, as a job scheduler or a terminal does."""
        for pid in self.members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def members(self) -> list[int]:
        """Living processes of its session."""
        return [pid for pid, session in _sessions() if session == self.pid]

    def require_no_process_left(self, seconds: float = 15.0) -> None:
        """Whatever became of the command, its workers must end by themselves."""
        deadline = time.monotonic() + seconds
        while self.members():
            if time.monotonic() > deadline:
                left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120] for pid in self.members()]
                self.kill_session()
                raise AssertionError(f"processes left: {left}")
            time.sleep(0.02)

    def kill_session(self) -> None:
        """The end of an experiment that went wrong."""
        self.signal_session(signal.SIGKILL)
        self.signal_session(signal.SIGCONT)


def _sessions() -> list[tuple[int, int]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                found.append((int(name), int(fields[3])))
    return found


@dataclass(frozen=True)
class JobSize:
    """A job of the laboratory: canvas (y, x), sides of chunk and shard."""

    shape: tuple[int, int]
    chunk: int
    shard: int


SMALL = JobSize((100, 110), 32, 64)
"""5 tiles, 9 objects, 3 levels: for what is done at every system call."""
MEDIUM = JobSize((136, 150), 16, 32)
"""30 tiles, 60 objects, 5 levels in 3 stages: for what happens at any time."""


@dataclass
class Undisturbed:
    """What an undisturbed run of a job makes. objects: content by key below the output, root documents left out.

    tiles: the keys of each tile's objects. seconds: from the first file to the end.
    """

    objects: dict[str, bytes]
    tiles: list[tuple[str, ...]]
    pixels: Any
    seconds: float


ROOT_DOCUMENT = "zarr.json"
TEMPORARY = ".tiledblend-tmp-"


class Lab:
    """Inputs, undisturbed results and zygotes, made once and used by every case."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._cases, self._zygotes = folder, itertools.count(1), dict[bool, Zygote]()
        self.making = threading.RLock()
        self._undisturbed: dict[JobSize, Undisturbed] = {}

    def zygote(self, *, mounts: bool = False) -> Zygote:
        """The one that forks commands here, or the one with its own mounts."""
        with self.making:
            if mounts not in self._zygotes:
                self._zygotes[mounts] = Zygote(mounts=mounts)
            return self._zygotes[mounts]

    def close(self) -> None:
        """End the zygotes."""
        for zygote in self._zygotes.values():
            zygote.close()

    def inputs(self, size: JobSize) -> Path:
        """Folder of base.tif, overlay.tif and mask.tif."""
        folder = self.folder / f"inputs-{size.shape[0]}"
        with self.making:
            if not folder.exists():
                folder.mkdir()
                write_inputs(folder, size.shape)
        return folder

    def undisturbed(self, size: JobSize) -> Undisturbed:
        """The result to compare with; its run's time is what random moments are drawn from."""
        with self.making:
            if size not in self._undisturbed:
                self._undisturbed[size] = self._run_undisturbed(self.case(size))
            return self._undisturbed[size]

    def _run_undisturbed(self, case: Case) -> Undisturbed:
        started: list[float] = []
        running = case.start("--json", wait_for_ledger=lambda: started.append(time.monotonic()))
        ended = running.wait()
        seconds = time.monotonic() - started[0]
        assert ended.code == 0, ended
        running.require_no_process_left()
        tiles = _tiles(case.out)
        assert len(tiles) == ended.report["tiles"]
        made = Undisturbed(case.objects(), tiles, case.pixels(), seconds)
        case.remove()
        return made

    def case(self, size: JobSize = MEDIUM, **options: Any) -> Case:
        """A new case in a folder of its own."""
        folder = self.folder / f"case-{next(self._cases):05d}"
        return Case(self, size, folder, **options)


def write_inputs(folder: Path, shape: tuple[int, int]) -> None:
    """Two images of noise (every pixel counts) and a disc as mask."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < (shape[0] / 3) ** 2
    for name in ("base", "overlay"):
        pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(32, 32), compression="zlib", photometric="rgb")
    tifffile.imwrite(folder / "mask.tif", disc.astype(np.uint8) * 255, tile=(32, 32), compression="zlib")


def _tiles(out: Path) -> list[tuple[str, ...]]:
    """Keys of each planned tile's objects, by the result's own metadata."""
    from tiledblend.bytes.objects import DirectoryStore
    from tiledblend.containers.omezarr.documents import read_attributes, result_layout

    layout = result_layout(read_attributes(DirectoryStore(out)))
    assert layout is not None
    grid = layout.grid
    return [layout.tile_objects(tile) for stage in range(grid.stages) for tile in grid.tiles(stage)]


@dataclass
class Case:
    """One folder with an output, a canary and a TMPDIR, and the commands that work on it.

    own_inputs: copies, to be changed. mounts: the commands, and so the output, live among the mounts zygote's mounts.
    armed: environment that an experiment keeps for a command to come.
    """

    lab: Lab
    size: JobSize
    folder: Path
    own_inputs: bool = False
    mounts: bool = False
    inputs: Path = field(init=False)
    started: list[Running] = field(default_factory=list)
    armed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "tmp").mkdir()
        (self.folder / "disk").mkdir()
        self.inputs = self.lab.inputs(self.size)
        if self.own_inputs:
            self.inputs = shutil.copytree(self.inputs, self.folder / "inputs")
        canary = self.folder / "canary"
        (canary / "sub").mkdir(parents=True)
        (canary / "notes.txt").write_text("mine")
        (canary / "sub" / "zarr.json").write_text("{}")
        (canary / "link").symlink_to("sub")
        self._canary = _seen(canary), _seen(self.inputs)

    @property
    def disk(self) -> Path:
        """Where the output lies, as this process sees it."""
        if self.mounts:
            return Path(f"/proc/{self.lab.zygote(mounts=True).pid}/root{self.folder}/disk")
        return self.folder / "disk"

    @property
    def out(self) -> Path:
        """The output, as this process sees it."""
        return self.disk / "out.ome.zarr"

    @property
    def given_out(self) -> str:
        """The output as the command is told it."""
        return str(self.folder / "disk" / "out.ome.zarr")

    @property
    def ledger(self) -> Path:
        """The ledger's folder."""
        return self.out.with_name("out.ome.zarr.ledger")

    def arguments(self, *more: str) -> list[str]:
        """Of the job."""
        base, overlay, mask = (str(self.inputs / f"{name}.tif") for name in ("base", "overlay", "mask"))
        geometry = ["--chunk", str(self.size.chunk), "--shard", str(self.size.shard)]
        feather = [] if "--feather" in more else ["--feather", "3px"]
        where = ["--threads-per-worker", str(THREADS)] if not {"--part", "--scheduler-file"} & {*more} else []
        return ["blend", base, overlay, "--mask", mask, *feather, *geometry, *where, "-o", self.given_out, *more]

    def start(self, *more: str, wait_for_ledger: Callable[[], None] | None = None, **how: Any) -> Running:
        """Start the job's blend. wait_for_ledger: called when its first file is there."""
        running = self.start_verb(*self.arguments(*more), **how)
        if wait_for_ledger is not None:
            wait_until(self.ledger.exists, running)
            wait_for_ledger()
        return running

    def start_verb(self, *arguments: str, env: dict[str, str] | None = None, **how: Any) -> Running:
        """Start any command; see Zygote.start."""
        number = len(self.started)
        files = {"out": self.folder / f"{number}.out", "err": self.folder / f"{number}.err"}
        environment = {"TMPDIR": str(self.folder / "tmp"), "HOME": str(self.folder / "tmp")} | (env or {})
        zygote = self.lab.zygote(mounts=self.mounts)
        running = zygote.start("tiledblend", *arguments, cwd=self.folder / "tmp", env=environment, **files, **how)
        self.started.append(running)
        return running

    def run(self, *more: str, **how: Any) -> Ended:
        """The job's blend, to its end."""
        return self.start(*more, **how).wait()

    def run_verb(self, *arguments: str, **how: Any) -> Ended:
        """Any command, to its end."""
        return self.start_verb(*arguments, **how).wait()

    # --- what is there

    def files(self) -> dict[str, Path]:
        """Every file below the disk, by its path there."""
        return {str(path.relative_to(self.disk)): path for path in self.disk.rglob("*") if not path.is_dir()}

    def objects(self) -> dict[str, bytes]:
        """Content of the output's files but the root document."""
        return {
            key.removeprefix("out.ome.zarr/"): path.read_bytes()
            for key, path in self.files().items()
            if key.startswith("out.ome.zarr/") and key != f"out.ome.zarr/{ROOT_DOCUMENT}"
        }

    def pixels(self) -> Any:
        """Level 0 by an independent reader."""
        return np.asarray(zarr.open_group(self.out, mode="r")["0"])

    def tiles_stored(self) -> int:
        """Tiles whose every object is there as an undisturbed run makes it."""
        good = self.lab.undisturbed(self.size)
        there = {key: data for key, data in self.objects().items() if good.objects.get(key) == data}
        return sum(all(key in there for key in keys) for keys in good.tiles)

    # --- what must hold

    def check_told(self, ended: Ended, *codes: int) -> None:
        """The exit code is one of these, and a failure is told in one line; nothing else but our own lines."""
        assert ended.code in codes, f"exit code {ended.code}, not one of {codes}; {ended}"
        lines = ended.err.splitlines()
        errors = [line for line in lines if line.startswith("tiledblend: error: ")]
        if ended.code < 0:
            assert not errors, ended
        else:
            assert len(errors) == (ended.code != 0), f"{len(errors)} error lines; {ended}"
        foreign = [line for line in lines if not line.startswith("tiledblend: ")]
        assert not foreign, f"lines that are not ours: {foreign[:5]}; {ended}"
        if ended.code == 1 or any("unexpected" in line for line in errors):
            raise AssertionError(f"not told as what it is: {ended}")

    def check_hidden_or_right(self) -> None:
        """A result that opens is complete and right."""
        if (self.out / ROOT_DOCUMENT).exists():
            good = self.lab.undisturbed(self.size)
            assert self.objects() == good.objects, f"visible and wrong: {self._differences(good)}"

    def temporaries(self) -> list[str]:
        """Half-written files, by their paths below the disk."""
        return [key for key in self.files() if TEMPORARY in key]

    def check_no_temporaries(self, but: Sequence[str] = ()) -> None:
        """After a failure that was told, nothing half-written lies about. but: what lay there before."""
        left = sorted({*self.temporaries()} - {*but})
        assert not left, f"temporary files left: {left}"

    def check_untouched(self) -> None:
        """The canary and the inputs are what they were."""
        assert _seen(self.folder / "canary") == self._canary[0], "the canary was touched"
        assert self.own_inputs or _seen(self.inputs) == self._canary[1], "the inputs were touched"

    def check_resumes(self, *more: str, in_flight: int = IN_FLIGHT, **how: Any) -> Ended:
        """`--resume` ends well, makes only what is missing, and gives the undisturbed result."""
        stored = self.tiles_stored()
        finished = (self.out / ROOT_DOCUMENT).exists()
        ended = self.run("--resume", "--json", *more, **how)
        self.check_told(ended, 0)
        report = ended.report
        total = len(self.lab.undisturbed(self.size).tiles)
        if not (finished and report["tiles"] == 0):
            again = stored - report["resumed_tiles"]
            assert again <= in_flight, f"{again} stored tiles were made again, more than {in_flight} in flight"
            assert report["tiles"] + report["resumed_tiles"] == total, report
        self.check_finished()
        return ended

    def check_finished(self, *, beside: Sequence[str] = ("out.ome.zarr.manifest",)) -> None:
        """The result is the undisturbed one, by bytes and by an independent reader, and nothing else is there."""
        good = self.lab.undisturbed(self.size)
        assert self.objects() == good.objects, self._differences(good)
        assert np.array_equal(self.pixels(), good.pixels)
        around = sorted(key for key in self.files() if not key.startswith("out.ome.zarr/"))
        assert around == sorted(beside), f"beside the result: {around}"
        self.check_untouched()
        for running in self.started:
            running.require_no_process_left()
        files = [path for path in (self.folder / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]
        # Python's tempfile writes and removes these four bytes to see where it may: a kill can come in between.
        left = [path for path in files if path.read_bytes() not in (b"", b"blat") or len(path.name) != 8]
        assert not left, f"left in TMPDIR: {left}"

    def remove(self) -> None:
        """Give the disk back; called after a case that held."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> None:
        """Kill whatever is left of the commands."""
        for running in self.started:
            running.kill_session()

    def _differences(self, good: Undisturbed) -> str:
        mine = self.objects()
        missing = sorted(good.objects.keys() - mine.keys())
        extra = sorted(mine.keys() - good.objects.keys())
        wrong = sorted(key for key in mine.keys() & good.objects.keys() if mine[key] != good.objects[key])
        return f"missing {missing[:3]} ({len(missing)}), extra {extra[:3]} ({len(extra)}), wrong {wrong[:3]}"


def wait_until(condition: Callable[[], bool], running: Running, seconds: float = 30.0) -> bool:
    """Poll often; False if the command ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if running.poll() is not None:
            return condition()
        if time.monotonic() > deadline:
            raise AssertionError(f"still waiting after {seconds} s; {running.err.read_text()[-500:]}")
        time.sleep(0.002)
    return True


def _seen(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Names, kinds, content and times of what is below a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns, content)
    return found
