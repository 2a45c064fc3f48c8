"""How much damage to stored pixels nothing can find: one bit or byte of a stored segment or chunk changed at a time.

    python tests/hostile/undetectable.py --count 300                     # every layout of the corpus
    python tests/hostile/undetectable.py --count 3000 --tiff slide.svs   # the first level of a file

Prints, for bits and for bytes, how many were refused, gave the sound pixels, or gave others without a word.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from corpus import Base, make_corpus
from mutants import MISSED, read_everything, write_files

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.opening import forget_sources, open_source


@contextmanager
def changed(file: Path, at: int, value: int) -> Iterator[None]:
    """One byte of a file is another one meanwhile."""
    with file.open("r+b") as handle:
        handle.seek(at)
        old = handle.read(1)
        handle.seek(at)
        handle.write(bytes([old[0] ^ value]))
    try:
        yield
    finally:
        with file.open("r+b") as handle:
            handle.seek(at)
            handle.write(old)


def tell(read: Callable[[], list[Any]], sound: list[Any]) -> str:
    """What came of reading damaged pixels."""
    try:
        found = read()
    except BadInputError:
        return "refused"
    finally:
        forget_sources()
    if len(found) == len(sound) and all(np.array_equal(a, b) for a, b in zip(found, sound, strict=True)):
        return "same"
    return "reported" if MISSED else "other pixels"


def of_base(base: Base, folder: Path, count: int, rng: np.random.Generator) -> dict[str, Counter[str]]:
    """Outcomes by "bit" and "byte" for a layout of the corpus."""
    path = folder / f"{base.name}{'.tif' if base.is_tiff else '.zarr'}"
    write_files(base.files, path)
    sound = read_everything(path)
    spans = [span for span in base.spans if span.kind in ("segment", "chunk") and span.size]
    weights = np.array([span.size for span in spans]) / sum(span.size for span in spans)
    found: dict[str, Counter[str]] = {"bit": Counter(), "byte": Counter()}
    for how, tally in found.items():
        for _ in range(count):
            span = spans[int(rng.choice(len(spans), p=weights))]
            at = span.start + int(rng.integers(span.size))
            with changed(path / span.file if span.file else path, at, _value(how, rng)):
                tally[tell(lambda: read_everything(path), sound)] += 1
    return found


def of_slide(slide: Path, folder: Path, count: int, rng: np.random.Generator) -> dict[str, Counter[str]]:
    """The same for the scans of a TIFF's first level, each read as the one tile that it is."""
    path = folder / slide.name
    path.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        height, width, tile = page.imagelength, page.imagewidth, (page.tilelength, page.tilewidth)
    across, data = -(-width // tile[1]), path.read_bytes()
    found: dict[str, Counter[str]] = {"bit": Counter(), "byte": Counter()}
    for how, tally in found.items():
        for _ in range(count):
            index = int(rng.integers(len(places)))
            y, x = index // across * tile[0], index % across * tile[1]
            region = Region(y, x, min(y + tile[0], height), min(x + tile[1], width))
            start, size = places[index]
            scan = data.index(b"\xff\xda", start) + 14
            sound = [open_source(path).read(region, 0)]
            forget_sources()
            with changed(path, int(rng.integers(scan, start + size - 2)), _value(how, rng)):
                tally[tell(lambda region=region: [open_source(path).read(region, 0)], sound)] += 1
    return found


def _value(how: str, rng: np.random.Generator) -> int:
    return 1 << int(rng.integers(8)) if how == "bit" else int(rng.integers(1, 256))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiff", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| layout | checksum | single bits: refused, same, other | whole bytes: refused, same, other |")
        print("|---|---|---|---|")
        if given.tiff:
            _print(given.tiff.name, "no", of_slide(given.tiff, folder, given.count, rng))
            return 0
        at = folder / "at"
        at.mkdir()
        for base in list(make_corpus(folder)):
            found = of_base(base, at, given.count, rng)
            _print(base.name, "yes" if base.checked else "no", found)
    return 0


def _print(name: str, checked: str, found: dict[str, Counter[str]]) -> None:
    cells = []
    for tally in found.values():
        total = sum(tally.values())
        shares = (tally["refused"] + tally["reported"], tally["same"], tally["other pixels"])
        cells.append(" · ".join(f"{100 * share / total:.1f} %" for share in shares))
    print(f"| {name} | {checked} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
