"""Opens and reads mutants in forked children under limits, and judges what comes of each.

    python tests/hostile/mutants.py --seed 1 --count 100000 --keep FOLDER

A mutant is decided by (seed, number) and the corpus. Exit code 1 if one failed; those are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Base, make_corpus
from mutate import Mutant, mutate

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.opening import forget_sources, open_source

BATCH = 64
HANG_SECONDS = 30.0
SLOW_SECONDS = 3.0
MEMORY_MIB = 512
ADDRESS_SPACE = 3 << 30
WHOLE_PIXELS = 1 << 20
BLOCK = 8
MANY_CHANNELS = 4096

ZEROS_BY_HAND = ("zero_run", "table_value", "tag_value", "replace_chunk")
GOOD = ("refused", "same", "payload", "meaning", "reported")
MISSED: list[Any] = []
"""Chunks that the last mutant was said not to store: a run counts and tells them."""


@dataclass
class Tally:
    """outcomes: of every mutant. by_base: the same for each base. failures: (number, base, verdict, details).
    kept: refused jobs that keep finished tiles."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_base: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[tuple[int, str, str, str]] = field(default_factory=list)
    kept: int = 0

    def add(self, number: int, base: str, verdict: str, detail: str) -> None:
        self.outcomes[verdict] += 1
        self.by_base.setdefault(base, Counter())[verdict] += 1
        if verdict not in GOOD:
            self.failures.append((number, base, verdict, detail))


def read_everything(path: Path) -> list[Any]:
    """Pixels of every level: whole when small, else its corners; all through the product's own way of reading."""
    source = open_source(path)
    MISSED.clear()
    if source.channels > MANY_CHANNELS:
        return []  # every one of them is a chunk to look for: sound, but nothing to wait for here
    try:
        return [source.read(region, level) for level in range(len(source.levels)) for region in _regions(source, level)]
    finally:
        MISSED.extend(source.take_missed())
        forget_sources()


def _regions(source: Any, level: int) -> list[Region]:
    height, width = source.levels[level].shape
    if height * width * source.channels <= WHOLE_PIXELS:
        return [Region(0, 0, height, width)]
    side = max(1, int((WHOLE_PIXELS / 4 / max(4, source.channels)) ** 0.5))
    h, w = min(height, side), min(width, side)
    return [Region(0, 0, h, w), Region(height - h, width - w, height, width)]


def judge(base: Base, mutant: Mutant, path: Path, sound: list[Any]) -> tuple[str, str]:
    """(verdict, detail). Verdicts in GOOD: refused in one line; the sound pixels; other pixels for a stated reason."""
    started, before = time.process_time(), _peak_mib()
    verdict, detail = _outcome(base, mutant, path, sound)
    if verdict in GOOD and time.process_time() - started > SLOW_SECONDS:
        return "slow", f"{time.process_time() - started:.1f} s"
    if verdict in GOOD and _peak_mib() - before > MEMORY_MIB:
        return "memory", f"{_peak_mib() - before:.0f} MiB"
    return verdict, detail


def _outcome(base: Base, mutant: Mutant, path: Path, sound: list[Any]) -> tuple[str, str]:
    try:
        found = read_everything(path)
    except BadInputError as error:
        message = str(error)
        if "\n" in message or str(path) not in message or len(message) > 2000:
            return "message", message[:500]
        return "refused", message
    except MemoryError as error:
        return "memory", repr(error)
    except BaseException as error:
        return "foreign", f"{type(error).__name__}: {error}"[:500]
    if len(found) == len(sound) and all(_same(a, b) for a, b in zip(found, sound, strict=True)):
        return "same", ""
    if MISSED:
        return "reported", ""
    if any(_has_empty_block(pixels) for pixels in found) and not _is_zeroed_by_hand(base, mutant):
        return "zeros", str([pixels.shape for pixels in found])
    if mutant.meaning:
        return "meaning", ""
    if mutant.payload and not base.checked:
        return "payload", ""
    return "undetected", str([pixels.shape for pixels in found])


def _same(one: Any, two: Any) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and np.array_equal(one, two)


def _has_empty_block(pixels: Any) -> bool:
    """True if a square of BLOCK pixels is zero in every channel; no sound image has one."""
    empty = (pixels == 0).all(axis=2)
    height, width = (n // BLOCK * BLOCK for n in empty.shape)
    blocks = empty[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return bool(blocks.all(axis=(1, 3)).any())


def _is_zeroed_by_hand(base: Base, mutant: Mutant) -> bool:
    """Zeros written over pixels that are stored as they are: a sound file may hold exactly those bytes."""
    return "raw" in base.name and any(name in ZEROS_BY_HAND for name in mutant.what)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- children


def run(seed: int, numbers: range, folder: Path, keep: Path | None = None, seconds: float = 1e9) -> Tally:
    """Judge the mutants of these numbers, in children of BATCH each. keep: where those that fail are put."""
    bases = list(make_corpus(folder))
    sounds = _sound_pixels(bases, folder)
    tally, deadline = Tally(), time.monotonic() + seconds
    pending = list(numbers)
    while pending and time.monotonic() < deadline:
        batch, pending = pending[:BATCH], pending[BATCH:]
        while batch:
            batch = _run_child(seed, batch, bases, sounds, folder, tally)
    for number, *_ in tally.failures:
        if keep is not None:
            keep_mutant(seed, number, bases, keep)
    return tally


def _sound_pixels(bases: list[Base], folder: Path) -> dict[str, list[Any]]:
    sounds = {}
    for base in bases:
        path = folder / f"sound{_suffix(base)}"
        write_files(base.files, path)
        sounds[base.name] = read_everything(path)
        assert not any(_has_empty_block(pixels) for pixels in sounds[base.name]), base.name
        _remove(path)
    return sounds


def _suffix(base: Base) -> str:
    return ".tif" if base.is_tiff else ".zarr"


def write_files(files: dict[str, bytes], path: Path) -> None:
    for name, data in files.items():
        target = path / name if name else path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if "" not in files:
        path.mkdir(exist_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_mutant(seed: int, number: int, bases: list[Base]) -> tuple[Base, Mutant]:
    """The mutant that (seed, number) decides."""
    rng = np.random.default_rng((seed, number))
    base = bases[int(rng.integers(len(bases)))]
    return base, mutate(base, rng)


def keep_mutant(seed: int, number: int, bases: list[Base], keep: Path) -> Path:
    base, mutant = make_mutant(seed, number, bases)
    path = keep / f"{base.name}-{seed}-{number}{_suffix(base)}"
    write_files(mutant.files, path)
    return path


def _run_child(
    seed: int, batch: list[int], bases: list[Base], sounds: dict[str, list[Any]], folder: Path, tally: Tally
) -> list[int]:
    """Judge a batch in a fork; returns what is left of it when the child died or hung, which is a verdict too."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _judge_all(seed, batch, bases, sounds, folder, writing)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    done, text, hung = 0, b"", False
    while True:
        ready, _, _ = select.select([reading], [], [], HANG_SECONDS)
        if not ready:
            hung = True
            os.kill(child, signal.SIGKILL)
            break
        data = os.read(reading, 1 << 16)
        if not data:
            break
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            tally.add(*json.loads(line))
            done += 1
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    if done == len(batch):
        return []
    if hung or status:
        base, mutant = make_mutant(seed, batch[done], bases)
        how = "hang" if hung else "crash"
        tally.add(batch[done], base.name, how, f"status {status}, {mutant.what}")
        return batch[done + 1 :]
    return batch[done:]  # the child asked for a fresh one


def _judge_all(
    seed: int, batch: list[int], bases: list[Base], sounds: dict[str, list[Any]], folder: Path, writing: int
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    place = Path(tempfile.mkdtemp(dir=folder))
    noise = os.open(place / "stderr", os.O_RDWR | os.O_CREAT)
    os.dup2(noise, 2)
    try:
        for number in batch:
            base, mutant = make_mutant(seed, number, bases)
            path = place / f"m{_suffix(base)}"
            write_files(mutant.files, path)
            said = os.fstat(noise).st_size
            verdict, detail = judge(base, mutant, path, sounds[base.name])
            if verdict in GOOD and os.fstat(noise).st_size > said:
                verdict, detail = "stderr", os.pread(noise, 300, said).decode(errors="replace")
            _remove(path)
            detail = "" if verdict in GOOD else f"{mutant.what} {detail}"
            os.write(writing, json.dumps([number, base.name, verdict, detail]).encode() + b"\n")
            if verdict in ("memory", "slow"):
                return
    finally:
        shutil.rmtree(place, ignore_errors=True)


def long_form(what: str, count: int, trial: Callable[..., Tally], about: str | None) -> int:
    """The command of a long form: `count` numbers of a seed through `trial`; prints what failed and the outcomes.

    trial: takes (seed, numbers, folder, keep, seconds).
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path, help="add the outcome to this file, a line a run")
    options = parser.parse_args()
    started = time.monotonic()
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        numbers = range(options.first, options.first + options.count)
        tally = trial(options.seed, numbers, Path(folder), options.keep, options.seconds)
    for number, base, verdict, detail in tally.failures:
        print(f"{options.seed}:{number} {base} {verdict}: {detail}")
    total = sum(tally.outcomes.values())
    kept = f", {tally.kept} with tiles kept" if tally.kept else ""
    print(f"{total} {what} in {time.monotonic() - started:.0f} s: {dict(tally.outcomes)}{kept}")
    if options.json:
        document = {"seed": options.seed, "first": options.first, "total": total, "outcomes": tally.outcomes,
                    "kept": tally.kept, "by_base": tally.by_base, "failures": tally.failures}  # fmt: skip
        with open(options.json, "a") as file:
            file.write(json.dumps(document) + "\n")
    return 1 if tally.failures else 0


def main() -> int:
    return long_form("mutants", 1000, run, __doc__)


if __name__ == "__main__":
    sys.exit(main())
