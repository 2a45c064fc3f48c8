"""Feathers against scipy and OpenCV, and tile by tile against whole."""

from __future__ import annotations

from typing import Any

import cv2
import dask.array as da
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import erf

import tiledblend as tb
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.averaging import average_units
from tiledblend.kernels.border import border_bounds, border_weight
from tiledblend.kernels.cells import ENLARGED_FULL, averaged_over, enlarge, enlarged_from
from tiledblend.kernels.feather import FeatheredMask, feather_tile
from tiledblend.kernels.gaussian import TAP_SUM, FeatherKernel
from tiledblend.kernels.mirror import mirror_index, read_mirrored
from tiledblend.kernels.snap import inside_only, snap, units_to_weight

Array = NDArray[Any]
SIGMAS = (
    0.5,
    0.8,
    1,
    2,
    3.12,
    3.125,
    3.3,
    3.49,
    3.5,
    4,
    5.9,
    6.99,
    7,
    8,
    11.9,
    13.9,
    14,
    18,
    27.9,
    28,
    40,
    64,
    111,
    150,
    300,
)
UNLIKE_SIGMAS = ((0.6, 1.5), (2, 5), (9, 3), (0, 20), (7.9, 8), (12, 31.2), (150, 40), (4, 100), (300, 240), (256, 3))
SNAP = 2.0**-12


def units_of(kind: str, shape: tuple[int, int], dtype: Any = np.uint8) -> Array:
    """A full-scale integer mask."""
    rng = np.random.default_rng(abs(hash(shape)) % 1000)
    y, x = np.mgrid[: shape[0], : shape[1]]
    unit = {
        "random": rng.random(shape),
        "step": x >= shape[1] // 2,
        "edge step": y < 1,
        "checkerboard": (x + y) % 2 == 0,
        "large checkerboard": (x // 37 + y // 23) % 2 == 0,
        "one pixel": (x == shape[1] // 3) & (y == shape[0] // 2),
        "corner pixel": (x == 0) & (y == 0),
        "one hole": (x != shape[1] // 3) | (y != shape[0] // 2),
    }[kind]
    return np.rint(np.asarray(unit, float) * np.iinfo(dtype).max).astype(dtype)


def whole(kernel: FeatherKernel, units: Array) -> Array:
    return feather_tile(kernel, Region.of_shape(units.shape), units.shape, lambda r: units[r.slices])


@pytest.mark.parametrize("sigma", SIGMAS + UNLIKE_SIGMAS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_error_against_scipy(sigma: Any, dtype: Any) -> None:
    worst: dict[str, float] = {}
    kinds = (
        "random",
        "step",
        "edge step",
        "checkerboard",
        "large checkerboard",
        "one pixel",
        "corner pixel",
        "one hole",
    )
    for kind in kinds:
        units = units_of(kind, (211, 333), dtype)
        expected = reference.feather(units / np.iinfo(dtype).max, sigma)
        worst[kind] = float(np.abs(whole(FeatherKernel(sigma), units) - expected).max())
    assert max(worst.values()) <= 0.002, worst


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 400), (400, 1), (2, 3), (5, 5), (13, 40), (61, 7)])
@pytest.mark.parametrize("sigma", [0.6, 3, 11.9, 12, 20, 64, 150, 300, (3, 64), (300, 20)])
def test_images_smaller_than_the_halo(shape: tuple[int, int], sigma: Any) -> None:
    """The mirror folds more than once when sigma is larger than the image."""
    for kind in ("random", "step", "corner pixel"):
        units = units_of(kind, shape, np.uint16)
        error = np.abs(whole(FeatherKernel(sigma), units) - reference.feather(units / 65535, sigma)).max()
        assert error <= 0.002, (kind, error)


@pytest.mark.parametrize("ksize", [3, 5, 7, 9, 11, 31])
def test_ksize_is_opencvs_gaussian_blur(ksize: int) -> None:
    for kind in ("random", "step", "one pixel", "corner pixel"):
        units = units_of(kind, (90, 120), np.uint16)
        expected = cv2.GaussianBlur(units / 65535.0, (ksize, ksize), 0)
        got = whole(FeatherKernel(0, ksize), units)
        # Snapping moves a value by up to 2**-12; what OpenCV's own taps are rounded to is far below that.
        assert np.abs(got - reference.snapped(expected)).max() <= 2.5e-4
        inner = (expected > SNAP * 1.1) & (expected < 1 - SNAP * 1.1)
        assert np.abs(got - expected)[inner].max(initial=0) <= 2e-5


def test_ksize_5_is_sigma_1_1_and_radius_2() -> None:
    assert FeatherKernel(0, 5).halo_px == (2, 2)
    assert FeatherKernel(0, 1).is_identity


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    shape=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    sigma=st.sampled_from(
        [0.0, 0.7, 2.5, 3.2, 4.0, 11.9, 19.0, 50.0, 260.0, (2.5, 0.9), (5.0, 12.5), (0, 9), (260.0, 50.0), (40, 3)]
    ),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    data=st.data(),
)
def test_a_tile_is_that_part_of_the_whole(
    seed: int, shape: tuple[int, int], sigma: Any, dtype: Any, data: st.DataObject
) -> None:
    units = (np.random.default_rng(seed).random(shape) * np.iinfo(dtype).max).astype(dtype)
    kernel = FeatherKernel(sigma)
    expected = whole(kernel, units)
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in shape)
    tile = Region(y0, x0, *(data.draw(st.integers(a + 1, n)) for a, n in zip((y0, x0), shape, strict=True)))
    reads: list[Region] = []

    def read(region: Region) -> Array:
        reads.append(region)
        return units[region.slices]

    np.testing.assert_array_equal(feather_tile(kernel, tile, shape, read), expected[tile.slices])
    assert all(tile.grow(*kernel.halo_px).contains(region) for region in reads)
    # Prepared for one region, asked for a part: the same bits, inside the promised bounds.
    prepared = FeatheredMask(kernel, Region.of_shape(shape), shape, read)
    part = prepared.weight(tile)
    np.testing.assert_array_equal(part, expected[tile.slices])
    low, high = prepared.bounds(tile)
    assert low - 1e-6 <= part.min()
    assert part.max() <= max(high, SNAP if high else 0) + 1e-6 or high > 1 - 2 * SNAP
    assert low < 1 or (part == 1).all()
    assert high > 0 or (part == 0).all()


@pytest.mark.parametrize("sigma", [0, 1, 7, 12, 33, 150, 300])
def test_plateaus_are_exact(sigma: float) -> None:
    for dtype in (np.uint8, np.uint16):
        for value in (0, np.iinfo(dtype).max):
            weight = whole(FeatherKernel(sigma), np.full((70, 90), value, dtype))
            assert (weight == (value > 0)).all()


@pytest.mark.parametrize("sigma", [2, 14, 30])
def test_far_from_the_edge_nothing_is_left(sigma: float) -> None:
    units = units_of("step", (8, 1000))
    weight = whole(FeatherKernel(sigma), units)
    reach = int(4 * sigma)
    assert (weight[:, : 500 - reach] == 0).all()
    assert (weight[:, 500 + reach :] == 1).all()
    assert ((weight[:, 499] > 0.4) & (weight[:, 499] < 0.5) & (weight[:, 500] > 0.5)).all()
    assert (np.diff(weight, axis=1) >= 0).all()


def test_snapping() -> None:
    values = np.array([0, SNAP * 0.99, SNAP, 0.5, 1 - SNAP, np.float32(1 - SNAP * 0.9), 1], np.float32)
    np.testing.assert_array_equal(snap(values.copy()), np.array([0, 0, SNAP, 0.5, 1 - SNAP, 1, 1], np.float32))


def test_units_to_weight() -> None:
    np.testing.assert_array_equal(units_to_weight(np.array([[0, 51, 255]], np.uint8)), np.float32([[0, 0.2, 1]]))
    np.testing.assert_array_equal(units_to_weight(np.array([[15, 65530]], np.uint16)), np.float32([[0, 1]]))


def test_inside_only_leaves_nothing_outside_the_mask() -> None:
    units = units_of("step", (20, 200))
    weight = inside_only(whole(FeatherKernel(9), units))
    assert (weight[units == 0] == 0).all()
    assert (weight[:, 150:] == 1).all()
    expected = reference.feather(units / 255, 9, side="inside")
    assert np.abs(weight - expected).max() <= 0.004


@pytest.mark.parametrize("side", [(2, 2), (4, 4), (8, 8), (16, 16), (1, 4), (8, 1), (2, 16), (32, 4)])
def test_average_units_against_numpy(side: tuple[int, int]) -> None:
    """Around each cell's centre (1, 4, 6, 4, 1) / 16 again and again, each time on a grid twice as coarse."""
    (dy, dx), (vertical, horizontal) = side, (_binomials(d) for d in side)
    rng = np.random.default_rng(dx)
    where = averaged_over(Region(3, -2, 8, 2), side)
    assert (where.y0, where.x0) == (3 * dy - len(vertical) // 2, -2 * dx - len(horizontal) // 2)
    for dtype in (np.uint8, np.uint16):
        units = rng.integers(0, np.iinfo(dtype).max + 1, where.shape, dtype)
        expected = np.empty((5, 4))
        for y, x in np.ndindex(5, 4):
            rows, columns = slice(y * dy, y * dy + len(vertical)), slice(x * dx, x * dx + len(horizontal))
            expected[y, x] = vertical @ (units[rows, columns] / np.iinfo(dtype).max) @ horizontal
        assert np.abs(average_units(units, side) - expected * 65535).max() <= 2


def _binomials(d: int) -> Array:
    taps, step = np.ones(1), 1
    while step < d:
        spread = np.zeros(4 * step + 1)
        spread[::step] = np.array([1, 4, 6, 4, 1]) / 16
        taps, step = np.convolve(taps, spread), 2 * step
    return taps


@pytest.mark.parametrize("side", [(2, 2), (4, 4), (8, 8), (1, 4), (8, 1), (2, 16), (32, 4)])
def test_enlarging_against_numpy(side: tuple[int, int]) -> None:
    """Each cell weighs on the pixels around its centre as the pixels weigh on it, d times as much."""
    (dy, dx), (vertical, horizontal) = side, (_binomials(d) * d for d in side)
    cells = np.random.default_rng(dx).integers(0, ENLARGED_FULL + 1, (9, 11), np.uint16)
    whole = np.zeros((8 * dy + len(vertical), 10 * dx + len(horizontal)))
    for y, x in np.ndindex(cells.shape):
        part = whole[y * dy : y * dy + len(vertical), x * dx : x * dx + len(horizontal)]
        part += np.outer(vertical, horizontal) * cells[y, x]
    # Cell (0, 0) of the array is (-1, 5) of the grid.
    where, region = Region(-1, 5, 8, 16), Region(2 * dy - 1, 8 * dx, 4 * dy, 11 * dx + 1)
    assert where.contains(enlarged_from(region, side))
    in_whole = region.shift(dy + len(vertical) // 2, len(horizontal) // 2 - 5 * dx)
    got = enlarge(cells, where, side, (1, 1), region)
    assert np.abs(got - whole[in_whole.slices] / ENLARGED_FULL).max() <= 2 / ENLARGED_FULL


@pytest.mark.parametrize("sigma", [*SIGMAS, (2.5, 12)])
def test_no_tap_at_a_filters_end_is_zero(sigma: Any) -> None:
    """It would cost time, and a halo that nothing reads."""
    for taps in FeatherKernel(sigma).taps():
        assert taps[0] == taps[-1] != 0


@pytest.mark.parametrize("sigma", [3.125, 3.49, 3.5, 6.99, 7, 9, 13.99, 14, 20, 27.99, 28, 111])
def test_no_mask_whatever_is_off_by_more(sigma: float) -> None:
    """Half the sum of what a pixel's weights and the Gaussian's differ by is the most that a mask can be off by.

    The weights of one pixel: averaging, taps and enlarging together, along both axes, before anything is rounded.
    """
    kernel = FeatherKernel(sigma)
    d, taps, one = kernel.cell_px[1], kernel.taps()[1] / TAP_SUM, _binomials(kernel.cell_px[1])
    assert taps.min() >= 0
    reach, half = kernel.halo_px[1], len(one) // 2
    exact = np.zeros(2 * reach + 1)
    radius = int(4 * sigma + 0.5)
    exact[reach - radius : reach + radius + 1] = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    exact /= exact.sum()
    weights = []
    for phase in {0, d // 4, d // 2, d - 1}:
        combined = np.zeros(2 * reach + 1)
        for cell in range(-4, 6):
            if abs(phase - cell * d) > half:
                continue
            for i, tap in enumerate(taps):
                start = (cell + i - len(taps) // 2) * d - phase + reach - half
                combined[start : start + len(one)] += one[phase - cell * d + half] * d * tap * one
        assert combined.sum() == pytest.approx(1)
        weights.append(combined)
    both = np.outer(exact, exact)
    assert max(np.abs(np.outer(a, b) - both).sum() for a in weights for b in weights) / 2 <= 0.002


def test_mirror_index_is_numpys_reflect_padding() -> None:
    for size in (2, 3, 7):
        padded = np.pad(np.arange(size), 20, mode="reflect")
        np.testing.assert_array_equal(mirror_index(-20, size + 20, size), padded)
    assert mirror_index(-3, 3, 1).tolist() == [0] * 6


def test_read_mirrored_reads_only_inside() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)

    def read(region: Region) -> Array:
        assert Region.of_shape(mask.shape).contains(region)
        return mask[region.slices]

    got = read_mirrored(read, Region(-2, -3, 5, 7), mask.shape)
    np.testing.assert_array_equal(got, np.pad(mask, ((2, 2), (3, 3)), mode="reflect"))


def test_border_is_the_product_of_erfs() -> None:
    for sides in ((True, True, True, True), (False, True, False, False), (True, False, False, True)):
        shape, sigmas = (50, 71), (6.0, 2.5)
        y, x = np.arange(50) + 0.5, np.arange(71) + 0.5
        expected = np.ones(shape)
        distances = (y[:, None], x[None], 50 - y[:, None], 71 - x[None])
        for used, distance, sigma in zip(sides, distances, sigmas * 2, strict=True):
            if used:
                expected = expected * erf(distance / (sigma * np.sqrt(2)))
        got = border_weight(Region.of_shape(shape), shape, sides, sigmas)
        assert got is not None
        assert np.abs(got - reference.snapped(expected)).max() <= 1e-6
        part = Region(3, 5, 20, 60)
        np.testing.assert_array_equal(border_weight(part, shape, sides, sigmas), got[part.slices])
        clear, near = Region(31, 13, 33, 40), Region(31, 12, 33, 40)
        assert border_bounds(clear, shape, (True, True, False, False), sigmas) == (1.0, 1.0)
        assert border_bounds(near, shape, (True, True, False, False), sigmas) == (0.0, 1.0)
        assert (border_weight(clear, shape, (True, True, False, False), sigmas) == 1).all()


def test_no_border_without_sides() -> None:
    assert border_weight(Region(0, 0, 3, 3), (3, 3), (False,) * 4, (5.0, 5.0)) is None


# tb.feather: the same on arrays


@pytest.mark.parametrize("chunks", [(7, 13), (64, 64), ((1, 50, 2, 47), (3, 97)), (100, 100)])
@pytest.mark.parametrize(
    "options", [{"sigma": 0}, {"sigma": 3}, {"sigma": 14}, {"sigma": 60}, {"sigma": (4, 14.5)}, {"ksize": 5}]
)
@pytest.mark.parametrize("side", ["both", "inside"])
def test_dask_equals_numpy(chunks: Any, options: dict[str, Any], side: Any) -> None:
    rng = np.random.default_rng(3)
    for mask in (rng.random((100, 100)) > 0.5, rng.random((100, 100)), rng.integers(0, 65536, (100, 100), np.uint16)):
        expected = tb.feather(mask, side=side, **options)
        lazy = tb.feather(da.from_array(mask, chunks), side=side, **options)
        assert isinstance(lazy, da.Array)
        assert lazy.dtype == np.float32
        got = lazy.compute(scheduler="synchronous")
        np.testing.assert_array_equal(got, expected)
        assert expected.dtype == np.float32
        exact = reference.feather(reference.unit_mask(mask), options.get("sigma", 0), options.get("ksize"), side)
        assert np.abs(expected - exact).max() <= (0.004 if side == "inside" else 0.002)


def test_feather_rules_for_values() -> None:
    labels = np.array([[0, 2, 5, 7]], np.int16)
    assert tb.feather(labels, values=tb.Labels((2, 5))).tolist() == [[0, 1, 1, 0]]
    assert tb.feather(labels, values="binary").tolist() == [[0, 1, 1, 1]]
    got = tb.feather(np.array([[0, 1024, 4096]], np.uint16), values=(0, 4096))
    assert np.abs(got - [[0, 0.25, 1]]).max() < 1e-4
    with pytest.raises(BadInputError, match="labels or a narrower range"):
        tb.feather(labels)
    with pytest.raises(BadInputError, match="NaN"):
        tb.feather(np.array([[0.5, np.nan]]))
    with pytest.raises(BadInputError, match="outside 0 to 1"):
        tb.feather(np.array([[0.5, 1.5]]))
    with pytest.raises(UsageError, match=r"\(y, x\)"):
        tb.feather(np.zeros((2, 2, 3), bool))


@pytest.mark.parametrize(
    "options", [{"sigma": -1}, {"sigma": float("nan")}, {"sigma": 1e9}, {"sigma": (3, -1)}, {"ksize": 4}, {"ksize": 0}]
)
def test_refused_kernels(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="feather"):
        tb.feather(np.zeros((4, 4), bool), **options)


@pytest.mark.parametrize("sigma", [3.125, 3.5, 4, 6, 7, 12, 14, 18, 28, 30, 60, 150, 300])
def test_stripes_as_wide_as_the_averaged_cells(sigma: float) -> None:
    """A grating near the cells' own frequency would alias to a slow wave; the triangle of the averaging removes it."""
    d = FeatherKernel(sigma).cell_px[1]
    x = np.arange(1500)
    for period in d * np.concatenate([np.linspace(0.8, 1.2, 9), np.linspace(3.2, 4.8, 5)]):
        units = np.tile(((x / period) % 1 < 0.5).astype(np.uint8) * 255, (d, 1))
        assert np.abs(whole(FeatherKernel(sigma), units) - reference.feather(units / 255, sigma)).max() <= 0.002


@pytest.mark.parametrize("sigma", [8, 16, 100, 256, 512, 2000, 20_000])
def test_a_strip_is_bounded_by_its_cells(sigma: float) -> None:
    """What is read at once grows with the cells, not by eight of them."""
    kernel = FeatherKernel(sigma)
    cell = kernel.cell_px[0]
    assert kernel.strip_px[0] <= max(1024, cell) + cell


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_known_of_a_mask_changes_no_bit(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    side = data.draw(st.sampled_from([16, 50, 128]), "squares of one value")
    rows, columns = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    squares = rng.choice(np.array([0, 255, 100], np.uint8), (rows, columns), p=[0.5, 0.4, 0.1])
    units = squares.repeat(side, 0).repeat(side, 1)[: rng.integers(1, rows * side + 1), : rng.integers(1, 999)]
    shape, kernel = units.shape, FeatherKernel(data.draw(st.sampled_from([2.0, 9.0, 16.0, 40.0, 300.0])))
    asked = []

    def read(region: Region) -> Array:
        assert Region.of_shape(shape).contains(region)
        return units[region.slices]

    def known(region: Region) -> Array | None:
        part = read(region)
        asked.append(int(part.min()) == int(part.max()))
        return part[:1, :1] if asked[-1] else None

    y0, x0 = rng.integers(0, shape[0]), rng.integers(0, shape[1])
    region = Region(y0, x0, rng.integers(y0, shape[0]) + 1, rng.integers(x0, shape[1]) + 1)
    plain, knowing = FeatheredMask(kernel, region, shape, read), FeatheredMask(kernel, region, shape, read, known)
    np.testing.assert_array_equal(plain.weight(region), knowing.weight(region))
    assert plain.bounds(region) == knowing.bounds(region)
    assert asked or kernel.is_direct
