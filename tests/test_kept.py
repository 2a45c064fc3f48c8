"""`--compression keep`: which tiles pass, that they are the sources' bytes, what readers see of the others."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.sources import open_source
from tiledblend.sources.tiff.streams import read_header

Pixels = NDArray[Any]
SIDE = 64


def picture(shape: tuple[int, int], seed: int, channels: int = 3, dtype: Any = np.uint8) -> Pixels:
    """Smooth waves with a little noise: what JPEG is made for."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(x / (9 + seed + c)) + np.cos(y / (13 + 2 * c)) for c in range(channels)]
    top = 255 if np.dtype(dtype) == np.uint8 else 60000
    pixels = (0.5 + 0.2 * np.stack(waves, axis=2)) * top + random.uniform(0, top / 40, (*shape, channels))
    return np.clip(pixels, 0, top).astype(dtype)


def halved(pixels: Pixels, times: int) -> Pixels:
    """Not our halving: a scanner's levels are its own."""
    return pixels[:: 1 << times, :: 1 << times]


def slide(path: Path, pixels: Pixels, ladder: tuple[int, ...] = (0,), **options: Any) -> Path:
    """A TIFF of complete JPEG streams (or another codec) by tifffile: levels in SubIFDs."""
    options = {"compression": "jpeg", "photometric": "rgb", **options}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(pixels, tile=(SIDE, SIDE), subifds=len(ladder) - 1, **options)
        for power in ladder[1:]:
            tiff.write(halved(pixels, power), tile=(SIDE, SIDE), subfiletype=1, **options)
    return path


def vips_slide(path: Path, pixels: Pixels, **options: Any) -> Path:
    """A pyramid whose tiles rely on shared tables, by libtiff."""
    pyvips = pytest.importorskip("pyvips", reason="pyvips is not installed")
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    options = {"compression": "jpeg", "Q": 85, "pyramid": True, "subifd": True, **options}
    image.tiffsave(str(path), tile=True, tile_width=SIDE, tile_height=SIDE, bigtiff=True, **options)
    return path


@dataclass
class Stored:
    """Levels of a file: shape, the stored bytes of each tile by (row, column), the page."""

    levels: list[tuple[tuple[int, int], dict[tuple[int, int], bytes], Any]]

    @classmethod
    def of(cls, path: Path) -> Stored:
        found = []
        with tifffile.TiffFile(path) as tiff:
            for level in tiff.series[0].levels:
                page = level.keyframe
                columns = -(-page.imagewidth // page.tilewidth)
                tiles = {}
                for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
                    tiff.filehandle.seek(offset)
                    tiles[divmod(number, columns)] = tiff.filehandle.read(count)
                found.append(((page.imagelength, page.imagewidth), tiles, page))
            return cls(found)


def levels_of(path: Path) -> list[Pixels]:
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


def whole_weight(mask: Pixels, sigma: float) -> Pixels:
    return np.asarray(tb.feather(mask, sigma))


def masked(path: Path, mask: Pixels, sigma: float = 4) -> tb.Layer:
    return tb.Layer(open_source(path), mask=tb.from_array(mask, axes="yx"), feather=tb.Feather.px(sigma))


def blend(folder: Path, *layers: Any, name: str = "out.ome.tif", compression: str = "keep", **options: Any) -> Path:
    from tiledblend.containers.omezarr.spec import OutputSpec
    from tiledblend.run.ometiff import Storing, plan_ometiff

    out = folder / name
    storing = Storing(compression, **options)
    planned = plan_ometiff(tb.Composite(layers), str(out), OutputSpec(**options), storing, samples=0)
    tb.blend_ometiff(planned, out)
    return out


SHAPES = [(64 * 5, 64 * 6), (333, 410), (257, 511)]


@settings(
    deadline=None,
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_the_set_of_passed_tiles_is_right(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """By the whole weights: a tile passes only where one layer's alone is 1 all over it, and does where no edge of the
    mask is within the feather's reach."""
    folder = tmp_path_factory.mktemp("kept")
    shape = data.draw(st.sampled_from(SHAPES))
    ladder = data.draw(st.sampled_from([(0,), (0, 1, 2), (0, 2), (0, 1)]))
    codec = data.draw(st.sampled_from(["jpeg", "jpeg", "deflate", "lzw", "zstd", None]))
    options = {"compression": codec} if codec != "jpeg" else {"compressionargs": {"level": 85}}
    if codec in ("deflate", "lzw", "zstd"):
        options["predictor"] = data.draw(st.sampled_from([1, 2]))
    base = slide(folder / "base.tif", picture(shape, 1), ladder, **options)
    over = slide(folder / "over.tif", picture(shape, 2), ladder, **options)
    mask = np.zeros(shape, np.uint8)
    for _ in range(data.draw(st.integers(0, 3))):
        y, x = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
        high, wide = data.draw(st.integers(1, 260)), data.draw(st.integers(1, 260))
        mask[y : y + high, x : x + wide] = 255
    sigma = data.draw(st.sampled_from([0.0, 2.0, 7.0]))
    shift = data.draw(st.sampled_from([(0, 0), (64, 128), (32, 0), (256, 256)]))
    moved = np.zeros(shape, np.uint8)
    moved[shift[0] :, shift[1] :] = mask[: shape[0] - shift[0], : shape[1] - shift[1]]
    layers = (
        tb.Layer(open_source(base)),
        tb.Layer(open_source(over), mask=tb.from_array(mask, axes="yx"), feather=tb.Feather.px(sigma), offset=shift),
    )
    out = Stored.of(blend(folder, *layers))
    reach = int(4 * sigma) + 8 if sigma else 0
    weight = np.zeros(shape, np.float32)
    own = whole_weight(mask, sigma) if sigma else (mask / 255).astype(np.float32)
    weight[shift[0] :, shift[1] :] = own[: shape[0] - shift[0], : shape[1] - shift[1]]
    if sigma:
        weight *= border(shape, shift, sigma)
    sources = Stored.of(base), Stored.of(over)
    powers = ladder if len(ladder) > 1 else tuple(range(len(out.levels)))
    assert len(out.levels) == len(powers)
    for number, (power, (size, tiles, page)) in enumerate(zip(powers, out.levels, strict=True)):
        assert page.tilewidth == SIDE
        if number < len(ladder):
            assert size == sources[0].levels[number][0]
        for (row, column), stored in tiles.items():
            step = SIDE << power
            part = weight[row * step : (row + 1) * step, column * step : (column + 1) * step]
            expected = None
            if power in ladder and (part == 0).all():
                expected = sources[0].levels[ladder.index(power)][1][row, column]
            elif power in ladder and (part == 1).all() and not any(place % step for place in shift):
                place = row - shift[0] // step, column - shift[1] // step
                inside = all(
                    (p + 1) * step <= s and (at + 1) * step <= s
                    for p, at, s in zip(place, (row, column), shape, strict=True)
                )
                if shift == (0, 0) or inside:
                    expected = sources[1].levels[ladder.index(power)][1].get(place)
            every = {t for source in sources for _, of, _ in source.levels for t in of.values()}
            if expected is not None:
                y, x = (max(0, at * step - reach) for at in (row, column))
                around = moved[y : (row + 1) * step + reach, x : (column + 1) * step + reach]
                is_far = around.min() == around.max() and (not sigma or shift == (0, 0))
                assert stored == expected or not (is_far or stored in every), (power, row, column)
            else:
                assert stored not in every or codec != "jpeg", (power, row, column)


def border(shape: tuple[int, int], shift: tuple[int, int], sigma: float) -> Pixels:
    """The layer's fade at the sides that lie inside the canvas (here: its upper and its left one)."""
    from scipy.special import erf

    factors = []
    for size, start in zip(shape, shift, strict=True):
        along = np.ones(size)
        if start:
            along[start:] = erf((np.arange(size - start) + 0.5) / (sigma * np.sqrt(2)))
        along[along > 1 - 2**-12] = 1
        factors.append(along)
    return np.outer(*factors).astype(np.float32)


@pytest.mark.parametrize("writer", ["shared tables", "complete"])
def test_readers_see_the_inputs_own_pixels_and_near_ones(tmp_path: Path, writer: str) -> None:
    pyvips = pytest.importorskip("pyvips", reason="pyvips is not installed")
    openslide = pytest.importorskip("openslide", reason="openslide is not installed")
    shape = (700, 900)
    make = vips_slide if writer == "shared tables" else lambda path, pixels: slide(path, pixels, (0, 1, 2))
    base, over = make(tmp_path / "base.tif", picture(shape, 1)), make(tmp_path / "over.tif", picture(shape, 2))
    mask = np.zeros(shape, np.uint8)
    mask[200:500, 300:800] = 255
    layers = (
        tb.Layer(open_source(base)),
        masked(over, mask),
    )
    out = blend(tmp_path, *layers)
    plain = levels_of(blend(tmp_path, *layers, name="plain.ome.tif", compression="deflate", chunk=64, shard=512))
    levels = levels_of(out)
    with tifffile.TiffFile(out) as tiff:
        assert [page.jpegtables is not None for page in tiff.pages] == [writer == "shared tables"] * len(levels)
    off = np.abs(levels[0].astype(int) - plain[0])
    assert (off.mean(), np.percentile(off, 99)) <= (1.5, 9), (off.mean(), np.percentile(off, 99))
    assert off[:128].max() == 0
    for level, pixels in enumerate(levels):
        options = {"subifd": level - 1} if level else {}
        seen, own = (
            pyvips.Image.new_from_file(str(path), fail_on="warning", **options).numpy() for path in (out, base)
        )
        # Decoders interpolate chroma in ways of their own: each sees its own pixels of the base.
        unmixed = 128 >> level if level < 2 else 0
        np.testing.assert_array_equal(seen[:unmixed], own[:unmixed])
        assert np.abs(seen.astype(int) - pixels).mean() < 1
    with openslide.OpenSlide(str(out)) as opened:
        assert opened.level_dimensions == tuple(pixels.shape[1::-1] for pixels in levels)
        for level, size in enumerate(opened.level_dimensions):
            seen = np.asarray(opened.read_region((0, 0), level, size))[:, :, :3].astype(int)
            assert np.abs(seen - levels[level]).mean() < 1
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        seen, own = (np.moveaxis(rasterio.open(path).read(), 0, 2) for path in (out, base))
    np.testing.assert_array_equal(seen[:128], own[:128])
    assert np.abs(seen.astype(int) - levels[0]).mean() < 1


def test_made_tiles_have_the_bases_tables(tmp_path: Path) -> None:
    """Quantisation and sampling of every tile, passed or made, are the base's: no step of quality shows."""
    base = slide(tmp_path / "base.tif", picture((320, 320), 1), (0, 1), compressionargs={"level": 61})
    over = slide(tmp_path / "over.tif", picture((320, 320), 2), (0, 1), compressionargs={"level": 93})
    mask = np.zeros((320, 320), np.uint8)
    mask[100:220, 100:220] = 255
    layers = (
        tb.Layer(open_source(base)),
        masked(over, mask),
    )
    out, own, others = Stored.of(blend(tmp_path, *layers)), Stored.of(base), Stored.of(over)
    for (_, tiles, _), (_, stored, _), (_, passed, _) in zip(out.levels, own.levels, others.levels, strict=True):
        first = read_header(stored[0, 0])
        made = {place: data for place, data in tiles.items() if data not in (stored[place], passed[place])}
        assert made
        for place, data in made.items():
            header = read_header(data)
            assert header.quantisation == first.quantisation, place
            assert header.components == first.components


def test_16_bit_channels_pass_by_plane(tmp_path: Path) -> None:
    pixels = [picture((300, 260), seed, 4, np.uint16) for seed in (1, 2)]
    for name, planes in zip(("base", "over"), pixels, strict=True):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True) as tiff:
            tiff.write(
                np.moveaxis(planes, 2, 0), tile=(64, 64), compression="deflate", predictor=2, photometric="minisblack",
                metadata={"axes": "CYX"},
            )  # fmt: skip
    mask = np.zeros((300, 260), np.uint8)
    mask[70:250, 20:250] = 255
    base, over = (open_source(tmp_path / f"{name}.ome.tif") for name in ("base", "over"))
    layers = (tb.Layer(base), tb.Layer(over, mask=tb.from_array(mask, axes="yx")))
    out = blend(tmp_path, *layers)
    plain = blend(tmp_path, *layers, name="plain.ome.tif", compression="deflate", chunk=64, shard=512)
    for kept, made in zip(levels_of(out), levels_of(plain), strict=True):
        np.testing.assert_array_equal(kept, made)
    with tifffile.TiffFile(out) as tiff, tifffile.TiffFile(tmp_path / "over.ome.tif") as stored:
        for page, source in zip(tiff.pages[:4], stored.pages[:4], strict=True):
            page, source = page.aspage(), source.aspage()
            assert (page.compression, page.predictor) == (8, source.predictor)
            columns = -(-260 // 64)
            for number in (2 * columns + 1, 2 * columns + 2):
                data = []
                for of, file in ((page, tiff), (source, stored)):
                    file.filehandle.seek(of.dataoffsets[number])
                    data.append(file.filehandle.read(of.databytecounts[number]))
                assert data[0] == data[1]


def test_the_default_over_jpeg_and_how_to_get_a_lossless_file(tmp_path: Path, command: Command) -> None:
    slide(tmp_path / "base.tif", picture((330, 400), 1), (0, 1))
    slide(tmp_path / "flat.tif", picture((330, 400), 1), compression="zstd")
    mask = np.zeros((330, 400), np.uint8)
    mask[50:100, 70:200] = 255
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    ran = command("blend", "base.tif", "flat.tif", "--mask", "mask.tif", "-o", "a.ome.tif", "--json")
    assert ran.code == 0
    assert ran.err.count("stored as") == 1
    assert "--compression deflate" in ran.err
    assert json.loads(ran.out)["file"]["compression"] == "keep"
    assert [level[0] for level in Stored.of(tmp_path / "a.ome.tif").levels] == [(330, 400), (165, 200)]
    for arguments, code, levels in (
        (["--compression", "deflate"], "ADOBE_DEFLATE", 1),
        (["--levels", "auto"], "JPEG", 4),
        (["--levels", "2"], "JPEG", 2),
        (["--compression", "deflate", "--levels", "keep"], "ADOBE_DEFLATE", 2),
        (["--chunk", "128", "--shard", "512"], "ADOBE_DEFLATE", 3),
    ):
        name = f"{len(arguments)}{arguments[1]}{arguments[-1]}.ome.tif"
        assert command("blend", "base.tif", "-o", name, *arguments).code == 0
        stored = Stored.of(tmp_path / name)
        assert (stored.levels[0][2].compression.name, len(stored.levels)) == (code, levels)
    assert command("blend", "flat.tif", "-o", "flat.ome.tif").code == 0
    assert Stored.of(tmp_path / "flat.ome.tif").levels[0][2].compression.name == "ADOBE_DEFLATE"
    refused = command("blend", "base.tif", "-o", "b.ome.tif", "--compression", "keep", "--chunk", "128")
    assert (refused.code, "tiles of 64 px" in refused.error) == (2, True)
    tifffile.imwrite(tmp_path / "strips.tif", picture((330, 400), 1), photometric="rgb")
    refused = command("blend", "strips.tif", "-o", "b.ome.tif", "--compression", "keep")
    assert (refused.code, "strips" in refused.error) == (2, True)
    assert command("blend", "base.tif", "-o", "b.ome.zarr", "--levels", "keep").code == 2
    planned = command("plan", "base.tif", "flat.tif", "--mask", "mask.tif", "-o", "b.ome.tif")
    assert "stored as" in planned.out


def test_kept_files_are_the_same_for_parts_threads_and_resumes(tmp_path: Path, command: Command) -> None:
    slide(tmp_path / "base.tif", picture((900, 700), 1), (0, 1, 2))
    slide(tmp_path / "over.tif", picture((900, 700), 2), (0, 1, 2))
    mask = np.zeros((900, 700), np.uint8)
    mask[100:800, 200:400] = 255
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    arguments = [
        "blend",
        "base.tif",
        "over.tif",
        "--mask",
        "mask.tif",
        "--feather",
        "5px",
        "--chunk",
        "64",
        "--shard",
        "128",
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "parts").mkdir()
    assert command(*arguments, "-o", "one/out.ome.tif").code == 0
    for step in (["--part", "2/2"], ["--part", "1/2"], ["--finish"]):
        assert command(*arguments, "-o", "parts/out.ome.tif", *step).code == 0
    whole = (tmp_path / "one/out.ome.tif").read_bytes()
    assert (tmp_path / "parts/out.ome.tif").read_bytes() == whole
    assert "complete already" in command(*arguments, "-o", "one/out.ome.tif", "--resume").out
    assert command("verify", "one/out.ome.tif").code == 0


def test_a_damaged_tile_is_found_though_it_is_not_decoded(tmp_path: Path, command: Command) -> None:
    path = slide(tmp_path / "base.tif", picture((320, 320), 1), (0, 1))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[7], page.databytecounts[7]
    with open(path, "r+b") as file:  # its second half is gone, with its end marker
        file.seek(offset + count // 2)
        file.write(bytes(count // 2))
    ran = command("blend", "base.tif", "-o", "out.ome.tif")
    errors = [line for line in ran.err.splitlines() if "error" in line]
    assert (ran.code, len(errors), "level 0" in errors[0]) == (4, 1, True)
    assert not os.path.exists(tmp_path / "out.ome.tif")


def pair(folder: Path) -> list[str]:
    slide(folder / "base.tif", picture((900, 700), 1), (0, 1, 2))
    slide(folder / "over.tif", picture((900, 700), 2), (0, 1, 2))
    mask = np.zeros((900, 700), np.uint8)
    mask[100:800, 200:400] = 255
    tifffile.imwrite(folder / "mask.tif", mask)
    return ["base.tif", "over.tif", "--mask", "mask.tif", "--feather", "5px", "-o", "out.ome.tif"]


def test_plan_foretells_what_passes_and_the_run_says_it(tmp_path: Path, command: Command) -> None:
    arguments = pair(tmp_path)
    planned = json.loads(command("plan", *arguments, "--exact", "--json").out)["passing"]
    ran = command("blend", *arguments, "--json")
    found = json.loads(ran.out)["file"]["passed"]
    assert [level["tiles"] for level in planned] == [level["tiles"] for level in found]
    for level, of in zip(planned, found, strict=True):
        assert round(level["passed_share"] * level["tiles"]) == of["passed"]
    assert found[0]["passed"] > found[0]["tiles"] // 2
    out, sources = (
        Stored.of(tmp_path / "out.ome.tif"),
        [Stored.of(tmp_path / f"{name}.tif") for name in ("base", "over")],
    )
    for number, (_, tiles, _) in enumerate(out.levels):
        stored = {data for source in sources for data in source.levels[number][1].values()}
        assert sum(data in stored for data in tiles.values()) == found[number]["passed"]
    assert planned[0]["copied_bytes"] > 0
    assert "passes   level 0:" in command("plan", *arguments[:-1], "b.ome.tif").out
    told = json.loads(command("info", "base.tif", "mask.tif", "--json").out)["images"]
    assert [entry["passes"]["tiles"] for entry in told] == [True, False]
    assert "can pass" in command("info", "base.tif").out


def test_verify_against_inputs(tmp_path: Path, command: Command) -> None:
    arguments = pair(tmp_path)
    assert command("blend", *arguments).code == 0
    for count in ("all", "2"):
        ran = command("verify", "out.ome.tif", "--against-inputs", count)
        assert (ran.code, "the same" in ran.out) == (0, True)
    assert str(tmp_path).encode() not in (tmp_path / "out.ome.tif").read_bytes()
    (tmp_path / "out.ome.tif").rename(tmp_path / "moved.ome.tif")
    with tifffile.TiffFile(tmp_path / "over.tif") as tiff:
        page = tiff.pages[0]
        place = 5 * -(-700 // SIDE) + 4  # a tile that passed
        offset, count = page.dataoffsets[place], page.databytecounts[place]
    with open(tmp_path / "over.tif", "r+b") as file:
        file.seek(offset + count - 40)
        data = file.read(1)
        file.seek(offset + count - 40)
        file.write(bytes([data[0] ^ 1]))
    ran = command("verify", "moved.ome.tif", "--against-inputs", "all")
    assert ran.code == 7
    assert "not what the inputs give" in ran.err
