"""Zarr chunks that are not stored: counted and told, in results of tiledblend refused; never a silent fill value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from conftest import Command

import tiledblend as tb
from tiledblend.bytes.objects import DirectoryStore
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region, Tile
from tiledblend.run.tasks import TileJob
from tiledblend.sources import open_source
from tiledblend.sources.zarr import grid as zarr_grid

IMAGE = np.random.default_rng(3).integers(1, 256, (3, 300, 400), dtype=np.uint8)
LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {"chunks": (3, 64, 64)},
    "v3 one channel": {"chunks": (1, 64, 64), "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2": {"chunks": (3, 64, 64), "zarr_format": 2},
    "v2 slash": {
        "chunks": (3, 64, 64),
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "sharded": {"chunks": (3, 32, 32), "shards": (3, 64, 64)},
}


def store(path: Path, values: np.ndarray, names: str = "cyx", **options: Any) -> Path:
    v2 = options.get("zarr_format") == 2
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, dimension_names=None if v2 else list(names), **options
    )
    array[:] = values
    if v2:
        array.attrs["_ARRAY_DIMENSIONS"] = list(names)
    return path


def objects(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs"))


@pytest.mark.parametrize("compressors", [None, "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [0, 3])
def test_an_object_that_was_cut_off_is_no_missing_one(
    tmp_path: Path, layout: str, length: int, compressors: Any
) -> None:
    """zarr-python gives the fill value for a shard of no bytes, as a copy that broke off may leave it."""
    path = store(tmp_path / "a.zarr", IMAGE, compressors=compressors, **LAYOUTS[layout])
    first = objects(path)[0]
    first.write_bytes(first.read_bytes()[:length])
    source = open_source(path)
    for region in (Region(0, 0, 300, 400), Region(3, 5, 20, 30)):
        with pytest.raises(BadInputError, match=r"a\.zarr: level 0, region .*; it is damaged|cannot be read"):
            source.read(region)
    assert source.read(Region(70, 70, 100, 110)).any()


def test_a_place_that_overflows_is_damage_and_no_warning_of_numpys(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", IMAGE, **LAYOUTS["sharded"])
    first = objects(path)[0]
    content = first.read_bytes()
    index = np.frombuffer(content[-4 * 16 - 4 : -4], "<u8").copy()
    index[2] = 2**64 - 10
    checksum = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
    first.write_bytes(content[: -4 * 16 - 4] + index.tobytes() + checksum)
    with pytest.raises(BadInputError) as caught:
        open_source(path).read(Region(0, 0, 300, 400))
    assert "overflow encountered" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lost_objects_are_counted_and_told(command: Command, tmp_path: Path, layout: str) -> None:
    path = store(tmp_path / "a.zarr", IMAGE, **LAYOUTS[layout])
    assert open_source(path).unstored() is None
    stored = objects(path)
    stored[7].unlink()
    stored[-1].unlink()
    inside = {"sharded": (4 + 2, 10 * 13), "v3 one channel": (2, 3 * 5 * 7)}  # the last shard is cut by the image's end
    missing, chunks = inside.get(layout, (2, 5 * 7))
    found = open_source(path).unstored()
    assert found is not None
    assert (found.missing, found.chunks, found.refused) == (missing, chunks, False)
    line = f"{path}: level 0: {missing} of {chunks} chunks are not stored and read as fill value 0"
    assert line in command("plan", path).out
    done = command("blend", path, "-o", tmp_path / "out.ome.zarr", "--json", "--report", tmp_path / "out.html")
    assert done.code == 0
    assert done.err.count(line) == 2  # as a warning at the start, and at the end
    document = json.loads(done.out)
    assert any(line in warning for warning in document["warnings"])
    (unstored,) = document["unstored"]
    assert unstored["missing"] == missing
    assert set(unstored["first"]) == {"y0", "x0", "y1", "x1"}
    assert json.loads(command("plan", path, "--json").out)["unstored"][0]["first"] == unstored["first"]
    assert f"{missing} of {chunks} chunks are not stored" in (tmp_path / "out.html").read_text()
    pixels = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(pixels, zarr.open_array(path, mode="r")[:])
    assert line in command("blend", path, "-o", tmp_path / "out.png").err


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_what_tiledblend_has_stored_must_be_there(command: Command, tmp_path: Path, version: str) -> None:
    """A result stores every chunk: one that is missing was lost."""
    path = store(tmp_path / "a.zarr", IMAGE, chunks=(3, 64, 64))
    result = tmp_path / "in.ome.zarr"
    assert command("blend", path, "-o", result, "--chunk", "64", "--shard", "64", "--ome-zarr", version).code == 0
    again = ("blend", result, "-o", tmp_path / "out.ome.zarr")
    (result / ("0/c/0/2/3" if version == "0.5" else "0/1/2/3")).unlink()
    for verb in (("plan", result), again, ("blend", result, "-o", tmp_path / "out.png")):
        refused = command(*verb)
        assert refused.code == 4
        assert f"{result}: level 0: {3 if version == '0.5' else 1} of 105 chunks are not stored" in refused.error
        assert "the first at [128:192, 192:256]" in refused.error
        assert "--allow-sparse" in refused.error
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(BadInputError, match=r"the chunk at \[128:192, 192:256\] is not stored"):
        open_source(result).read(Region(130, 190, 131, 193))
    open_source(result).read(Region(0, 0, 128, 400))
    assert command(*again, "--allow-sparse").code == 0


@pytest.mark.parametrize("ahead", [True, False])
def test_chunks_that_a_shard_lacks_are_counted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """By the plan where the shards are few files, else as they are read; in each case once."""
    if not ahead:
        monkeypatch.setattr(zarr_grid, "MOST_INDICES", 34)
    values = IMAGE.copy()
    values[:, 32:64, 64:128] = 0  # zarr-python leaves them out
    path = store(tmp_path / "a.zarr", values, **LAYOUTS["sharded"])
    found, line = open_source(path).unstored(), "level 0: 2 of 130 chunks are not stored"
    if ahead:
        assert found is not None
        assert (found.missing, found.first) == (2, Region(32, 64, 64, 96))
    else:
        assert found is None
    assert (line in command("plan", path).out) == ahead
    # Worker processes have the limit as it is; a second run in this process counts again.
    for number, cluster in enumerate(([], ["--workers", "2"] if ahead else [])):
        done = command(
            "blend", path, "-o", tmp_path / f"out{number}.ome.zarr", *cluster, "--chunk", "64", "--shard", "64"
        )
        assert done.code == 0
        assert done.err.count(line) == (2 if ahead else 1)  # at the start, and at the end
    assert line in command("blend", path, "-o", tmp_path / "out.png").err


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_a_chunk_of_no_bytes_is_no_missing_one(tmp_path: Path, compressors: Any) -> None:
    """A shard's index has another mark for those; zarr-python reads fill value where it reads the chunk alone."""
    path = store(tmp_path / "a.zarr", IMAGE, **LAYOUTS["sharded"], compressors=compressors)
    shard = path / "c/0/0/0"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-(4 * 16 + 4) : -4], "<u8").reshape(4, 2).copy()
    index[1] = 0
    data[-68:] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data)
    for region in (Region(0, 32, 10, 64), Region(0, 0, 64, 64), Region(0, 0, 300, 400)):
        with pytest.raises(BadInputError, match=r"a\.zarr: level 0, region .*(damaged|cannot be read)"):
            open_source(path).read(region)
    assert open_source(path).read(Region(0, 0, 32, 32)).any()


@pytest.mark.parametrize("cut", [("64", "128"), ("32", "64")])
def test_a_chunk_that_a_shard_of_a_result_lacks_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: Any
) -> None:
    """Whether its neighbours are passed on as they are or decoded: no index that tiledblend wrote says so."""
    base, result = store(tmp_path / "a.zarr", IMAGE, chunks=(3, 64, 64)), tmp_path / "in.ome.zarr"
    assert command("blend", base, "-o", result, "--chunk", "64", "--shard", "128").code == 0
    shard = result / "0/c/0/1/1"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-(3 * 4 * 16 + 4) : -4], "<u8").reshape(3, 2, 2, 2).copy()
    index[1, 1, 0] = 2**64 - 1
    data[-(index.nbytes + 4) :] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data)
    assert (zarr.open_group(result, mode="r")["0"][1, 192:256, 128:192] == 0).all()
    again = ("blend", result, "-o", tmp_path / "out.ome.zarr", "--chunk", cut[0], "--shard", cut[1])
    for verb in (("plan", result), again):
        refused = command(*verb)
        assert refused.code == 4
        assert "level 0: 1 of 105 chunks are not stored" in refused.error
        assert "the first at [192:256, 128:192]" in refused.error
    assert not list(tmp_path.glob("out*"))
    monkeypatch.setattr(zarr_grid, "MOST_INDICES", 0)
    refused = command(*again)
    assert refused.code == 4
    assert f"{result}" in refused.error
    assert "[192:256, 128:192] is not stored" in refused.error
    assert not (tmp_path / "out.ome.zarr/zarr.json").exists()


def test_a_mask_may_be_sparse_and_is_counted(command: Command, tmp_path: Path) -> None:
    base, over = (store(tmp_path / name, values) for name, values in (("a.zarr", IMAGE), ("b.zarr", 255 - IMAGE | 1)))
    mask = np.zeros((300, 400), np.uint8)
    mask[70:140, 10:300] = 255
    for name, options, count in (("m", {"chunks": (64, 64)}, 25), ("s", {"chunks": (32, 32), "shards": (64, 64)}, 100)):
        sparse = store(tmp_path / f"{name}.zarr", mask, "yx", **options)
        out = tmp_path / f"{name}.ome.zarr"
        done = command("blend", base, over, "--mask", sparse, "-o", out)
        assert done.code == 0
        of = 35 if name == "m" else 130
        assert f"{sparse}: level 0: {count} of {of} chunks are not stored" in done.err
        pixels = zarr.open_group(out, mode="r")["0"][:]
        np.testing.assert_array_equal(pixels, np.where(mask > 0, 255 - IMAGE | 1, IMAGE))


def test_only_what_is_read_of_a_result_must_be_there(command: Command, tmp_path: Path) -> None:
    base = store(tmp_path / "a.zarr", IMAGE, chunks=(3, 64, 64))
    over, cut = tmp_path / "over.ome.zarr", ["--chunk", "64", "--shard", "64"]
    assert command("blend", base, "-o", over, *cut).code == 0
    values = np.zeros((300, 400), np.uint8)
    values[:64, :64] = 255
    mask = store(tmp_path / "m.zarr", values, "yx", chunks=(300, 400))
    (over / "0/c/0/4/6").unlink()
    planned = command("plan", base, over, "--mask", mask)
    assert "over.ome.zarr: level 0: 3 of 105 chunks are not stored" in planned.out
    assert "a tile that needs one is refused" in planned.out
    assert command("blend", base, over, "--mask", mask, "-o", tmp_path / "out.ome.zarr", *cut).code == 0
    (over / "0/c/0/0/0").unlink()
    refused = command("blend", base, over, "--mask", mask, "-o", tmp_path / "again.ome.zarr", *cut)
    assert refused.code == 4
    assert "the chunk at [0:64, 0:64] is not stored (c/0/0/0)" in refused.error


@pytest.mark.parametrize("layout", ["v3", "v2", "sharded"])
def test_a_shape_raised_by_a_bit_is_not_silent(tmp_path: Path, layout: str) -> None:
    path = store(tmp_path / "a.zarr", IMAGE, **LAYOUTS[layout])
    name = ".zarray" if layout == "v2" else "zarr.json"
    for bit in (6, 9, 14, 20, 30):
        document = json.loads((path / name).read_text())
        document["shape"][1] = 300 ^ (1 << bit)
        if document["shape"][1] < 300:
            continue
        copy = tmp_path / f"{bit}.zarr"
        shutil.copytree(path, copy)
        (copy / name).write_text(json.dumps(document))
        source = open_source(copy)
        height, width = source.shape
        source.read(Region(height - 10, 0, height, width))
        assert source.unstored() is not None or source.take_missed()
    assert height == 300 + (1 << 30)


def test_what_another_run_left_in_this_thread_is_not_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_grid, "MOST_INDICES", 0)
    values = IMAGE.copy()
    values[:, 32:64, 64:128] = 0
    source = open_source(store(tmp_path / "a.zarr", values, **LAYOUTS["sharded"]))
    planned = tb.plan(tb.Composite([tb.Layer(source)]), tb.OutputSpec(chunk=64, shard=64, levels=1))
    job = TileJob(planned.scene, planned.layout, DirectoryStore(tmp_path / "out"), ())
    source.read(Region(0, 64, 64, 128))  # as by a run that failed then
    assert job.run(Tile(0, 0, 0)).missed == ()
    assert [missed.chunks for _, missed in job.run(Tile(0, 0, 1)).missed] == [2]
