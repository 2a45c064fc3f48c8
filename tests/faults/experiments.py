"""What is broken on purpose, and what must come of it.

An experiment draws cases (plain JSON values, so that a failing one can be kept) and runs one at a time. `run` raises
AssertionError when a promise is broken, and returns how the case went, for the table.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from harness import (
    IN_FLIGHT,
    MEDIUM,
    ROOT,
    ROOT_DOCUMENT,
    SMALL,
    TEMPORARY,
    Case,
    Ended,
    JobSize,
    Lab,
    Running,
    built_shim,
)
from harness import wait_until as wait

Parameters = list[Any]
Draw = Callable[[Lab, random.Random, int], list[Parameters]]
Run = Callable[..., str]


@dataclass(frozen=True)
class Experiment:
    """name: on the command line. title: in the table. draw: cases for (lab, random numbers, count). needs: what it
    cannot do without: "shim", "mounts"."""

    name: str
    title: str
    draw: Draw
    run: Run
    needs: str = ""


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, title: str, draw: Draw, needs: str = "") -> Callable[[Run], Run]:
    """Register a function (lab, *parameters) -> how it went."""

    def register(run: Run) -> Run:
        EXPERIMENTS[name] = Experiment(name, title, draw, run, needs)
        return run

    return register


def missing_need(needs: str) -> str:
    """Why an experiment cannot be done here; "" if it can."""
    if needs == "shim":
        return built_shim()[1]
    if needs == "mounts":
        command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
        if shutil.which("unshare") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            return "no user and mount namespaces here"
    return ""


@contextmanager
def a_case(lab: Lab, size: JobSize = MEDIUM, **options: Any) -> Iterator[Case]:
    """A case that is removed when it held, and kept for a look when it did not."""
    case = lab.case(size, **options)
    try:
        yield case
    except BaseException as error:
        case.abandon()
        if isinstance(error, AssertionError):
            error.add_note(f"left in {case.folder}")
        raise
    case.remove()


# --- at any moment


def moments(lab: Lab, rng: random.Random, count: int, *more: Any) -> list[Parameters]:
    """Seconds after the run's first file, up to a little more than it needs."""
    seconds = lab.undisturbed(MEDIUM).seconds
    return [[round(rng.uniform(0, 1.05 * seconds), 4), *more] for _ in range(count)]


def start_and_wait(case: Case, delay: float, *more: str, **how: Any) -> Running:
    """A run, `delay` seconds after its first file."""
    return case.start(*more, wait_for_ledger=lambda: time.sleep(delay), **how)


def kill(case: Case, delay: float, *more: str) -> Ended:
    running = start_and_wait(case, delay, *more)
    running.signal(signal.SIGKILL)
    ended = running.wait()
    running.require_no_process_left()
    case.check_told(ended, -signal.SIGKILL, 0)
    case.check_hidden_or_right()
    return ended


@experiment("driver-killed", "SIGKILL of the driver (one process) at a random moment, then `--resume`", moments)
def driver_killed(lab: Lab, delay: float) -> str:
    with a_case(lab) as case:
        ended = kill(case, delay)
        case.check_resumes()
        return "killed" if ended.code else "had finished"


def two_moments(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    seconds = lab.undisturbed(MEDIUM).seconds
    return [[round(rng.uniform(0, seconds), 4), round(rng.uniform(0, 1.2 * seconds), 4)] for _ in range(count)]


@experiment("killed-twice", "the same, killed again during the resume, then resumed", two_moments)
def killed_twice(lab: Lab, first: float, second: float) -> str:
    with a_case(lab) as case:
        kill(case, first)
        stored = case.tiles_stored()
        resuming = case.start("--resume")
        time.sleep(second)
        resuming.signal(signal.SIGKILL)
        ended = resuming.wait()
        case.check_told(ended, -signal.SIGKILL, 0)
        case.check_hidden_or_right()
        assert case.tiles_stored() >= stored, "a resume lost tiles"
        case.check_resumes()
        return "killed" if ended.code else "had finished"


@experiment(
    "commit-killed",
    "SIGKILL in the commit (soon after the last object), of a run or of a resume, then `--resume`",
    lambda lab, rng, count: [[round(rng.uniform(0, 0.02), 5), rng.random() < 0.5] for _ in range(count)],
)
def commit_killed(lab: Lab, delay: float, resumes: bool) -> str:
    with a_case(lab) as case:
        if resumes:
            kill(case, lab.undisturbed(MEDIUM).seconds / 2)
        running = case.start(*(["--resume"] if resumes else []))
        last = lab.undisturbed(MEDIUM).tiles[-1][-1]
        wait((case.out / last).exists, running)
        time.sleep(delay)
        running.signal(signal.SIGKILL)
        ended = running.wait()
        case.check_told(ended, -signal.SIGKILL, 0)
        case.check_hidden_or_right()
        case.check_resumes()
        return "killed" if ended.code else "had finished"


def signalled(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    drawn = moments(lab, rng, count)
    return [[delay, rng.choice(["SIGTERM", "SIGINT"]), rng.random() < 0.15] for (delay,) in drawn]


@experiment("stopped", "SIGTERM or Ctrl-C at a random moment (exit 75), then `--resume`", signalled)
def stopped(lab: Lab, delay: float, name: str, from_the_start: bool) -> str:
    with a_case(lab) as case:
        number = getattr(signal, name)
        if from_the_start:
            running = case.start()
            time.sleep(delay)
        else:
            running = start_and_wait(case, delay)
        running.signal(number)
        ended = running.wait()
        # Before the program's first line the system's own answer to a signal holds.
        early = -number if not case.ledger.exists() and not case.out.exists() else 75
        case.check_told(ended, 75, 0, early)
        case.check_no_temporaries()
        case.check_hidden_or_right()
        case.check_resumes()
        return f"exit {ended.code}"


# --- at every system call


@dataclass(frozen=True)
class Scenario:
    """A situation and the command that is hit in it. goes_on: the commands by which the work goes on afterwards.
    visible: what must hold of whatever opens at the output before that."""

    prepare: Callable[[Case], None]
    hit: Callable[[Case], Running]
    goes_on: Callable[[Case], None]
    visible: Callable[[Case], None] = Case.check_hidden_or_right


def armed(case: Case, at: int, action: str) -> dict[str, str]:
    """Environment that lets the shim act at the call number `at`."""
    counter = case.folder / "counter"
    counter.write_bytes(bytes(16))
    given = {"TBF_ROOT": case.given_out.removesuffix(".zarr"), "TBF_COUNT": str(counter), "TBF_AT": str(at)}
    if action in ("kill", "tear"):
        return given | {"TBF_ACTION": action}
    given |= {"TBF_ACTION": str(getattr(errno, action))}
    # A full disk stays full for whatever needs room; the other failures happen once.
    return given | ({"TBF_STICKY": "1", "TBF_OPS": "cwml"} if action in ("ENOSPC", "EDQUOT") else {})


def hit_call(case: Case) -> tuple[int, str]:
    """(number of calls, letter of the one that was hit)."""
    data = (case.folder / "counter").read_bytes()
    return int.from_bytes(data[:8], "little"), chr(data[8]) if data[8] else ""


def finished_result(case: Case) -> None:
    """A copy of a finished result; made once."""
    template = case.lab.folder / f"finished-{case.size.shape[0]}"
    with case.lab.making:
        if not template.exists():
            with a_case(case.lab, case.size) as making:
                ended = making.run()
                assert ended.code == 0, ended
                making.disk.rename(template)
    shutil.copytree(template, case.disk, dirs_exist_ok=True)


def half_done(case: Case) -> None:
    """A run that died in its middle and left half an object, as it may."""
    running = case.start(env=armed(case, 100, "kill"))
    assert running.wait().code == -signal.SIGKILL
    drafts = case.ledger / "drafts.000001"
    drafts.mkdir(exist_ok=True)
    (drafts / f"{TEMPORARY}of-the-dead").write_bytes(b"half")


def of_another_job(case: Case) -> None:
    ended = case.run("--feather", "5px")
    assert ended.code == 0, ended


def flipped(case: Case) -> None:
    finished_result(case)
    damage(case.out / "0/c/0/1/0", "flip", random.Random(1))


def both_parts(case: Case) -> None:
    for part in ("1/2", "2/2"):
        ended = case.run("--part", part)
        assert ended.code == 0, ended


def resume(case: Case) -> None:
    case.check_resumes()


def go_on_with(*steps: list[str]) -> Callable[[Case], None]:
    def go_on(case: Case) -> None:
        for step in steps:
            case.check_told(case.run(*step), 0)
        case.check_finished()

    return go_on


def clean_up(case: Case) -> None:
    if case.ledger.exists():
        ended = case.run_verb("clean", case.given_out)
        # The death may have come before there was a job to tell of, or when it was gone already.
        case.check_told(ended, 0, 3)
    case.check_resumes()


def assert_old_or_new(case: Case) -> None:
    """During --replace whoever opens the path sees the older result or the new one, whole."""
    assert (case.out / ROOT_DOCUMENT).exists(), "no result to be seen during --replace"
    seen, new = case.objects(), case.lab.undisturbed(case.size).objects
    assert seen == new or (seen.keys() == new.keys() and seen != new), "neither the older nor the new result"


def tiff_of(case: Case) -> list[str]:
    """Arguments that make the output an OME-TIFF: the last -o wins."""
    return ["-o", case.given_out.replace(".zarr", ".tif")]


def finished_tiff(case: Case) -> bytes:
    """What an undisturbed run makes; made once, and read by tifffile."""
    template = case.lab.folder / f"finished-{case.size.shape[0]}.ome.tif"
    with case.lab.making:
        if not template.exists():
            with a_case(case.lab, case.size) as making:
                ended = making.run(*tiff_of(making))
                assert ended.code == 0, ended
                made = making.out.with_suffix(".tif")
                good = case.lab.undisturbed(case.size).pixels
                assert np.array_equal(np.moveaxis(tifffile.imread(made), -1, 0), good)
                made.rename(template)
    return template.read_bytes()


def tiff_is_hidden_or_right(case: Case) -> None:
    file = case.out.with_suffix(".tif")
    assert not file.exists() or file.read_bytes() == finished_tiff(case), "visible and wrong"


def resume_tiff(case: Case) -> None:
    case.check_told(case.run("--resume", *tiff_of(case)), 0)
    tiff_is_hidden_or_right(case)
    assert list(case.files()) == ["out.ome.tif"], sorted(case.files())
    case.check_untouched()


def half_done_tiff(case: Case) -> None:
    running = case.start(*tiff_of(case), env=armed(case, 60, "kill"))
    assert running.wait().code == -signal.SIGKILL


def clean_up_tiff(case: Case) -> None:
    work = case.out.with_suffix(".tif.unfinished")
    if work.exists():
        case.check_told(case.run_verb("clean", tiff_of(case)[1]), 0)
    assert not work.exists(), f"clean left the work folder: {sorted(path.name for path in work.rglob('*'))}"
    resume_tiff(case)


SCENARIOS = {
    "fresh": Scenario(lambda case: None, lambda case: case.start(env=case.armed), resume),
    "resumed": Scenario(half_done, lambda case: case.start("--resume", env=case.armed), resume),
    "repair": Scenario(flipped, lambda case: case.start("--resume", env=case.armed), resume),
    "replace": Scenario(
        of_another_job,
        lambda case: case.start("--replace", env=case.armed),
        go_on_with(["--replace", "--resume"]),
        assert_old_or_new,
    ),
    "part": Scenario(
        lambda case: None,
        lambda case: case.start("--part", "1/2", env=case.armed),
        go_on_with(["--part", "1/2"], ["--part", "2/2"], ["--finish"]),
    ),
    "finish": Scenario(both_parts, lambda case: case.start("--finish", env=case.armed), go_on_with(["--finish"])),
    "clean": Scenario(half_done, lambda case: case.start_verb("clean", case.given_out, env=case.armed), clean_up),
    "ometiff": Scenario(
        lambda case: None,
        lambda case: case.start(*tiff_of(case), env=case.armed),
        resume_tiff,
        tiff_is_hidden_or_right,
    ),
    "clean-ometiff": Scenario(
        half_done_tiff,
        lambda case: case.start_verb("clean", tiff_of(case)[1], env=case.armed),
        clean_up_tiff,
        tiff_is_hidden_or_right,
    ),
}


def every_call(scenario: str, *actions: str) -> Draw:
    """Every call of the scenario's command, with the actions in turn; a sample when fewer are asked for."""

    def calls(lab: Lab, action: str) -> int:
        with a_case(lab, SMALL) as case:
            SCENARIOS[scenario].prepare(case)
            case.armed = armed(case, 0, action)  # counts only
            ended = SCENARIOS[scenario].hit(case).wait()
            assert ended.code == 0, ended
            return hit_call(case)[0]

    def draw(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
        every = [[scenario, action, number] for action in actions for number in range(1, calls(lab, action) + 1)]
        return every if count >= len(every) else sorted(rng.sample(every, count), key=lambda drawn: drawn[2])

    return draw


def at_call(lab: Lab, scenario: str, action: str, number: int) -> str:
    """One call of one scenario is hit."""
    with a_case(lab, SMALL) as case:
        situation = SCENARIOS[scenario]
        situation.prepare(case)
        left_before = case.temporaries()
        case.armed = armed(case, number, action)
        running = situation.hit(case)
        ended = running.wait()
        running.require_no_process_left()
        calls, letter = hit_call(case)
        deadly = action in ("kill", "tear")
        case.check_told(ended, *((-signal.SIGKILL, 0) if deadly else (0, 5, 6)))
        assert ended.code >= 0 or calls >= number
        if not (scenario == "repair" and ended.code):
            situation.visible(case)
        if not deadly and letter != "u":
            # Who fails before it holds the lock may not touch what a dead run left; who goes on after it must.
            case.check_no_temporaries(but=left_before if ended.code else ())
        case.check_untouched()
        situation.goes_on(case)
        if not letter:
            return "not reached"
        return "died" if ended.code < 0 else "told" if ended.code else "came through"


for _name, _what in {
    "fresh": "a new run",
    "resumed": "a resumed run",
    "repair": "the repair of a damaged result",
    "replace": "`--replace`",
    "part": "`--part 1/2`",
    "finish": "`--finish`",
    "clean": "`clean`",
    "ometiff": "a new run that makes an OME-TIFF",
    "clean-ometiff": "`clean` of an OME-TIFF's dead run",
}.items():
    EXPERIMENTS[f"killed-at-call-{_name}"] = Experiment(
        f"killed-at-call-{_name}",
        f"death at the Nth create, write, fsync, rename, link, unlink, mkdir, rmdir of {_what}, every N",
        every_call(_name, "kill"),
        at_call,
        "shim",
    )
    EXPERIMENTS[f"failed-call-{_name}"] = Experiment(
        f"failed-call-{_name}",
        f"EIO, EACCES once, ENOSPC, EDQUOT from then on, at the Nth such call of {_what}, every N",
        every_call(_name, "EIO", "EACCES", "ENOSPC", "EDQUOT"),
        at_call,
        "shim",
    )
EXPERIMENTS["torn-write"] = Experiment(
    "torn-write",
    "half of the Nth write, then death, every N (other calls: death)",
    every_call("fresh", "tear"),
    at_call,
    "shim",
)


# --- damage afterwards


def damage(file: Path, how: str, rng: random.Random) -> None:
    """Delete a file, cut its end off, or flip one bit of it."""
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "tear":
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def damages(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    every = []
    for size, name in ((SMALL, "small"), (MEDIUM, "medium")):
        keys = [*lab.undisturbed(size).objects, ROOT_DOCUMENT, "../out.ome.zarr.manifest"]
        every += [
            [name, key, how, rng.randrange(1 << 30)] for key in sorted(keys) for how in ("delete", "tear", "flip")
        ]
    return every if count >= len(every) else rng.sample(every, count)


@experiment(
    "damaged", "every object, metadata file and manifest deleted, torn, bit-flipped: `verify`, `--resume`", damages
)
def damaged(lab: Lab, size: str, key: str, how: str, seed: int) -> str:
    with a_case(lab, {"small": SMALL, "medium": MEDIUM}[size]) as case:
        finished_result(case)
        damage(case.out / key, how, random.Random(seed))
        told = case.run_verb("verify", case.given_out)
        if key.startswith("../") and how == "delete":
            case.check_told(told, 0)  # it says that there is no manifest, and decodes everything
        else:
            case.check_told(told, 7, 4)
            named = key.removeprefix("../")
            assert named in told.err or "root metadata" in told.err or "manifest" in told.err, told
        ended = case.run("--resume", "--json")
        case.check_told(ended, 0)
        made = ended.report["tiles"]
        assert made == ("/c/" in key), f"{made} tiles were made again"
        case.check_finished()
        case.check_told(case.run_verb("verify", case.given_out), 0)
        return how


@experiment(
    "damaged-unfinished",
    "an object of a dead run deleted, torn, bit-flipped, then `--resume`",
    lambda lab, rng, count: [[rng.choice(["delete", "tear", "flip"]), rng.randrange(1 << 30)] for _ in range(count)],
    "shim",
)
def damaged_unfinished(lab: Lab, how: str, seed: int) -> str:
    rng = random.Random(seed)
    with a_case(lab, SMALL) as case:
        half_done(case)
        there = sorted(key for key in case.objects() if "/c/" in key)
        damage(case.out / rng.choice(there), how, rng)
        case.check_resumes()
        return how


# --- inputs


def input_changes(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    kinds = ("replaced", "appended to", "truncated", "a byte changed", "touched", "removed")
    files = ("base", "overlay", "mask")
    return [[delay, rng.choice(kinds), rng.choice(files)] for (delay,) in moments(lab, rng, count)]


def change_input(file: Path, kind: str) -> None:
    """What people do to a file that is in use."""
    data = file.read_bytes()
    if kind == "replaced":
        other = file.with_suffix(".new")
        other.write_bytes(file.with_name("overlay.tif" if file.stem != "overlay" else "base.tif").read_bytes())
        other.replace(file)
    elif kind == "appended to":
        with file.open("ab") as handle:
            handle.write(b"more")
    elif kind == "truncated":
        os.truncate(file, len(data) // 2)
    elif kind == "a byte changed":
        with file.open("r+b") as handle:
            handle.seek(len(data) // 2)
            handle.write(bytes([data[len(data) // 2] ^ 1]))
    elif kind == "touched":
        os.utime(file)
    else:
        file.unlink()


@experiment(
    "inputs-changed", "an input replaced, appended to, truncated, edited, touched or removed in mid-run", input_changes
)
def inputs_changed(lab: Lab, delay: float, kind: str, name: str) -> str:
    with a_case(lab, own_inputs=True) as case:
        file = case.inputs / f"{name}.tif"
        before, state = file.read_bytes(), file.stat()
        running = start_and_wait(case, delay)
        change_input(file, kind)
        ended = running.wait()
        case.check_told(ended, 4, 0)
        if ended.code:
            assert file.name in ended.err, f"does not name the input: {ended}"
            case.check_no_temporaries()
            assert not (case.out / ROOT_DOCUMENT).exists()
            if case.ledger.exists():
                again = case.run("--resume")
                case.check_told(again, 3, 4)
                assert file.name in again.err or "inputs[" in again.err, again
        else:
            case.check_finished()
        if case.ledger.exists() or ended.code == 0:
            file.write_bytes(before)
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
            case.check_resumes(in_flight=len(lab.undisturbed(MEDIUM).tiles))
        return "told" if ended.code else "had finished"


@experiment(
    "another-job",
    "`--resume` after changing sigma, the chunk, an input's byte or its modification time",
    lambda lab, rng, count: [[what] for what in ("sigma", "chunk", "byte", "time")][:count],
    "shim",
)
def another_job(lab: Lab, what: str) -> str:
    with a_case(lab, SMALL, own_inputs=True) as case:
        half_done(case)
        file = case.inputs / "overlay.tif"
        before, state = file.read_bytes(), file.stat()
        more = {"sigma": ["--feather", "4px"], "chunk": ["--codec", "zstd:2"]}.get(what, [])
        if what in ("byte", "time"):
            change_input(file, "a byte changed" if what == "byte" else "touched")
        there = case.objects()
        ended = case.run("--resume", *more)
        case.check_told(ended, 3)
        said = {"sigma": "sigma was 3", "chunk": "codec was", "byte": "inputs[1].modified was"}
        assert said.get(what, "inputs[1].modified was") in ended.err, ended
        assert case.objects() == there
        file.write_bytes(before)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        case.check_resumes()
        return "refused"


# --- limits


def disk_sizes(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    """Sizes in pages up to what the run needs, evenly."""
    pages = sum(-(-len(data) // 4096) + 1 for data in lab.undisturbed(SMALL).objects.values()) + 16
    return [[max(1, pages * (index + 1) // (count + 1))] for index in range(count)]


@experiment("full-disk", "a tmpfs that fills up, then is made larger, then `--resume`", disk_sizes, "mounts")
def full_disk(lab: Lab, pages: int) -> str:
    with a_case(lab, SMALL, mounts=True) as case:
        zygote, disk = lab.zygote(mounts=True), case.folder / "disk"
        zygote.run("mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "disk", disk)
        try:
            ended = case.run()
            case.check_told(ended, 5, 0)
            assert ended.code == 0 or "no space left" in ended.err, ended
            case.check_no_temporaries()
            case.check_hidden_or_right()
            zygote.run("mount", "-o", f"remount,size={64 << 20}", disk)
            case.check_resumes()
        finally:
            zygote.run("umount", disk)
        return "told" if ended.code else "had room"


@experiment("read-only", "a read-only target", lambda lab, rng, count: [[]], "mounts")
def read_only(lab: Lab) -> str:
    with a_case(lab, SMALL, mounts=True) as case:
        zygote, disk = lab.zygote(mounts=True), case.folder / "disk"
        zygote.run("mount", "-t", "tmpfs", "-o", "ro", "disk", disk)
        try:
            ended = case.run()
            case.check_told(ended, 5)
            assert "read-only" in ended.err, ended
            assert not case.files()
        finally:
            zygote.run("umount", disk)
        return "told"


@experiment("no-permission", "a target without permission", lambda lab, rng, count: [[]])
def no_permission(lab: Lab) -> str:
    with a_case(lab, SMALL) as case:
        case.disk.chmod(0o555)
        ended = case.run(as_owner=True)
        case.check_told(ended, 5)
        assert "no permission" in ended.err, ended
        assert not case.files()
        return "told"


@experiment(
    "few-handles",
    "`ulimit -n` from 64 down to 16, embedded and with worker processes",
    lambda lab, rng, count: [[limit, workers] for workers in (0, 2) for limit in (64, 48, 40, 36, 32, 28, 24, 20, 16)][
        :count
    ],
)
def few_handles(lab: Lab, limit: int, workers: int) -> str:
    with a_case(lab) as case:
        more = ["--workers", str(workers)] if workers else []
        ended = case.run(*more, limits={"RLIMIT_NOFILE": limit})
        case.check_told(ended, 0, 6)
        assert ended.code == 0 or "open files" in ended.err, ended
        case.check_no_temporaries()
        case.check_hidden_or_right()
        case.check_resumes(in_flight=IN_FLIGHT + 2 * workers)
        return f"exit {ended.code}"


# --- several at once


@experiment(
    "two-drivers",
    "two drivers on one output, the second at a random moment, with and without `--resume`",
    lambda lab, rng, count: [
        [round(rng.uniform(0, 1.1 * lab.undisturbed(MEDIUM).seconds), 4), rng.random() < 0.5] for _ in range(count)
    ],
)
def two_drivers(lab: Lab, delay: float, resumes: bool) -> str:
    with a_case(lab) as case:
        first = case.start()
        time.sleep(delay)
        second = case.start(*(["--resume"] if resumes else []))
        ended = [first.wait(), second.wait()]
        for one in ended:
            case.check_told(one, 0, 3)
        assert any(one.code == 0 for one in ended), ended
        assert resumes or sorted(one.code for one in ended) == [0, 3], ended
        case.check_finished()
        return f"exits {ended[0].code} and {ended[1].code}"


@experiment("stolen", "a driver stopped (SIGSTOP), taken over as if it were another machine's, and woken", moments)
def stolen(lab: Lab, delay: float) -> str:
    with a_case(lab) as case:
        first = start_and_wait(case, delay)
        first.signal(signal.SIGSTOP)
        locks = sorted(case.ledger.glob("lock.0*"))
        for lock in locks:
            lock.write_text(lock.read_text().replace('"machine": "', '"machine": "another '))
        second = case.start("--resume")
        time.sleep(delay / 2)
        first.signal(signal.SIGCONT)
        ended = [first.wait(), second.wait()]
        for one in ended:
            case.check_told(one, 0, 3)
        assert any(one.code == 0 for one in ended), ended
        case.check_finished()
        return f"exits {ended[0].code} and {ended[1].code}"


# --- clusters


def spawned(pid: int) -> list[int]:
    """Workers that the nannies of this process have started."""
    import psutil

    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


class Cluster:
    """A dask scheduler and workers (each with a nanny that starts it again) as real processes of their own session."""

    def __init__(self, folder: Path, workers: int = 2, **settings: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.file = folder / "scheduler.json"
        given = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(folder)} | settings
        self._environment = os.environ | given
        common = ["--scheduler-file", str(self.file), "--host", "127.0.0.1", "--no-dashboard"]
        self.scheduler = self._start("scheduler", *common, "--port", "0")
        self.nannies = self._start("worker", *common, "--nworkers", str(workers), "--nthreads", "1")
        self.workers = workers

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )

    def _registered(self) -> int:
        log = (self.folder / "log").read_text()
        return log.count("Register worker addr") - log.count("Remove worker addr")

    def worker_pids(self) -> list[int]:
        """Processes that run tasks."""
        return spawned(self.nannies.pid)

    def await_workers(self, seconds: float = 15) -> bool:
        """Until every worker is known to the scheduler: a nanny whose worker dies while it starts gives up. False if
        one does not come back."""
        deadline = time.monotonic() + seconds
        while self._registered() < self.workers or len(self.worker_pids()) < self.workers:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """Kill it all."""
        for pid in [self.nannies.pid, *self.worker_pids(), self.scheduler.pid]:
            for number in (signal.SIGKILL, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        for process in (self.nannies, self.scheduler):
            process.wait(20)


class ForkedCluster:
    """A dask scheduler and two workers of one thread, without nannies, forked from the zygote: quick to have."""

    def __init__(self, case: Case, **settings: str) -> None:
        self.folder = case.folder / "cluster"
        self.folder.mkdir()
        self.file = self.folder / "scheduler.json"
        self._zygote = case.lab.zygote()
        self._environment = {"TMPDIR": str(self.folder), "HOME": str(self.folder)} | settings
        self._started: list[Running] = []
        self.begin()

    def begin(self) -> None:
        """Start it, a second time too: workers that lost a scheduler end by themselves."""
        common = ["--scheduler-file", str(self.file), "--host", "127.0.0.1", "--no-dashboard"]
        self.scheduler = self._start("scheduler", *common, "--port", "0")
        assert wait(self.file.exists, self.scheduler), self.scheduler.err.read_text()
        self.workers = [self._start("worker", *common, "--no-nanny", "--nthreads", "1") for _ in range(2)]
        assert wait(lambda: self._registered() == 2, self.scheduler), self.scheduler.err.read_text()

    def _registered(self) -> int:
        lines = self.scheduler.err.read_text().splitlines()
        return len({line.partition("addr:")[2].split()[0] for line in lines if "Register worker addr:" in line})

    def _start(self, program: str, *arguments: str) -> Running:
        number = len(self._started)
        files = {"out": self.folder / f"{number}.out", "err": self.folder / f"{number}.err"}
        self._started.append(self._zygote.start(program, *arguments, cwd=self.folder, env=self._environment, **files))
        return self._started[-1]

    def close(self) -> None:
        """Kill it all."""
        for running in self._started:
            running.kill_session()
        for running in self._started:
            running.require_no_process_left()
            running.poll()


_clusters: dict[tuple[str, int], Cluster] = {}


def shared_cluster(lab: Lab) -> Cluster:
    """A cluster that several cases of this thread use."""
    key = (str(lab.folder), threading.get_ident())
    while key not in _clusters or not _clusters[key].await_workers():
        if key in _clusters:
            _clusters.pop(key).close()
        _clusters[key] = Cluster(lab.folder / f"cluster-{time.time_ns()}")
    return _clusters[key]


def close_clusters() -> None:
    """End the shared ones."""
    while _clusters:
        _clusters.popitem()[1].close()


def first_object(case: Case) -> Callable[[], bool]:
    return lambda: any(case.out.glob("0/c/*/*/*"))


def in_the_run(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    return [[round(rng.uniform(0, lab.undisturbed(MEDIUM).seconds), 4), rng.randrange(8)] for _ in range(count)]


@experiment("worker-killed", "SIGKILL of a worker process at a random moment; the run goes on", in_the_run)
def worker_killed(lab: Lab, delay: float, which: int) -> str:
    cluster = shared_cluster(lab)
    with a_case(lab) as case:
        running = case.start("--scheduler-file", str(cluster.file), "--json")
        wait(case.ledger.exists, running)
        time.sleep(delay)
        pids = cluster.worker_pids()
        if pids:
            os.kill(pids[which % len(pids)], signal.SIGKILL)
        had_finished = running.poll() is not None
        ended = running.wait()
        case.check_told(ended, 0)
        assert ended.report["tiles"] == len(lab.undisturbed(MEDIUM).tiles)
        case.check_finished()
        return "had finished" if had_finished else "went on"


@experiment(
    "worker-stopped",
    "a worker stopped (SIGSTOP) past the scheduler's patience of 2 s, and woken before or after the end",
    in_the_run,
)
def worker_stopped(lab: Lab, delay: float, which: int) -> str:
    with a_case(lab) as case:
        cluster = ForkedCluster(case, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2s")
        try:
            running = case.start("--scheduler-file", str(cluster.file))
            wait(case.ledger.exists, running)
            time.sleep(delay)
            chosen = cluster.workers[which % 2]
            chosen.signal(signal.SIGSTOP)
            if which % 4 > 1:  # wakes while the others do its work again
                told = f"Remove worker addr: {worker_address(chosen)}"
                wait(lambda: told in cluster.scheduler.err.read_text() or running.poll() is not None, running)
                chosen.signal(signal.SIGCONT)
            had_finished = running.poll() is not None
            ended = running.wait()
            case.check_told(ended, 0)
            chosen.signal(signal.SIGCONT)
            time.sleep(0.3)
            case.check_finished()
        finally:
            cluster.close()
        return "had finished" if had_finished else "went on"


def worker_address(worker: Running) -> str:
    """As it told in its log."""
    return worker.err.read_text().partition("Start worker at:")[2].split()[0]


@experiment(
    "scheduler-killed",
    "SIGKILL of the scheduler at a random moment: for good (exit 75), with the driver, or with a new one in its place;"
    " then `--resume`",
    in_the_run,
)
def scheduler_killed(lab: Lab, delay: float, how: int) -> str:
    comes_back, with_driver = how % 3 == 2, how % 3 == 1
    with a_case(lab) as case:
        cluster = ForkedCluster(case)
        try:
            running = case.start(
                *("--scheduler-file", str(cluster.file), "--json"),
                env={"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"},
                constants={"tiledblend.run.connection:RECONNECT_SECONDS": 60 if comes_back else 1},
            )
            wait(case.ledger.exists, running)
            time.sleep(delay)
            cluster.scheduler.signal(signal.SIGKILL)
            if with_driver:
                running.signal(signal.SIGKILL)
            if comes_back:
                cluster.scheduler.wait()
                cluster.file.unlink()
                cluster.begin()
            ended = running.wait()
        finally:
            cluster.close()
        # A driver that has not yet seen its scheduler at work does not wait for another one.
        early = "no dask scheduler answers" in ended.err or "before the first tile" in ended.err
        if early:
            assert not case.objects(), "tiles before the scheduler was asked"
            case.check_told(ended, 6, 75)
        else:
            case.check_told(ended, *((-signal.SIGKILL, 0) if with_driver else (0,) if comes_back else (75, 0)))
            assert ended.code != 75 or "scheduler" in ended.err, ended
        case.check_hidden_or_right()
        if ended.code == 0:
            case.check_finished()
        # Two workers of one thread; a worker that has lost its scheduler may end a tile, too.
        case.check_resumes(in_flight=IN_FLIGHT + 2)
        return f"exit {ended.code} at the start" if early else "a new one came" if comes_back else f"exit {ended.code}"


@experiment(
    "local-workers-killed",
    "`--workers 2`: SIGKILL of driver and scheduler (one process) or of a worker, or SIGTERM to every process, then"
    " `--resume`",
    in_the_run,
)
def local_workers(lab: Lab, delay: float, how: int) -> str:
    what = ("driver", "all", "worker")[how % 3]
    with a_case(lab) as case:
        running = case.start("--workers", "2")
        wait(first_object(case), running)
        time.sleep(delay)
        if what == "all":
            running.signal_session(signal.SIGTERM)
        elif what == "driver":
            running.signal(signal.SIGKILL)
        elif workers := spawned(running.pid):
            with suppress(ProcessLookupError):
                os.kill(workers[how % len(workers)], signal.SIGKILL)
        running.wait()
        running.require_no_process_left()
        ended = running.wait()  # with what the last of its processes said
        case.check_told(ended, *{"all": (75, 0), "driver": (-signal.SIGKILL, 0), "worker": (0,)}[what])
        case.check_hidden_or_right()
        if ended.code == 0:
            case.check_finished()
        case.check_resumes(in_flight=2 * IN_FLIGHT)  # two workers of two threads
        return f"{what}: exit {ended.code}"
