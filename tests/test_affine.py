"""Layers placed by an affine matrix: against scipy's whole-image resampling, tile by tile, and as jobs state it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from pyramids import Pyramid, halved_levels
from scipy import ndimage
from test_equivalence import assert_same_bits, examples, fused, whole_array
from test_levels import smooth

import tiledblend as tb
from tiledblend.compose.scene import decide
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.levels import at_level
from tiledblend.describe.matrix import affine_of, matrix_rows
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Affine, Region
from tiledblend.kernels.affine import Warped

Array = np.ndarray[Any, Any]
CANVAS = (150, 190)


def turned(degrees: float, scale: float, x: float, y: float, shear: float = 0.0) -> Affine:
    c, s = math.cos(math.radians(degrees)) * scale, math.sin(math.radians(degrees)) * scale
    return Affine(c, -s + shear, x, s, c, y)


def noise(shape: tuple[int, int], seed: int = 0, dtype: str = "uint8", channels: int = 3) -> Array:
    full = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    return (np.random.default_rng(seed).random((*shape, channels)) * full).astype(dtype)


def warped_by_scipy(pixels: Array, affine: Affine, canvas: tuple[int, int], order: int = 1) -> Array:
    """float64 (y, x, c) on the canvas, by indices: scipy's pixel centres are whole numbers."""
    back = affine.inverse()
    matrix = np.array([[back.e, back.d], [back.b, back.a]])
    offset = np.array([back.f, back.c]) + matrix @ [0.5, 0.5] - 0.5
    planes = [
        ndimage.affine_transform(plane.astype(float), matrix, offset, canvas, order=order, mode="nearest")
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(planes, axis=2)


def inside_of(affine: Affine, shape: tuple[int, int], canvas: tuple[int, int], margin: float = 0.0) -> Array:
    """bool (y, x): pixels whose centre is mapped into the layer, at least `margin` from its border."""
    y, x = np.mgrid[: canvas[0], : canvas[1]] + 0.5
    u, v = affine.inverse().of(x, y)
    return (u >= margin) & (u < shape[1] - margin) & (v >= margin) & (v < shape[0] - margin)


MAPS = [
    turned(3, 1, 20.3, -5.2),
    turned(-7.5, 1.04, 10, 40, 0.02),
    turned(45, 0.9, 90.3, -20.1),
    turned(90, 1, 150, 0),
    turned(0, 1, 0.5, 0.25),
    turned(180, 2.3, 180, 149),
    Affine(-1, 0, 120, 0, 1, 3),
    turned(20, 0.6, 30, 30),
]


@pytest.mark.parametrize("affine", MAPS, ids=lambda a: f"{a.a:.2f} {a.b:.2f}")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_within_one_grey_level_of_scipys_whole_image(affine: Affine, dtype: str) -> None:
    base, over = noise(CANVAS, 1, dtype), noise((120, 130), 2, dtype)
    layers = [tb.Layer(tb.from_array(base, axes="yxc")), tb.Layer(tb.from_array(over, axes="yxc"), affine=affine)]
    got = tb.to_array(tb.Composite(layers)).astype(float)
    expected = warped_by_scipy(over, affine, CANVAS)
    inside = inside_of(affine, (120, 130), CANVAS)
    assert inside.sum() > 1000
    limit = 0.51 if dtype != "float32" else 1e-5
    if dtype == "uint16":
        limit = 1  # float32 positions within a pixel
    assert np.abs(got - expected)[inside].max() <= limit
    np.testing.assert_array_equal(got[~inside], base[~inside])


def test_opencv_agrees_when_centres_are_whole_numbers() -> None:
    """cv2.warpAffine takes the same numbers with `centre: 0`; its own fractions are 1/32 pixel, so a smooth image."""
    over = smooth((120, 130), 1)
    rows = [[1.02, -0.1, 14.5], [0.08, 0.97, 9.25]]
    base = tb.Layer(tb.from_array(np.zeros((*CANVAS, 3), np.uint8), axes="yxc"))
    layer = tb.Layer(tb.from_array(over, axes="yxc"), affine=Affine.of_matrix(rows, centre=0))
    got = tb.to_array(tb.Composite([base, layer])).astype(int)
    expected = cv2.warpAffine(over, np.array(rows), CANVAS[::-1], flags=cv2.INTER_LINEAR).astype(int)
    inside = inside_of(layer.affine, (120, 130), CANVAS, 1)  # type: ignore[arg-type]
    assert np.abs(got - expected)[inside].max() <= 1


affines = st.builds(
    Affine,
    *(st.floats(0.3, 2.5), st.floats(-1.5, 1.5), st.floats(-40, 120)),
    *(st.floats(-1.5, 1.5), st.one_of(st.floats(0.3, 2.5), st.floats(-2, -0.4)), st.floats(-40, 120)),
).filter(lambda a: abs(a.determinant) > 0.15 and a.stretch[0] > 0.1)


@examples(70)
@given(
    affine=affines,
    sigma=st.sampled_from([0.0, 0.0, 3.0, 11.0]),
    pixel_width=st.sampled_from([1.0, 1.0, 0.4]),
    mask=st.sampled_from(["none", "layer", "small", "canvas", "labels", "alpha"]),
    dtype=st.sampled_from(["uint8", "float32"]),
    chunk=st.sampled_from([16, 32]),
    lazy_chunk=st.sampled_from([13, 50]),
    level=st.sampled_from([0, 0, 1, 2]),
    levels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_whole_lazy_and_fused_are_the_same_bits(
    affine: Affine,
    sigma: float,
    pixel_width: float,
    mask: str,
    dtype: str,
    chunk: int,
    lazy_chunk: int,
    level: int,
    levels: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    has_alpha = mask == "alpha" or bool(rng.integers(0, 4) == 0)
    alpha = tb.Alpha.STRAIGHT if has_alpha else tb.Alpha.NONE
    pixels = noise(shape, seed, dtype, 3 + has_alpha)
    if dtype == "float32" and not has_alpha:
        pixels[rng.random(pixels.shape) < 0.02] = np.nan
    options: dict[str, Any] = {"mask": "alpha"} if mask == "alpha" else {}
    if mask not in ("none", "alpha"):
        size = {"small": (-(-shape[0] // 4), -(-shape[1] // 4)), "canvas": (100, 120)}.get(mask, shape)
        values = rng.integers(0, 5, size).astype(np.uint8) if mask == "labels" else rng.random(size) > 0.4
        options = {"mask": tb.from_array(values, axes="yx", mask=True)}
        options |= {"mask_values": tb.Labels((2, 3))} if mask == "labels" else {}
        options |= {"mask_frame": "canvas"} if mask == "canvas" else {}
    base = tb.Layer(tb.from_array(noise((100, 120), 1, dtype), axes="yxc", pixel_size_um=(1.0, pixel_width)))
    image = Pyramid(halved_levels(pixels, levels, has_alpha), alpha=alpha)
    try:
        composite = tb.Composite([base, tb.Layer(image, affine=affine, feather=tb.Feather.um(sigma), **options)])
    except BadInputError:  # it lies wholly outside
        return
    composite = at_level(composite, level)
    scene = decide(composite)
    whole, background = whole_array(scene)
    got, stats = fused(scene, OutputSpec(chunk, 2 * chunk, levels=1).grid(composite.shape))
    assert_same_bits(got[0], whole)
    assert stats.background == background
    lazy = tb.to_dask(composite, chunk=lazy_chunk).compute(scheduler="synchronous")
    assert_same_bits(np.moveaxis(lazy, 0, 2), whole)


@examples(150)
@given(
    affine=affines,
    method=st.sampled_from(["linear", "nearest"]),
    points=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_tile_is_that_part_of_the_whole(
    affine: Affine, method: Any, points: int, seed: int, data: st.DataObject
) -> None:
    pixels = noise((50, 60), seed)
    sampling = Warped(affine, (50, 60), (-7, 11), points)

    def sampled(region: Region) -> Array:
        needed = sampling.source_region(region, method)
        assert Region(0, 0, 50, 60).contains(needed)
        return sampling.resample(pixels[needed.slices], region, method)

    whole = sampled(Region(0, 0, 40, 45))
    y0, x0 = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 44))
    tile = Region(y0, x0, data.draw(st.integers(y0 + 1, 40)), data.draw(st.integers(x0 + 1, 45)))
    np.testing.assert_array_equal(sampled(tile), whole[tile.slices])


def test_a_whole_shift_is_an_offset_bit_for_bit() -> None:
    over = noise((60, 70), 3, "float32")
    over[0, 0] = np.nan
    base = tb.Layer(tb.from_array(noise(CANVAS, 1, "float32"), axes="yxc"))
    image = tb.from_array(over, axes="yxc")
    feather = tb.Feather.px(4)
    one = tb.Composite([base, tb.Layer(image, affine=[[1, 0, 12], [0, 1, -5]], feather=feather)])  # type: ignore[arg-type]
    other = tb.Composite([base, tb.Layer(image, offset=(-5, 12), feather=feather)])
    assert one.placement(one.layers[1]) == other.placement(other.layers[1])
    assert_same_bits(tb.to_array(one), tb.to_array(other))


# --- masks and borders


def weight_of(composite: tb.Composite, index: int = 1) -> Array:
    from tiledblend.compose.composed import WeightSource

    return WeightSource(composite, index).read(Region.of_shape(composite.shape))[:, :, 0] / 255


def on_canvas(affine: Affine, shape: tuple[int, int], **options: Any) -> tb.Composite:
    base = tb.Layer(tb.from_array(np.zeros((*CANVAS, 1), np.uint8), axes="yxc"))
    over = tb.from_array(np.full((*shape, 1), 200, np.uint8), axes="yxc")
    return tb.Composite([base, tb.Layer(over, affine=affine, **options)])


def test_a_layers_mask_is_warped_along_and_its_border_is_no_edge_of_it() -> None:
    affine = turned(-7.5, 1.04, 10, 40, 0.02)
    cover = np.zeros((90, 120), np.uint8)
    cover[30:, 20:70] = 255
    mask = tb.from_array(cover, axes="yx", mask=True)
    got = weight_of(on_canvas(affine, (90, 120), mask=mask))
    expected = warped_by_scipy(cover[:, :, None], affine, CANVAS)[..., 0] / 255
    expected[~inside_of(affine, (90, 120), CANVAS)] = 0
    assert np.abs(got - expected).max() < 0.006
    # a mask of ones, feathered: the layer's own border and nothing else
    ones = tb.from_array(np.ones((90, 120), bool), axes="yx", mask=True)
    feather = tb.Feather.px(5)
    with_mask = weight_of(on_canvas(affine, (90, 120), mask=ones, feather=feather))
    without = weight_of(on_canvas(affine, (90, 120), feather=feather))
    np.testing.assert_array_equal(with_mask, without)


def test_labels_and_smaller_masks_are_never_mixed() -> None:
    affine = turned(30, 1.3, 60, -10)
    labels = np.random.default_rng(0).integers(0, 4, (90, 120)).astype(np.uint8)
    for f, shrunk in ((1, labels), (4, labels[::4, ::4])):
        mask = tb.from_array(shrunk, axes="yx", mask=True)
        got = weight_of(on_canvas(affine, (90, 120), mask=mask, mask_values=tb.Labels((2,))))
        y, x = np.mgrid[: CANVAS[0], : CANVAS[1]] + 0.5
        u, v = affine.inverse().of(x, y)
        at = np.clip(v // f, 0, shrunk.shape[0] - 1).astype(int), np.clip(u // f, 0, shrunk.shape[1] - 1).astype(int)
        inside = inside_of(affine, (90, 120), CANVAS)
        np.testing.assert_array_equal(got, (shrunk[at] == 2) & inside)


def test_the_border_fades_by_the_distance_to_each_side() -> None:
    affine, sigma = turned(25, 1, 70, 10), 6.0
    got = weight_of(on_canvas(affine, (80, 90), feather=tb.Feather.px(sigma)))
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]] + 0.5
    u, v = affine.inverse().of(x, y)  # a rotation: distances in the layer are distances on the canvas
    from scipy.special import erf

    sides = [erf(np.maximum(d, 0) / (sigma * np.sqrt(2))) for d in (u, 90 - u, v, 80 - v)]
    assert np.abs(got - np.prod(sides, axis=0)).max() < 0.004


def test_the_border_fades_in_micrometres_where_pixels_are_not_square() -> None:
    """A rotation in micrometres is no rotation on pixels of 2 x 0.5 um; the border fades by micrometres."""
    height, width = 2.0, 0.5
    physical, sigma = turned(25, 1, 35, 20), 6.0
    affine = tb.Affine.scaling(1 / width, 1 / height).after(physical).after(tb.Affine.scaling(width, height))
    base = tb.Layer(tb.from_array(np.zeros((*CANVAS, 1), np.uint8), axes="yxc", pixel_size_um=(height, width)))
    over = tb.from_array(np.full((60, 120, 1), 200, np.uint8), axes="yxc")
    got = weight_of(tb.Composite([base, tb.Layer(over, affine=affine, feather=tb.Feather.um(sigma))]))
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]] + 0.5
    u, v = physical.inverse().of(x * width, y * height)
    from scipy.special import erf

    sides = [erf(np.maximum(d, 0) / (sigma * np.sqrt(2))) for d in (u, 120 * width - u, v, 60 * height - v)]
    assert got.max() > 0.9
    assert np.abs(got - np.prod(sides, axis=0)).max() < 0.004


def test_a_side_outside_the_canvas_does_not_fade() -> None:
    affine = turned(10, 3, -40, -60)
    got = weight_of(on_canvas(affine, (120, 120), feather=tb.Feather.px(9)))
    assert (got == 1).all()


# --- shrinking


@pytest.mark.parametrize(("scale", "level", "points"), [(0.6, 0, 1), (0.5, 1, 1), (0.3, 1, 1), (0.1, 3, 1)])
def test_a_shrinking_map_reads_the_level_that_fits(scale: float, level: int, points: int) -> None:
    affine = turned(12, scale, 30, 10)
    image = Pyramid(halved_levels(smooth((400, 500), 0), 4))
    base = tb.Layer(tb.from_array(np.zeros((*CANVAS, 3), np.uint8), axes="yxc"))
    composite = tb.Composite([base, tb.Layer(image, affine=affine)])
    reader = decide(composite).readers[1]
    assert isinstance(reader.pixels.sampling, Warped)
    assert (reader.pixels.level, reader.pixels.sampling.points) == (level, points)
    got = tb.to_array(composite).astype(float)
    expected = warped_by_scipy(smooth((400, 500), 0), affine, CANVAS)
    inside = inside_of(affine, (400, 500), CANVAS, 12)
    assert np.abs(got - expected)[inside].max() < 4
    assert set(image.reads) == {level}


def test_without_levels_several_points_are_averaged() -> None:
    """A fine checkerboard becomes grey, not a moiré."""
    board = np.indices((640, 640)).sum(0) % 2 * np.uint8(200)
    base = tb.Layer(tb.from_array(np.zeros((*CANVAS, 1), np.uint8), axes="yxc"))
    image = tb.from_array(board.astype(np.uint8)[:, :, None], axes="yxc")
    affine = turned(17, 0.2, 40, 10)
    got = tb.to_array(tb.Composite([base, tb.Layer(image, affine=affine)]))[..., 0]
    inside = inside_of(affine, (640, 640), CANVAS, 6)
    assert np.abs(got[inside].astype(int) - 100).max() < 20


# --- stating it


def test_matrices_in_both_directions_and_conventions() -> None:
    rows = [[1.1, 0.2, 7.0], [-0.1, 0.9, 3.0]]
    affine = Affine.of_matrix(rows)
    assert affine.of(2, 5) == pytest.approx((1.1 * 2 + 0.2 * 5 + 7, -0.1 * 2 + 0.9 * 5 + 3))
    assert Affine.of_matrix([*rows, [0, 0, 1]]) == affine
    back = Affine.of_matrix(affine.inverse().rows, inverse=True)
    assert np.allclose(back.rows, affine.rows)
    # the centre of pixel (3, 4) is (4, 3) by indices and (4.5, 3.5) by corners
    by_index = Affine.of_matrix(rows, centre=0)
    assert by_index.of(4.5, 3.5) == pytest.approx(tuple(v + 0.5 for v in affine.of(4, 3)))
    stated = affine_of({"matrix": rows, "maps": "canvas_to_layer", "centre": 0})
    assert stated is not None
    assert stated.of(*(v + 0.5 for v in affine.of(4, 3))) == pytest.approx((4.5, 3.5))
    assert affine.after(affine.inverse()).of(3, 4) == pytest.approx((3, 4))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1 0 5.5\n0 1 -3\n", [[1, 0, 5.5], [0, 1, -3]]),
        ("1, 0, 5.5, 0, 1, -3", [[1, 0, 5.5], [0, 1, -3]]),
        ("[[1e0, 0, 5.5], [0, 1, -3], [0, 0, 1]]", [[1, 0, 5.5], [0, 1, -3], [0, 0, 1]]),
        ("\ufeff1;0;5.5;0;1;-3;", [[1, 0, 5.5], [0, 1, -3]]),
    ],
)
def test_matrix_files(text: str, rows: Any) -> None:
    assert matrix_rows(text.encode(), "m.txt") == rows


@pytest.mark.parametrize("text", ["", "1 0 0 1", "tx: 1 2 3 4 5 6", "1 0 5 0 1 nan", "1 2 3 4 5 6 7", "0x1 2 3 4 5"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"m\.txt: not an affine matrix"):
        matrix_rows(text.encode(), "m.txt")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[1, 2, 3], [2, 4, 5]], "no inverse"),
        ([[0, 0, 3], [0, 0, 5]], "no inverse"),
        ([[1, 0], [0, 1]], "must be"),
        ([[1, 0, 0], [0, 1, 0], [0, 0.1, 1]], "must be"),
        ([[1, 0, math.inf], [0, 1, 0]], "numbers up to"),
        ("abc", "must be"),
    ],
)
def test_wrong_matrices(rows: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tb.Layer(tb.from_array(noise((9, 9)), axes="yxc"), affine=rows)


def test_refusals() -> None:
    image = tb.from_array(noise((20, 20)), axes="yxc", name="over")
    with pytest.raises(UsageError, match="affine and an offset"):
        tb.Layer(image, affine=turned(1, 1, 0, 0), offset=(1, 1))
    with pytest.raises(UsageError, match="affine and fit"):
        tb.Layer(image, affine=turned(1, 1, 0, 0), fit="canvas")
    base = tb.Layer(tb.from_array(noise(CANVAS), axes="yxc"))
    # its box touches the canvas, its pixels do not
    with pytest.raises(BadInputError, match=r"outside the canvas .* does the matrix map the other way"):
        tb.Composite([base, tb.Layer(image, affine=turned(45, 1, -14.5, -13.9))])


def test_flag_key_and_file_say_the_same(command: Command, tmp_path: Path) -> None:
    for name, shape, seed in (("base.tif", CANVAS, 1), ("over.tif", (120, 130), 2)):
        tifffile.imwrite(tmp_path / name, noise(shape, seed), photometric="rgb", tile=(64, 64))
    affine = turned(-7.5, 1.04, 10, 40, 0.02)
    numbers = ",".join(repr(v) for row in affine.rows for v in row)
    (tmp_path / "m.txt").write_text("\n".join(" ".join(repr(v) for v in row) for row in affine.rows))
    (tmp_path / "back.json").write_text(json.dumps(affine.inverse().rows))
    (tmp_path / "job.yaml").write_text("layers: [{image: base.tif}, {image: over.tif, affine: m.txt}]")
    runs = [
        ("base.tif", "over.tif", "--affine", numbers),
        ("base.tif", "over.tif", "--affine", "m.txt"),
        ("base.tif", "over.tif", "--affine", "{matrix: back.json, maps: canvas_to_layer}"),
        ("--job", "job.yaml"),
    ]
    pictures = []
    for number, arguments in enumerate(runs):
        ran = command("blend", *arguments, "-o", f"{number}.tif")
        assert ran.code == 0, ran.err
        pictures.append(tifffile.imread(tmp_path / f"{number}.tif"))
    for picture in pictures[1:2] + pictures[3:]:
        np.testing.assert_array_equal(picture, pictures[0])
    assert np.abs(pictures[2].astype(int) - pictures[0]).max() <= 1
    inside = inside_of(affine, (120, 130), CANVAS)
    expected = warped_by_scipy(noise((120, 130), 2), affine, CANVAS)
    assert np.abs(pictures[0] - expected)[inside].max() <= 0.51
    planned = json.loads(command("plan", *runs[0], "--json").out)
    assert planned["shape"] == list(CANVAS)
    assert command("blend", "base.tif", "over.tif", "--affine", "1,2,3", "-o", "x.tif").code == 2
    assert command("blend", "base.tif", "over.tif", "--affine", "none.txt", "-o", "x.tif").code == 4
