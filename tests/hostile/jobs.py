"""Runs whole jobs with a mutant among their inputs, as the command would, and judges what comes of each.

    python tests/hostile/jobs.py --seed 1 --count 5000 --keep FOLDER

A job is decided by (seed, number) and the corpus: which mutant, in which place of the job, cut how. It runs in a
process of its own, forked from one that has imported everything, with the embedded cluster. Exit code 1 if one failed.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from corpus import Base, make_corpus
from mutants import (
    BLOCK,
    GOOD,
    Tally,
    _has_empty_block,
    _is_zeroed_by_hand,
    _suffix,
    long_form,
    make_mutant,
    write_files,
)
from mutate import Mutant

sys.path += [str(Path(__file__).parents[1] / "faults"), str(Path(__file__).parents[1])]
from harness import Ended, Running, Zygote
from reference import Picture, composite

SLOW_SECONDS = 15.0
ADDRESS_SPACE = 4 << 30
MOST_READ = 1 << 24
MOST_CHUNKS = 4096
ROLES = ("base", "overlay", "overlay", "mask", "alone", "twice")
"""What a mutant is in its job: also the only image, or overlay and mask at once."""
CUTS = ((16, 32), (16, 16), (32, 32), (16, 64))
"""(chunk, shard) in pixels: 24 to 4 tiles of the corpus' images."""
REFUSALS = (2, 3, 4)
"""Usage and refusal too: a changed description may ask for what is not to be had, such as unlike sizes."""

logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class JobCase:
    """A mutant's job. role: of ROLES. partner: a sound image like the base, mask: sound too. feather: in px."""

    base: Base
    mutant: Mutant
    role: str
    cut: tuple[int, int]
    feather: int
    threads: int
    version: str

    def images(self, sound: Path, path: Path) -> list[Path]:
        """The images of the job, bottom first."""
        partner = sound / f"{self.base.name}.tif"
        places = {"base": [path, partner], "mask": [partner, sound / f"{self.base.name}-top.tif"], "alone": [path]}
        return places.get(self.role, [partner, path])

    def mask(self, sound: Path, path: Path) -> Path | None:
        if self.role == "alone":
            return None
        return path if self.role in ("mask", "twice") else sound / f"{self.base.name}-mask.tif"

    def arguments(self, sound: Path, path: Path, out: Path) -> list[str]:
        mask = self.mask(sound, path)
        of_mask = [] if mask is None else ["--mask", str(mask), "--mask-values", "0,255"]
        of_mask += ["--feather", f"{self.feather}px"] if mask is not None and self.feather else []
        chunk, shard = self.cut
        cut = ["--chunk", str(chunk), "--shard", str(shard), "--ome-zarr", self.version]
        images = map(str, self.images(sound, path))
        return ["blend", *images, *of_mask, *cut, "--threads-per-worker", str(self.threads), "--json", "-o", str(out)]


def make_case(seed: int, number: int, bases: list[Base]) -> JobCase:
    """The job that (seed, number) decides."""
    base, mutant = make_mutant(seed, number, bases)
    rng = np.random.default_rng((seed, number, 1))
    feather, version = (0, 0, 3)[int(rng.integers(3))], ("0.5", "0.5", "0.4")[int(rng.integers(3))]
    role, cut = ROLES[int(rng.integers(len(ROLES)))], CUTS[int(rng.integers(len(CUTS)))]
    return JobCase(base, mutant, role, cut, feather, 1 + int(rng.integers(2)), version)


# --- what an independent reader sees


FILLS = (37, 201)
"""What is put where a chunk cannot be decoded, one after the other: a right result shows neither."""


def readings(path: Path) -> Iterator[tuple[Any, ...]]:
    """Every image (y, x, channel) that tifffile or zarr-python reads in a file, finest first.

    Each is one array, or one for each of FILLS where some of its chunks cannot be decoded.
    """
    yield from _tiff_readings(path) if path.is_file() else _zarr_readings(path)


def _tiff_readings(path: Path) -> Iterator[tuple[Any, ...]]:
    with tifffile.TiffFile(path) as file:
        for level in [level for series in file.series for level in series.levels]:
            page = level.keyframe
            if level.size > MOST_READ:
                continue
            try:
                found = [level.asarray(maxworkers=1)]
            except Exception:  # whatever an independent reader thinks of a damaged file
                found = _decodable(level)
            pictures = [_last_channel(pixels, level.axes) for pixels in found]
            if pictures and pictures[0] is not None:
                yield from zip(*(_turned(pixels, page) for pixels in pictures), strict=True)


def _decodable(level: Any) -> list[Any]:
    """A level of one page, FILLS where a segment cannot be decoded; [] where none can, or there are more pages."""
    page = level.keyframe
    if len(level.pages) != 1 or len(page.shape) not in (2, 3):
        return []
    found, decoded = [np.full(page.shaped, fill, page.dtype) for fill in FILLS], 0
    handle = page.parent.filehandle
    for number, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=False)):
        try:
            handle.seek(offset)
            data, place, shape = page.decode(handle.read(size), number, jpegtables=page.jpegtables)
            frame, _, y, x, _ = place
            for image in found:
                part = image[frame, 0, y : y + shape[1], x : x + shape[2]]
                part[...] = data[0, : part.shape[0], : part.shape[1]]
            decoded += 1
        except Exception:  # as above
            continue
    return [image.reshape(level.shape) for image in found] if decoded else []


def _turned(pixels: Any, page: Any) -> Iterator[Any]:
    """As orientation and photometric interpretation would have it."""
    value = page.tags.valueof(274, 1)
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    pixels = pixels.swapaxes(0, 1) if value in (5, 6, 7, 8) else pixels
    y, x = flips.get(value, (1, 1)) if isinstance(value, int) else (1, 1)
    pixels = pixels[::y, ::x]
    yield pixels
    if page.compression == 33003 and pixels.shape[2] == 3:  # Aperio's YCbCr, which tifffile leaves as it is
        y, cb, cr = (pixels[:, :, c].astype(float) - (c > 0) * 128 for c in range(3))
        red, green, blue = y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb
        yield np.clip(np.rint(np.stack([red, green, blue], 2)), 0, 255).astype(np.uint8)
    if page.photometric == 0 and pixels.dtype.kind == "u":
        yield np.iinfo(pixels.dtype).max - pixels


def _last_channel(pixels: Any, axes: str) -> Any:
    """(y, x, channel), or None where it is no single picture."""
    keep = [axis for axis, size in zip(axes, pixels.shape, strict=True) if axis in "YX" or size != 1]
    pixels = pixels.reshape([size for axis, size in zip(axes, pixels.shape, strict=True) if axis in "YX" or size != 1])
    if pixels.ndim == 2:
        return pixels[:, :, None]
    if pixels.ndim != 3 or keep.count("Y") != 1 or keep.count("X") != 1:
        return None
    order = [keep.index("Y"), keep.index("X"), next(i for i, axis in enumerate(keep) if axis not in "YX")]
    return pixels.transpose(order)


def _zarr_readings(path: Path) -> Iterator[tuple[Any, ...]]:
    for place in [path, *sorted(child for child in path.iterdir() if child.is_dir())]:
        try:
            array = zarr.open_array(place, mode="r")
            if array.size > MOST_READ:
                continue
        except Exception:  # as above
            continue
        try:
            found = [np.asarray(array[:])]
        except Exception:  # as above
            found = _readable(array)
        found = [pixels.reshape([size for size in pixels.shape if size != 1]) for pixels in found]
        if found and found[0].ndim == 2:
            yield tuple(pixels[:, :, None] for pixels in found)
        elif found and found[0].ndim == 3:
            for axis in range(3):
                yield tuple(np.moveaxis(pixels, axis, 2) for pixels in found)


def _readable(array: Any) -> list[Any]:
    """An array, FILLS where a chunk cannot be read; [] where none can."""
    if array.size // max(1, int(np.prod(array.chunks))) > MOST_CHUNKS:
        return []
    found, read = [np.full(array.shape, fill, array.dtype) for fill in FILLS], 0
    for place in np.ndindex(*(-(-size // side) for size, side in zip(array.shape, array.chunks, strict=True))):
        where = tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, array.chunks, strict=True))
        try:
            pixels = np.asarray(array[where])
        except Exception:  # as above
            continue
        read += 1
        for image in found:
            image[where] = pixels
    return found if read else []


def is_right(case: JobCase, out: Path, seen: Any, partner: Any, top: Any, mask: Any) -> bool:
    """True if a result is the composite of these arrays, in float64 on the whole."""
    found = np.moveaxis(np.asarray(zarr.open_group(out, mode="r")["0"]), 0, 2)
    values = (0, 255)
    where = {"mask": seen, "twice": seen}.get(case.role, mask)
    layers = {
        "base": [seen, partner], "overlay": [partner, seen], "twice": [partner, seen], "mask": [partner, top],
        "alone": [seen],
    }[case.role]  # fmt: skip
    pictures = [Picture(layer) for layer in layers]
    if case.role != "alone":
        pictures[-1].mask, pictures[-1].values, pictures[-1].sigma = where, values, float(case.feather)
    if len({picture.image.shape for picture in pictures}) != 1 or layers[0].shape != found.shape or 0 in seen.shape:
        return False
    expected = composite(pictures, found.shape[:2])
    difference = np.abs(found.astype(float) - expected.values)
    rounding = 0.5 if found.dtype.kind == "u" else 1e-3
    return bool((difference <= expected.allowed + rounding + 1e-6).all())


# --- one job


class Laboratory:
    """Sound partners of every base and a process that forks commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sound = folder, folder / "sound"
        self.sound.mkdir()
        (folder / "corpus").mkdir()
        self.bases = list(make_corpus(folder / "corpus"))
        self.arrays = {base.name: self._write_partners(base) for base in self.bases}
        self.zygote = Zygote()

    def _write_partners(self, base: Base) -> tuple[Any, ...]:
        """(pixels, partner, top image, mask) of a base's shape and dtype; the last three are written, too."""
        path = self.folder / f"base{_suffix(base)}"
        write_files(base.files, path)
        (pixels,) = next(readings(path))
        if path.is_dir():
            shutil.rmtree(path)
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        mask = (((y - 30) ** 2 + (x - 40) ** 2 < 24**2) * 255).astype(np.uint8)
        how = {"tile": (32, 32), "compression": "zlib", "metadata": None}
        planes = {"photometric": "rgb"} if pixels.shape[2] == 3 else {"photometric": "minisblack"}
        partner, top = pixels[::-1].copy(), pixels[:, ::-1].copy()
        for name, image in (("", partner), ("-top", top)):
            image = image if image.shape[2] > 1 else image[:, :, 0]
            tifffile.imwrite(self.sound / f"{base.name}{name}.tif", image, **planes, **how)
        tifffile.imwrite(self.sound / f"{base.name}-mask.tif", mask, **how)
        return pixels, partner, top, mask

    def close(self) -> None:
        self.zygote.close()

    def judge(self, case: JobCase) -> tuple[str, str]:
        """(verdict, detail); verdicts as of `mutants`."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        (place / "tmp").mkdir()
        try:
            return _JobRun(self, case, place).verdict()
        except AssertionError as error:
            return "broken", str(error)[:9000]
        finally:
            shutil.rmtree(place)


def _filled(pixels: Any, fill: int) -> Any:
    """An image without its empty blocks: where a result is right with any fill, it shows none of them."""
    found, blocks = pixels.copy(), (pixels == 0).all(axis=2)
    for y in range(0, blocks.shape[0], BLOCK):
        for x in range(0, blocks.shape[1], BLOCK):
            if blocks[y : y + BLOCK, x : x + BLOCK].all():
                found[y : y + BLOCK, x : x + BLOCK] = fill
    return found


class _JobRun:
    """One job in a folder of its own."""

    def __init__(self, laboratory: Laboratory, case: JobCase, place: Path) -> None:
        self.laboratory, self.case, self.place = laboratory, case, place
        self.path, self.out = place / f"mutant{_suffix(case.base)}", place / "out.ome.zarr"
        write_files(case.mutant.files, self.path)

    def verdict(self) -> tuple[str, str]:
        ended = self.run()
        if ended.code == 0:
            return self._of_a_result(ended)
        self._check_refusal(ended)
        kept = self.stored()
        if kept:
            again = self.run("--resume")
            self._check_refusal(again)
            assert again.code == ended.code, f"first {ended}, with --resume {again}"
            now = self.stored()
            lost = {key for key, state in kept.items() if now.get(key) != state}
            assert not lost, f"made again: {sorted(lost)} of {len(kept)}"
        return "refused", f"{len(kept)} kept" if kept else ""

    def run(self, *more: str) -> Ended:
        arguments = [*self.case.arguments(self.laboratory.sound, self.path, self.out), *more]
        running: Running = self.laboratory.zygote.start(
            "tiledblend", *arguments, cwd=self.place / "tmp", out=self.place / "1", err=self.place / "2",
            env={"TMPDIR": str(self.place / "tmp"), "HOME": str(self.place / "tmp")},
            limits={"RLIMIT_AS": ADDRESS_SPACE, "RLIMIT_CORE": 0},
        )  # fmt: skip
        ended = running.wait(SLOW_SECONDS)
        running.require_no_process_left()
        left = [path.name for path in self.place.rglob("*") if ".tiledblend-tmp-" in path.name]
        left += [path.name for path in (self.place / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert not left, f"temporary files left: {left}; {ended}"
        return ended

    def stored(self) -> dict[str, tuple[int, int]]:
        """Objects of tiles that have their receipt: inode and time by key."""
        found: dict[str, tuple[int, int]] = {}
        for log in self.place.glob("out.ome.zarr.ledger/receipts*"):
            for line in log.read_text().splitlines():
                for path in self.out.rglob("*"):
                    if path.is_file() and f'"{path.relative_to(self.out)}"' in line:
                        found[str(path.relative_to(self.out))] = path.stat().st_ino, path.stat().st_mtime_ns
        return found

    def _check_refusal(self, ended: Ended) -> None:
        assert ended.code in REFUSALS, ended
        lines = ended.err.splitlines()
        errors = [line for line in lines if line.startswith("tiledblend: error: ")]
        assert len(errors) == 1, ended
        assert "error: unexpected" not in errors[0], ended
        assert all(line.startswith("tiledblend: ") for line in lines), ended
        assert str(self.path) in errors[0], f"the mutant is not named: {ended}"
        assert not (self.out / "zarr.json").exists(), "a failed run left a result that opens"
        assert not (self.out / ".zattrs").exists(), "a failed run left a result that opens"

    def _of_a_result(self, ended: Ended) -> tuple[str, str]:
        lines = ended.err.splitlines()
        assert all(line.startswith("tiledblend: ") and "error" not in line[:20] for line in lines), ended
        beside = sorted(path.name for path in self.place.iterdir())
        assert beside == sorted(["1", "2", "tmp", self.path.name, "out.ome.zarr", "out.ome.zarr.manifest"]), beside
        pixels, partner, top, mask = self.laboratory.arrays[self.case.base.name]
        if is_right(self.case, self.out, pixels, partner, top, mask):
            return "same", ""
        case, mutant, told = self.case, self.case.mutant, bool(ended.report["unstored"])
        for seen in readings(self.path):
            if not all(is_right(case, self.out, pixels, partner, top, mask) for pixels in seen):
                continue
            if told:
                return "reported", ""
            filled = [_filled(seen[0], fill) for fill in FILLS]
            shows_empty = not all(is_right(case, self.out, pixels, partner, top, mask) for pixels in filled)
            if _has_empty_block(seen[0]) and shows_empty and not _is_zeroed_by_hand(case.base, mutant):
                return "zeros", ended.err[-300:]
            if mutant.meaning:
                return "meaning", ""
            return ("payload", "") if mutant.payload and not case.base.checked else ("undetected", ended.err[-300:])
        return "wrong", f"no reading of the mutant gives this result; {ended.out[:300]} {ended.err[-500:]}"


def run(
    seed: int, numbers: range, folder: Path, keep: Path | None = None, seconds: float = 1e9
) -> tuple[Tally, Laboratory]:
    """Judge the jobs of these numbers. keep: where mutants are put whose job failed."""
    laboratory, tally, deadline = Laboratory(folder), Tally(), time.monotonic() + seconds
    try:
        for number in numbers:
            if time.monotonic() > deadline:
                break
            case = make_case(seed, number, laboratory.bases)
            verdict, detail = laboratory.judge(case)
            how = f"{case.role} {case.cut} feather {case.feather} threads {case.threads} {case.version}"
            tally.add(number, case.base.name, verdict, f"{how}; {case.mutant.what}; {detail}")
            tally.kept += verdict == "refused" and bool(detail)
            if verdict not in GOOD and keep is not None:
                write_files(case.mutant.files, keep / f"{case.base.name}-{seed}-{number}{_suffix(case.base)}")
    finally:
        laboratory.close()
    return tally, laboratory


def main() -> int:
    return long_form("jobs", 200, lambda *given: run(*given)[0], __doc__)


if __name__ == "__main__":
    sys.exit(main())
