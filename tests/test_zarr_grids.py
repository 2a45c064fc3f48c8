"""Shards that were rewritten in place, and rectilinear chunk grids, against the arrays that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from range_server import range_server

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import RasterSource, open_source

NOISE = np.random.default_rng(3).integers(0, 256, (3, 200, 180), dtype=np.uint8)


def whole(source: RasterSource) -> np.ndarray:
    return source.read(Region.of_shape(source.shape))


def crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def with_dead_bytes(shard: Path, chunks: int, dead: int, at_end: bool) -> None:
    """The same shard as one whose every chunk was rewritten once, and its old bytes left where they were."""
    data = shard.read_bytes()
    size = 16 * chunks + 4
    table = data[-size:] if at_end else data[:size]
    entries = np.frombuffer(table[:-4], "<u8").reshape(-1, 2).copy()
    body = bytearray(b"" if at_end else bytes(size))
    for entry in entries:
        if entry[0] == np.iinfo(np.uint64).max:
            continue
        chunk = data[int(entry[0]) : int(entry[0] + entry[1])]
        body += bytes(dead)
        entry[0] = len(body)
        body += chunk
    index = entries.tobytes() + crc(entries.tobytes())
    if at_end:
        body += index
    else:
        body[:size] = index
    shard.write_bytes(body)


def sharded(path: Path, location: str = "end", dead: int = 40_000) -> np.ndarray:
    """A sharded array at `path`, rewritten; what it holds."""
    values = NOISE.copy()
    values[:, 64:128, :64] = 0  # chunks that are not stored
    codec = zarr.codecs.ShardingCodec(chunk_shape=(1, 32, 32), index_location=location)
    array = zarr.create_array(
        path, shape=values.shape, dtype="uint8", chunks=(3, 64, 64), dimension_names=["c", "y", "x"], serializer=codec,
        compressors=None, filters=None,
    )  # fmt: skip
    array[:] = values
    for shard in [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]:
        with_dead_bytes(shard, 12, dead, location == "end")
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], values)
    return values


@pytest.mark.parametrize("location", ["end", "start"])
@pytest.mark.parametrize("remote", [False, True])
def test_shards_with_dead_bytes_are_sound(tmp_path: Path, location: str, remote: bool) -> None:
    values = sharded(tmp_path / "a", location)
    with range_server(tmp_path) as address:
        source = open_source(f"{address}/a" if remote else tmp_path / "a")
        np.testing.assert_array_equal(whole(source), values.transpose(1, 2, 0))
        np.testing.assert_array_equal(source.read(Region(5, 70, 130, 90)), values[:, 5:130, 70:90].transpose(1, 2, 0))


def test_a_shard_whose_index_says_more_than_there_is_is_damaged(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    shard = tmp_path / "a/c/0/0/0"
    data = shard.read_bytes()
    entries = np.frombuffer(data[-196:-4], "<u8").copy()
    entries[1] = 10 * len(data)
    shard.write_bytes(data[:-196] + entries.tobytes() + crc(entries.tobytes()))
    with pytest.raises(BadInputError, match=r"level 0, region \[0:64, 0:64\]: cannot be read: .*is damaged"):
        open_source(tmp_path / "a").read(Region(0, 0, 64, 64))
    shard.write_bytes(data[:-1] + b"?")
    with pytest.raises(BadInputError, match="fails its checksum"):
        open_source(tmp_path / "a").read(Region(0, 0, 64, 64))


def test_a_chunk_that_is_no_shard_may_not_be_larger_than_its_pixels(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=NOISE[0], chunks=(64, 64), compressors=None)
    (tmp_path / "a/c/0/0").write_bytes(bytes(1 << 20))
    with pytest.raises(BadInputError, match="more than its pixels can take"):
        whole(open_source(tmp_path / "a"))


GRIDS: dict[str, dict[str, Any]] = {
    "regular but for the last": {"chunks": [[1, 1, 1], [64, 64, 72], [100, 80]]},
    "unlike": {"chunks": [[3], [10, 90, 100], [64, 116]]},
    "shards": {"chunks": (1, 20, 30), "shards": [[3], [60, 140], [90, 90]]},
    "a number": {"chunks": [[3], [100, 100], [50, 130]]},
}


def uneven(path: Path, kind: str, values: np.ndarray = NOISE) -> Path:
    if zarr.config.get("array.rectilinear_chunks", None) is None:
        pytest.skip("this zarr writes no rectilinear grids")
    with zarr.config.set({"array.rectilinear_chunks": True}):
        array = zarr.create_array(
            path, shape=values.shape, dtype=values.dtype, dimension_names=["c", "y", "x"], zarr_format=3, **GRIDS[kind]
        )
        array[:] = values
    return path


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("remote", [False, True])
def test_rectilinear_grids(tmp_path: Path, kind: str, remote: bool) -> None:
    values = NOISE.copy()
    values[:, :70, :70] = 0
    uneven(tmp_path / "a", kind, values)
    with range_server(tmp_path) as address:
        source = open_source(f"{address}/a" if remote else tmp_path / "a")
        np.testing.assert_array_equal(whole(source), values.transpose(1, 2, 0))
        for region in (Region(0, 0, 1, 1), Region(63, 99, 129, 180), Region(199, 3, 200, 91)):
            expected = values[:, *region.slices].transpose(1, 2, 0)
            np.testing.assert_array_equal(source.read(region), expected)
        assert source.encoded().levels == (None,)
        assert source.fingerprint()["structure"]


def test_what_a_rectilinear_grid_lacks_is_counted(tmp_path: Path) -> None:
    path = uneven(tmp_path / "a", "unlike")
    (path / "c/0/1/1").unlink()
    source = open_source(path)
    found = source.unstored()
    assert found is not None
    assert (found.missing, found.chunks, found.first) == (1, 6, Region(10, 64, 100, 180))
    assert (source.read(Region(10, 64, 100, 180)) == 0).all()


@pytest.mark.parametrize(
    "edges", [[[3], [10], [64, 116]], [[3], [0, 200], [180]], [[3], [200]], [[3], [[1, 0]], [180]]]
)
def test_absurd_rectilinear_grids(tmp_path: Path, edges: Any) -> None:
    import json

    zarr.create_array(tmp_path / "a", data=NOISE, chunks=(3, 64, 64), dimension_names=["c", "y", "x"])
    document = json.loads((tmp_path / "a/zarr.json").read_text())
    document["chunk_grid"] = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": edges}}
    (tmp_path / "a/zarr.json").write_text(json.dumps(document))
    with pytest.raises(BadInputError, match="malformed zarr metadata"):
        open_source(tmp_path / "a")


def test_a_zarr_that_does_not_read_rectilinear_grids_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    zarr.create_array(tmp_path / "a", data=NOISE, chunks=(3, 64, 64), dimension_names=["c", "y", "x"])
    document = json.loads((tmp_path / "a/zarr.json").read_text())
    sizes = [[3], [100, 100], [180]]
    document["chunk_grid"] = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": sizes}}
    (tmp_path / "a/zarr.json").write_text(json.dumps(document))
    monkeypatch.setattr(zarr.config, "get", lambda name, default=None: default)
    with pytest.raises(BadInputError, match=r"is rectilinear, which zarr [\d.]+ does not read; install zarr 3.2"):
        open_source(tmp_path / "a")
