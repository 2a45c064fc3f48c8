"""What is broken while a run reuses an older result: the run, the older result, or both."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from experiments import Parameters, a_case, damage, experiment, kill, moments
from harness import MEDIUM, ROOT_DOCUMENT, Case, Lab

NAME = "old.ome.zarr"


def older(lab: Lab) -> Path:
    """A finished result of another mask: the same inputs else, so that most of its tiles are right."""
    folder = lab.folder / "older"
    with lab.making:
        if not folder.exists():
            case = lab.case()
            shutil.copytree(lab.inputs(MEDIUM), folder / "inputs")
            _repaint(folder / "inputs" / "mask.tif")
            arguments = case.arguments()
            arguments[arguments.index("--mask") + 1] = str(folder / "inputs" / "mask.tif")
            for name, place in (("base", 1), ("overlay", 2)):
                arguments[place] = str(lab.inputs(MEDIUM) / f"{name}.tif")
            ended = case.run_verb(*arguments)
            assert ended.code == 0, ended
            _copy(case.out, folder / NAME)
            case.remove()
    return folder / NAME


def _repaint(path: Path) -> None:
    import tifffile

    mask = tifffile.imread(path)
    mask[:20, :20] = 255
    tifffile.imwrite(path, mask, tile=(32, 32), compression="zlib")


def _copy(result: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    shutil.copytree(result, to)
    shutil.copy(f"{result}.manifest", f"{to}.manifest")


def own_older(case: Case) -> Path:
    """A copy that may be broken."""
    _copy(older(case.lab), case.folder / "older" / NAME)
    return case.folder / "older" / NAME


def half(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    return [[delay, rng.random() < 0.5] for (delay,) in moments(lab, rng, count)]


@experiment(
    "reuse-killed", "SIGKILL of a run that reuses an older result, then `--resume`, with `--reuse` or without", half
)
def reuse_killed(lab: Lab, delay: float, again: bool) -> str:
    reusing = ["--reuse", str(older(lab))]
    with a_case(lab) as case:
        ended = kill(case, delay, *reusing)
        case.check_resumes(*(reusing if again else []))
        return "killed" if ended.code else "had finished"


@experiment(
    "reuse-replace-killed",
    "the same in place (`--replace --reuse`): the older result or the new one is there, whole, at any moment",
    half,
)
def reuse_replace_killed(lab: Lab, delay: float, again: bool) -> str:
    with a_case(lab) as case:
        _copy(older(lab), case.out)
        before = case.objects()
        running = case.start("--replace", "--reuse", case.given_out, wait_for_ledger=lambda: time.sleep(delay))
        running.signal(signal.SIGKILL)
        ended = running.wait()
        case.check_told(ended, -signal.SIGKILL, 0)
        assert (case.out / ROOT_DOCUMENT).exists(), "nothing is there"
        assert case.objects() in (before, lab.undisturbed(MEDIUM).objects), "visible, and neither the old nor the new"
        more = ["--reuse", case.given_out] if again else []
        case.check_told(case.run("--resume", "--replace", *more), 0)
        case.check_finished()
        return "killed" if ended.code else "had finished"


def damages(lab: Lab, rng: random.Random, count: int) -> list[Parameters]:
    return [[rng.choice(["delete", "tear", "flip"]), rng.randrange(1 << 30)] for _ in range(count)]


@experiment("reuse-damaged", "objects of the older result deleted, torn, bit-flipped: none is taken", damages)
def reuse_damaged(lab: Lab, how: str, seed: int) -> str:
    rng = random.Random(seed)
    with a_case(lab) as case:
        old = own_older(case)
        keys = [key for key in sorted(lab.undisturbed(MEDIUM).objects) if "/c/" in key]
        for key in rng.sample(keys, rng.randint(1, 12)):
            damage(old / key, how, rng)
        ended = case.run("--reuse", str(old), "--json")
        case.check_told(ended, 0)
        case.check_finished()
        return how


@experiment("reuse-removed", "the older result removed while the run goes on", moments)
def reuse_removed(lab: Lab, delay: float) -> str:
    with a_case(lab) as case:
        old = own_older(case)
        running = case.start("--reuse", str(old), "--json", wait_for_ledger=lambda: time.sleep(delay))
        shutil.rmtree(old)
        Path(f"{old}.manifest").unlink()
        ended = running.wait()
        case.check_told(ended, 0)
        case.check_finished()
        return "made the rest" if ended.report["reused_tiles"] < ended.report["tiles"] - 8 else "had taken it"


@experiment("reuse-twice", "two runs that reuse one result at the same time", lambda lab, rng, count: [[]] * count)
def reuse_twice(lab: Lab) -> str:
    reusing = ["--reuse", str(older(lab)), "--json"]
    with a_case(lab) as first, a_case(lab) as second:
        running = [case.start(*reusing) for case in (first, second)]
        for case, one in zip((first, second), running, strict=True):
            ended = one.wait()
            case.check_told(ended, 0)
            assert ended.report["reused_tiles"] > 0
            case.check_finished()
        return "both right"
