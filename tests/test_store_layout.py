"""Stored pixels read back the same by independent readers, for every shape, dtype, codec and version."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_pixels import make_layout, random_pyramid, write_result, write_tile

from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import Codec, OutputSpec
from tiledblend.containers.omezarr.stored import ShardIndex
from tiledblend.containers.omezarr.writer import TileWriter
from tiledblend.errors import UsageError
from tiledblend.geometry import Tile

zarr = pytest.importorskip("zarr")
HAS_TENSORSTORE = find_spec("tensorstore") is not None


@st.composite
def layouts(draw: st.DrawFn) -> ArrayLayout:
    channels = draw(st.sampled_from([1, 3, 4, 7]))
    version = draw(st.sampled_from(["0.5", "0.4"]))
    chunk = draw(st.sampled_from([16, 18]))
    return make_layout(
        (draw(st.integers(1, 90)), draw(st.integers(1, 90))),
        channels,
        draw(st.sampled_from(["uint8", "uint16", "float32"])),
        is_rgb=channels in (3, 4) and draw(st.booleans()),
        chunk=chunk,
        shard=chunk * draw(st.sampled_from([1, 2, 4])),
        levels=draw(st.sampled_from(["auto", 1, 2, 5])),
        ome_zarr=version,
        codec=draw(st.sampled_from([None, "zstd:3", "gzip:1", "blosc-lz4", "blosc-zstd:1", "none"])),
        layout=draw(st.sampled_from(["planar", "interleaved"])) if version == "0.5" else "planar",
    )


def read_tensorstore(path: Path, layout: ArrayLayout, level: int) -> Any:
    import tensorstore

    spec = {
        "driver": "zarr3" if layout.sharded else "zarr",
        "kvstore": {"driver": "file", "path": str(path / str(level))},
    }
    return tensorstore.open(spec, open=True, read=True).result().read().result()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts(), seed=st.integers(0, 5))
def test_readers_agree(layout: ArrayLayout, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("r") / "out.ome.zarr"
    levels = write_result(path, layout, random_pyramid(layout, seed))
    group = zarr.open_group(str(path), mode="r")
    for level, expected in enumerate(levels):
        planar = expected.transpose(2, 0, 1)
        np.testing.assert_array_equal(group[str(level)][:], planar)
        if HAS_TENSORSTORE:
            np.testing.assert_array_equal(read_tensorstore(path, layout, level), planar)


@pytest.mark.parametrize("interleaved", [False, True])
def test_zarrs_pipeline_reads(tmp_path: Path, interleaved: bool) -> None:
    pytest.importorskip("zarrs")
    layout = make_layout((75, 50), layout="interleaved" if interleaved else "planar")
    levels = write_result(tmp_path / "out.ome.zarr", layout)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(str(tmp_path / "out.ome.zarr"), mode="r")
        for level, expected in enumerate(levels):
            np.testing.assert_array_equal(group[str(level)][:], expected.transpose(2, 0, 1))


def test_memory_order_makes_no_difference(tmp_path: Path) -> None:
    layout = make_layout((61, 45))
    levels = random_pyramid(layout)
    planar = [np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0) for pixels in levels]
    fortran = [np.asfortranarray(pixels) for pixels in levels]
    results = [
        [write_tile(DirectoryStore(tmp_path), layout, tile, variant) for tile in layout.grid.tiles()]
        for variant in (levels, planar, fortran)
    ]
    assert results[0] == results[1] == results[2]


def test_encoded_chunks_equal_their_pixels(tmp_path: Path) -> None:
    for is_rgb, version in ((True, "0.5"), (False, "0.5"), (True, "0.4"), (False, "0.4")):
        layout = make_layout((25, 40), is_rgb=is_rgb, levels=1, shard=64, ome_zarr=version)
        tile = Tile(0, 0, 0)
        pixels = np.broadcast_to(np.array((9, 0, 255), "uint8"), (25, 40, 3))
        plain = write_tile(DirectoryStore(tmp_path / "a"), layout, tile, [pixels])
        copied = TileWriter(layout, DirectoryStore(tmp_path / "b"), tile)
        for place, data in encoded_chunks(layout, tmp_path / "a"):
            copied.add_encoded(0, *place, data, has_checksum=layout.sharded)
        assert plain == copied.finish()


def encoded_chunks(layout: ArrayLayout, stored: Path) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """((row, column, group), bytes with their checksum where there is one) of the only tile's level 0."""
    rows, columns = layout.tile_chunks(Tile(0, 0, 0), 0)
    places = list(np.ndindex(rows, columns, layout.channel_groups))
    if not layout.sharded:
        for row, column, group in places:
            yield (row, column, group), (stored / layout.key(0, row, column, group)).read_bytes()
        return
    shard, index = (stored / layout.key(0, 0, 0)).read_bytes(), ShardIndex(layout, 0)
    table = index.parse(shard[-index.nbytes :])
    assert table is not None
    for row, column, group in places:
        start, length = table[group, row, column].tolist()
        yield (row, column, group), shard[start : start + length]


def test_every_chunk_exactly_once(tmp_path: Path) -> None:
    layout = make_layout((40, 40), levels=1, shard=64)
    writer = TileWriter(layout, DirectoryStore(tmp_path), Tile(0, 0, 0))
    row = np.zeros((16, 40, 3), "uint8")
    writer.add_chunk_row(0, 0, row)
    with pytest.raises(ValueError, match="added twice"):
        writer.add_chunk_row(0, 0, row)
    with pytest.raises(ValueError, match="needs"):
        writer.add_chunk_row(0, 2, row)
    with pytest.raises(ValueError, match="needs"):
        writer.add_chunk_row(0, 1, row.astype("uint16"))
    with pytest.raises(ValueError, match="not planned"):
        writer.add_encoded(0, 3, 0, 0, b"")
    with pytest.raises(RuntimeError, match="3 of 9 chunks"):
        writer.finish()
    assert list(DirectoryStore(tmp_path).list()) == []


@settings(max_examples=80, deadline=None)
@given(layout=layouts())
def test_tiles_own_every_planned_object_once(layout: ArrayLayout) -> None:
    planned = list(layout.planned_objects())
    tiles = [tile for stage in range(layout.grid.stages) for tile in layout.grid.tiles(stage)]
    owned = [key for tile in tiles for key in layout.tile_objects(tile)]
    assert sorted(owned) == sorted(planned)
    assert len(planned) == len(set(planned)) == layout.object_count()
    assert all(layout.owns(key) for key in planned)
    assert not any(layout.owns(key + suffix) for key in planned for suffix in ("0", "x", "/0"))
    assert ArrayLayout.from_dict(layout.as_dict()).as_dict() == layout.as_dict()
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_inner_chunks_outside_the_level_are_absent(tmp_path: Path) -> None:
    from tiledblend.containers.omezarr.stored import ShardIndex

    layout = make_layout((20, 40), levels=1, shard=64)
    write_tile(DirectoryStore(tmp_path), layout, Tile(0, 0, 0), [np.zeros((20, 40, 3), "uint8")])
    data = (tmp_path / "0/c/0/0/0").read_bytes()
    index = ShardIndex(layout, 0)
    table = index.parse(data[-index.nbytes :])
    assert table is not None
    present = table[0, :, :, 1] != np.iinfo(np.uint64).max
    assert present.tolist() == [[row < 2 and column < 3 for column in range(4)] for row in range(4)]


def test_partial_reads_cross_chunks(tmp_path: Path) -> None:
    layout = make_layout((100, 90))
    levels = write_result(tmp_path / "o", layout)
    array = zarr.open_array(str(tmp_path / "o" / "0"), mode="r")
    np.testing.assert_array_equal(array[1, 15:70, 31:33], levels[0][15:70, 31:33, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "zstd:0"}, "codec level zstd:0 must be from 1 to 22"),
        ({"codec": "zstd:x"}, "not of the form name:level"),
        ({"codec": "lzma"}, "codec 'lzma' is not known"),
        ({"codec": "none:1"}, "not of the form"),
        ({"ome_zarr": "0.3"}, "use 0.6, 0.5 or 0.4"),
        ({"layout": "tiled"}, "planar or interleaved"),
        ({"layout": "interleaved", "ome_zarr": "0.4"}, "does not exist in OME-Zarr 0.4"),
        ({"levels": 0}, "from 1 to 40"),
        ({"levels": "many"}, "auto or a number"),
        ({"chunk": 512, "shard": 1000}, "use --shard 512"),
        ({"chunk": 512.0}, "not a whole number"),
    ],
)
def test_spec_is_checked_when_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OutputSpec(**options)


def test_default_codec_follows_the_version() -> None:
    assert OutputSpec().compressor == Codec("zstd", 1)
    assert OutputSpec(ome_zarr="0.4").compressor == Codec("blosc-lz4", 5)
    assert OutputSpec(ome_zarr="0.4", codec="zstd:1").compressor == Codec("zstd", 1)


def test_layout_is_checked_when_made() -> None:
    with pytest.raises(UsageError, match="int32"):
        make_layout((10, 10), dtype="int32")
    with pytest.raises(UsageError, match="at least 1"):
        make_layout((10, 10), channels=0)
