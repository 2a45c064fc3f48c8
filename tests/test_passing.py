"""Chunks that are passed on undecoded: the same pixels as without, in every arrangement, and only right ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.bytes.objects import DirectoryStore
from tiledblend.compose import weights
from tiledblend.containers.omezarr.codecs import encoder, stated_size
from tiledblend.containers.omezarr.documents import array_documents
from tiledblend.containers.omezarr.spec import Codec, OutputSpec
from tiledblend.containers.omezarr.writer import TileWriter
from tiledblend.containers.verify import verify
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.errors import BadInputError
from tiledblend.kernels.feather import FeatheredMask
from tiledblend.run.driver import write
from tiledblend.run.plan import plan
from tiledblend.run.tasks import TileJob
from tiledblend.sources import Alpha, from_array
from tiledblend.sources.zarr import encoded

Array = NDArray[Any]
EXAMPLES = int(os.environ.get("TILEDBLEND_EXAMPLES", "0"))


def stored_levels(folder: Path, levels: int) -> list[Array]:
    """(c, y, x) of every level, by zarr-python."""
    return [np.asarray(zarr.open_array(folder / str(level), mode="r")[...]) for level in range(levels)]


@dataclass
class Passed:
    """Counts the chunks that writers were given encoded, by level."""

    levels: dict[int, int]

    @classmethod
    def watch(cls, patch: pytest.MonkeyPatch) -> Passed:
        counts, original = cls({}), TileWriter.add_encoded

        def add_encoded(self: TileWriter, level: int, *rest: Any, **options: Any) -> None:
            counts.levels[level] = counts.levels.get(level, 0) + 1
            original(self, level, *rest, **options)

        patch.setattr(TileWriter, "add_encoded", add_encoded)
        return counts


def made(
    composite: Composite, output: OutputSpec, folder: Path, *, pass_on: bool
) -> tuple[list[Array], dict[str, int]]:
    """(every level as zarr-python reads it, chunks by class) of a composite written tile by tile."""
    planned = plan(composite, output, samples=0)
    layout, store = planned.layout, DirectoryStore(folder)
    job = TileJob(planned.scene, layout, store, (), pass_on)
    classes = {"copied": 0, "blended": 0, "empty": 0, "background": 0}
    for stage in range(layout.grid.stages):
        for tile in layout.grid.tiles(stage):
            result = job.run(tile)
            for name in classes:
                classes[name] += getattr(result.stats, name)
    store.put_many(array_documents(layout).items())
    return stored_levels(folder, layout.grid.levels), classes


def pixels_of(rng: np.random.Generator, shape: tuple[int, int], channels: int, dtype: str) -> Array:
    """(y, x, c): noise with a flat part, whose chunks an ordinary writer leaves out."""
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels = (rng.random((*shape, channels)) * top).astype(dtype)
    pixels[: shape[0] // 2, : shape[1] // 3] = 0
    return pixels


def written_by_tiledblend(pixels: Array, output: OutputSpec, path: Path, alpha: Alpha) -> None:
    write(Composite([Layer(from_array(pixels, axes="yxc", alpha=alpha))]), str(path), output=output, part=(1, 1))
    write(Composite([Layer(from_array(pixels, axes="yxc", alpha=alpha))]), str(path), output=output, finish=True)


def written_by_zarr(pixels: Array, output: OutputSpec, path: Path, *, shard: int, checksum: bool) -> None:
    """A plain array of one level; shard 0: none."""
    planar = np.moveaxis(pixels, 2, 0)
    rgb = pixels.shape[2] == 3
    codecs: list[Any] = [zarr.codecs.ZstdCodec(level=output.compressor.level)]
    if checksum:
        codecs.append(zarr.codecs.Crc32cCodec())
    chunks = (3 if rgb else 1, output.chunk, output.chunk)
    array = zarr.create_array(
        path,
        shape=planar.shape,
        chunks=chunks,
        shards=(planar.shape[0], shard, shard) if shard else None,
        dtype=planar.dtype,
        compressors=codecs,
        dimension_names=["c", "y", "x"],
    )
    array[...] = planar


@st.composite
def arrangements(draw: st.DrawFn) -> dict[str, Any]:
    chunk = draw(st.sampled_from([16, 32]))
    shape = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    channels = draw(st.sampled_from([1, 2, 3, 3]))
    dtype = draw(st.sampled_from(["uint8", "uint8", "uint16", "float32"]))
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shape": shape,
        "channels": channels,
        "dtype": dtype,
        # What an OME-Zarr can say to be an alpha channel.
        "alpha": channels == 3 and dtype == "uint8" and draw(st.integers(0, 2)) == 0,
        "output": OutputSpec(
            chunk,
            chunk * draw(st.sampled_from([1, 2, 4])),
            ome_zarr=draw(st.sampled_from(["0.5", "0.5", "0.5", "0.4"])),
        ),
        "source": draw(st.sampled_from(["tiledblend", "tiledblend", "zarr"])),
        "source_shard": draw(st.sampled_from([0, 1, 2, 4])),
        "checksum": draw(st.booleans()),
        # Canvas pixels beyond the image: 0 in most cases, else its sides and those of the canvas differ.
        "offset": tuple(draw(st.sampled_from([0, 0, 0, chunk, -chunk, 2 * chunk, -4 * chunk, 7])) for _ in range(2)),
        "canvas": draw(st.sampled_from(["image", "image", "other"])),
        "margin": (draw(st.integers(-40, 40)), draw(st.integers(-40, 40))),
        "hole": draw(st.booleans()),
    }


@given(arrangements())
@settings(
    max_examples=EXAMPLES or 35,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_pixels_are_those_of_the_plain_path(drawn: dict[str, Any]) -> None:
    rng = np.random.default_rng(drawn["seed"])
    folder = Path(tempfile.mkdtemp())
    try:
        composite, output = drawn_composite(drawn, rng, folder), drawn["output"]
        plain, plain_classes = made(composite, output, folder / "plain", pass_on=False)
        fast, classes = made(composite, output, folder / "fast", pass_on=True)
        assert classes == plain_classes
        for level, (a, b) in enumerate(zip(fast, plain, strict=True)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=f"level {level}")
    finally:
        shutil.rmtree(folder)


def drawn_composite(drawn: dict[str, Any], rng: np.random.Generator, folder: Path) -> Composite:
    shape, channels, chunk = drawn["shape"], drawn["channels"], drawn["output"].chunk
    drawn_alpha = drawn["alpha"] and drawn["source"] == "tiledblend"
    pixels = pixels_of(rng, shape, channels + drawn_alpha, drawn["dtype"])
    alpha = Alpha.STRAIGHT if drawn_alpha else Alpha.NONE
    path = folder / "source.ome.zarr"
    if drawn["source"] == "tiledblend":
        own = OutputSpec(chunk, chunk * max(1, drawn["source_shard"]), ome_zarr=drawn["output"].ome_zarr)
        written_by_tiledblend(pixels, own, path, alpha)
    else:
        written_by_zarr(pixels, drawn["output"], path, shard=drawn["source_shard"] * chunk, checksum=drawn["checksum"])
    source = tb.open(str(path))
    offset = drawn["offset"]
    canvas = shape
    if drawn["canvas"] == "other":
        canvas = tuple(max(1, n + o + m) for n, o, m in zip(shape, offset, drawn["margin"], strict=True))
    reach = tuple(min(n + o, c) for n, o, c in zip(shape, offset, canvas, strict=True))
    if min(reach) < 1 or any(o >= c for o, c in zip(offset, canvas, strict=True)):
        offset = (0, 0)
    layers = [Layer(source, offset=offset)]
    if drawn["hole"]:
        unit = np.zeros(canvas, np.uint8)
        y, x = rng.integers(0, canvas[0]), rng.integers(0, canvas[1])
        unit[y : y + 9, x : x + 5] = 255
        over = pixels_of(rng, canvas, channels, drawn["dtype"])
        layers.append(
            Layer(
                from_array(over, axes="yxc"),
                from_array(unit, axes="yx", mask=True),
                mask_values="binary",
                feather=Feather.px(1.5),
            )
        )
    return Composite(layers, canvas=Canvas(canvas, source.channels))


def example(
    tmp_path: Path, shape: tuple[int, int] = (300, 260), channels: int = 3, **output: Any
) -> tuple[Composite, OutputSpec, Path]:
    """A pyramid of tiledblend's as base, and something small blended over it."""
    rng = np.random.default_rng(1)
    spec, path = OutputSpec(**{"chunk": 16, "shard": 64, **output}), tmp_path / "base.ome.zarr"
    pixels = pixels_of(rng, shape, channels, "uint8")
    written_by_tiledblend(pixels, spec, path, Alpha.NONE)
    mask = np.zeros(shape, np.uint8)
    mask[100:120, 90:130] = 1
    over = Layer(
        from_array(pixels[::-1].copy(), axes="yxc"), from_array(mask, axes="yx", mask=True), feather=Feather.px(1)
    )
    return Composite([Layer(tb.open(str(path))), over]), spec, path


@pytest.mark.parametrize("channels", [3, 2])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_only_chunks_near_the_mask_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, version: str
) -> None:
    composite, spec, _ = example(tmp_path, channels=channels, ome_zarr=version)
    counts = Passed.watch(monkeypatch)
    _, classes = made(composite, spec, tmp_path / "out", pass_on=True)
    layers = 1 if channels == 3 else channels
    rows, columns = 19, 17
    # The mask and its halo touch chunks 5..8 by 5..8 at most.
    assert counts.levels[0] == layers * classes["copied"] >= layers * (rows * columns - 16)
    assert counts.levels[1] >= layers * (10 * 9 - 9)
    assert counts.levels[2] >= layers * (5 * 5 - 4)
    read = []
    source = composite.layers[0].image
    monkeypatch.setattr(
        source, "read", lambda region, level=0: read.append((level, region)) or type(source).read(source, region, level)
    )
    made(composite, spec, tmp_path / "again", pass_on=True)
    decoded = sum(region.size for level, region in read if level == 0)
    assert 0 < decoded <= 36 * 16 * 16


def test_the_result_is_a_base_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `write`: what is passed on verifies, and says its halving rule again."""
    composite, spec, _ = example(tmp_path)
    write(composite, str(tmp_path / "out.ome.zarr"), output=spec, part=(1, 1))
    write(composite, str(tmp_path / "out.ome.zarr"), output=spec, finish=True)
    assert not verify(str(tmp_path / "out.ome.zarr")).problems
    counts = Passed.watch(monkeypatch)
    again = Composite([Layer(tb.open(str(tmp_path / "out.ome.zarr")))])
    made(again, spec, tmp_path / "copy", pass_on=True)
    assert counts.levels == {0: 19 * 17, 1: 10 * 9, 2: 5 * 5}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"codec": "zstd:3"}, id="codec"),
        pytest.param({"chunk": 32}, id="chunk"),
        pytest.param({"layout": "interleaved"}, id="layout"),
        pytest.param({"ome_zarr": "0.4", "codec": "gzip:1"}, id="version"),
    ],
)
def test_another_encoding_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    composite, spec, _ = example(tmp_path)
    counts = Passed.watch(monkeypatch)
    made(composite, replace(spec, **change), tmp_path / "out", pass_on=True)
    assert counts.levels == {}


def test_levels_of_another_rule_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composite, spec, path = example(tmp_path)
    document = path / "zarr.json"
    document.write_text(document.read_text().replace("mean of 2 x 2, revision 1", "mean of 2 x 2, revision 0"))
    composite = replace(composite, layers=(Layer(tb.open(str(path))), composite.layers[1]))
    counts = Passed.watch(monkeypatch)
    made(composite, spec, tmp_path / "out", pass_on=True)
    assert list(counts.levels) == [0]


def damage(path: Path, level: int, at: Callable[[int], int]) -> None:
    shard = path / str(level) / "c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[at(len(data))] ^= 0x10
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("level", "at", "message"),
    [
        (0, lambda size: 6, r"level 0: chunk 0, 0 at \[0:16, 0:16\] fails its checksum \(crc32c\)"),
        (1, lambda size: 6, r"level 1: chunk 0, 0 at \[0:16, 0:16\] fails its checksum"),
        (0, lambda size: size - 30, r"level 0: chunk 0, 0 .* index fails its checksum"),
    ],
)
def test_a_damaged_chunk_is_named(tmp_path: Path, level: int, at: Callable[[int], int], message: str) -> None:
    composite, spec, path = example(tmp_path)
    damage(path, level, at)
    with pytest.raises(BadInputError, match=message):
        made(composite, spec, tmp_path / "out", pass_on=True)


@pytest.mark.parametrize("checksum", [True, False])
def test_a_chunk_of_another_size_is_refused(tmp_path: Path, checksum: bool) -> None:
    """A right checksum over the wrong thing, and none at all."""
    spec = OutputSpec(chunk=16, shard=32)
    path = tmp_path / "source.zarr"
    written_by_zarr(pixels_of(np.random.default_rng(2), (64, 64), 1, "uint8"), spec, path, shard=0, checksum=checksum)
    wrong = encoder(Codec("zstd", 1))(np.arange(255, dtype=np.uint8))
    (path / "c/0/3/3").write_bytes(wrong + encoded_checksum(wrong) * checksum)
    with pytest.raises(BadInputError, match=r"level 0: chunk 3, 3, channel 0 at \[48:64, 48:64\] cannot be decoded"):
        made(Composite([Layer(tb.open(str(path)))]), spec, tmp_path / "out", pass_on=True)


def encoded_checksum(data: bytes) -> bytes:
    from tiledblend.containers.omezarr.codecs import crc32c

    return crc32c(data)


def test_a_checked_chunk_ends_in_its_checksum() -> None:
    for data in (b"", b"a", os.urandom(1000)):
        assert encoded._is_right(data + encoded_checksum(data))
        assert not encoded._is_right(data + bytes(4 - (data == b"")) + b"\x01" * (data == b""))


def test_padding_of_others_is_not_passed_on(tmp_path: Path) -> None:
    """A zarr that was made smaller keeps what it no longer shows in its last chunks: it must not get out with them."""
    path = tmp_path / "source.zarr"
    spec = OutputSpec(chunk=16, shard=32, levels=1)
    written_by_zarr(np.full((32, 32, 1), 200, np.uint8), spec, path, shard=0, checksum=False)
    zarr.open_array(path, mode="r+").resize((1, 32, 20))
    made(Composite([Layer(tb.open(str(path)))]), spec, tmp_path / "out", pass_on=True)
    stored = zarr.open_array(tmp_path / "out/0", mode="r+")
    stored.resize((1, 32, 32))
    assert (np.asarray(stored[0, :, :20]) == 200).all()
    assert (np.asarray(stored[0, :, 20:]) == 0).all()


@pytest.mark.parametrize("codec", ["zstd:1", "zstd:19", "blosc-lz4:5", "blosc-zstd:1", "none", "gzip:1"])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 65535, 65791, 65792, 70000, 3 << 20])
def test_stated_size(codec: str, size: int) -> None:
    raw = np.random.default_rng(size).integers(0, 200, size, np.uint8)
    stated = stated_size(Codec.parse(codec), encoder(Codec.parse(codec))(raw))
    assert stated == size or (stated is None and (size < 10 or codec == "gzip:1"))


def test_a_tile_prepares_each_mask_once_and_reads_a_zarr_chunk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing can be passed on; blocks finer than a stored chunk would read it again."""
    rng, shape = np.random.default_rng(3), (512, 1024)
    stored = zarr.create_array(tmp_path / "base.zarr", shape=(*shape, 3), chunks=(512, 512, 3), dtype="uint8")
    stored[...] = rng.integers(0, 255, (*shape, 3), np.uint8)
    base = tb.open(str(tmp_path / "base.zarr"))
    over = from_array(rng.integers(0, 255, (*shape, 3), np.uint8), axes="yxc")
    mask = np.zeros(shape, np.uint8)
    mask[100:300, 100:300] = 255
    prepared, reads = [], []
    monkeypatch.setattr(weights, "FeatheredMask", lambda *a: prepared.append(a) or FeatheredMask(*a))
    original = type(base)._read
    monkeypatch.setattr(type(base), "_read", lambda self, *a: reads.append(a) or original(self, *a))
    layers = [Layer(base), Layer(over, mask=from_array(mask, axes="yx", mask=True), feather=Feather.px(4))]
    made(Composite(layers), OutputSpec(chunk=512, shard=1024), tmp_path / "out", pass_on=True)
    assert len(prepared) == 1
    assert len(reads) == 2  # the blended chunk, and the one beside it
