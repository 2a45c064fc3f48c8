"""A few hundred mutants of every layout, and those that once failed.

The long form: `python tests/hostile/mutants.py --seed 1 --count 100000`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus import Base, make_corpus
from mutants import GOOD, judge, read_everything, run, write_files
from mutate import Mutant

COUNT = int(os.environ.get("TILEDBLEND_MUTANTS", "600"))
SEED = int(os.environ.get("TILEDBLEND_MUTANTS_SEED", "4"))
JOBS = int(os.environ.get("TILEDBLEND_JOBS", "16"))

# (seed, number) of mutants that once hung, took gigabytes, wrote on stderr, or escaped as another exception.
REGRESSIONS = Path(__file__).with_name("regressions")


def test_mutants(tmp_path: Path) -> None:
    tally = run(SEED, range(COUNT), tmp_path)
    assert sum(tally.outcomes.values()) == COUNT
    assert not tally.failures
    assert tally.outcomes["refused"] > COUNT / 3
    assert tally.outcomes["same"] > 0


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {base.name: base for base in make_corpus(tmp_path_factory.mktemp("corpus"))}


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*")), ids=lambda path: path.name)
def test_what_once_failed(path: Path, bases: dict[str, Base], capfd: pytest.CaptureFixture[str]) -> None:
    from tiledblend.errors import BadInputError

    with pytest.raises(BadInputError) as caught:
        read_everything(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["v3-sharded", "ome-0.5"])
def test_a_chunk_beyond_its_shards_end_is_no_missing_chunk(tmp_path: Path, bases: dict[str, Base], name: str) -> None:
    """zarr-python gives zeros for it where a read touches that chunk alone."""
    import google_crc32c

    from tiledblend.errors import BadInputError
    from tiledblend.geometry import Region
    from tiledblend.sources import open_source

    path, array = tmp_path / "a.zarr", "0/" if name == "ome-0.5" else ""
    write_files(bases[name].files, path)
    chunk = 16 if array else 32
    target = path / f"{array}c/0/0/0"
    data = bytearray(target.read_bytes())
    data[-68 + 16 : -68 + 24] = len(data).to_bytes(8, "little")  # the offset of the chunk (0, 1)
    data[-4:] = google_crc32c.value(bytes(data[-68:-4])).to_bytes(4, "little")
    target.write_bytes(data)
    with pytest.raises(BadInputError, match="damaged"):
        open_source(str(path)).read(Region(0, chunk, chunk, 2 * chunk))


def test_jobs(tmp_path: Path) -> None:
    """Whole jobs with a mutant in them; the long form: `python tests/hostile/jobs.py --seed 61 --count 5000`."""
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are forked and counted by /proc")
    from jobs import run as run_jobs

    tally, _ = run_jobs(SEED, range(JOBS), tmp_path)
    assert sum(tally.outcomes.values()) == JOBS
    assert not tally.failures
    assert tally.outcomes["refused"] > JOBS / 4


def test_the_judge_sees_what_it_must(tmp_path: Path, bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, undetected damage and foreign exceptions are failures, whoever makes them."""
    base = bases["deflate"]
    path = tmp_path / "a.tif"
    write_files(base.files, path)
    sound = read_everything(path)
    mutant = Mutant(base.files, ("flip_bits",), payload=True, meaning=False)

    def verdict(found: object) -> str:
        def read(_: Path) -> object:
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr("mutants.read_everything", read)
        return judge(base, mutant, path, sound)[0]

    other, hole = [sound[0] ^ 1], [sound[0].copy()]
    hole[0][8:16, 16:24] = 0
    assert verdict(sound) == "same"
    assert verdict(other) == "undetected"
    assert verdict(hole) == "zeros"
    assert verdict(KeyError("x")) == "foreign"
    assert verdict(MemoryError()) == "memory"
    assert not {"undetected", "zeros", "foreign", "memory"} & set(GOOD)


def test_bases_read_as_they_were_written(tmp_path: Path, bases: dict[str, Base]) -> None:
    from corpus import HEIGHT, WIDTH, pixels

    for name in ("raw-tiled", "deflate", "v3-sharded", "v2-gzip", "ome-0.4"):
        path = tmp_path / name
        write_files(bases[name].files, path)
        np.testing.assert_array_equal(read_everything(path)[0], pixels()[:HEIGHT, :WIDTH])
