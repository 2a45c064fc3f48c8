"""The centre of all tests: one composite, computed whole, lazily, tile by tile, and stored, gives the same bits; and
those bits are what a float64 reference of independent code says, within the bounds that the weights' 0.002 allow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import zarr
from drawn import Case, cases, layer_of, pattern
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Picture, full_scale

import tiledblend as tb
from tiledblend.compose.lazy import to_dask
from tiledblend.compose.modes.mode import Laid
from tiledblend.compose.pyramid import TileStats, shrink_tile
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.render import render_region, render_tile
from tiledblend.compose.scene import Scene, decide
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.geometry import Grid, Region, Tile
from tiledblend.kernels.blend import Contribution
from tiledblend.kernels.feather import feather_tile
from tiledblend.kernels.halve import halve_tile
from tiledblend.kernels.snap import inside_only
from tiledblend.run.driver import write

Array = NDArray[Any]
EXAMPLES = int(os.environ.get("TILEDBLEND_EXAMPLES", "0"))


def examples(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=EXAMPLES or count,
        deadline=None,
        derandomize=not EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def assert_same_bits(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if actual.dtype == np.float32:
        # Every NaN is one value here: its sign and payload depend on the order of a processor's operands.
        actual, expected = (np.where(np.isnan(a), np.float32(np.nan), a).view(np.uint32) for a in (actual, expected))
    np.testing.assert_array_equal(actual, expected)


def whole_array(scene: Scene) -> tuple[Array, int]:
    """(pixels (y, x, c), pixels without weight): each kernel called once, on the whole array, nothing skipped."""
    layers = {reader.index: whole_layer(reader, scene.shape) for reader in scene.readers}
    canvas = Region.of_shape(scene.shape)
    done = scene.mode.combine(Laid(canvas, canvas, layers, scene.ground))
    return done.pixels, done.background


def whole_layer(reader: LayerReader, canvas: tuple[int, int]) -> Contribution:
    seen, layer = reader.visible, reader.layer
    colour, alpha = reader.read(seen)
    factors: list[Array | None] = [alpha if reader.multiplies_alpha else None]
    if reader.has_mask:
        mask = feather_tile(reader.kernel, Region.of_shape(reader.mask_shape), reader.mask_shape, reader.mask_units)
        if layer.side == "inside" and not reader.kernel.is_identity:
            inside_only(mask)
        factors.append(mask[seen.shift(-reader.mask_frame.y0, -reader.mask_frame.x0).slices])
    factors.append(reader.border.weight(seen))
    weight = np.full(seen.shape, layer.opacity, np.float32)
    cover = weight
    for i, factor in enumerate(factors):
        weight = weight if factor is None else weight * factor
        cover = cover if factor is None or i == 0 else cover * factor
    laid = [np.zeros((*canvas, *values.shape[2:]), values.dtype) for values in (colour, weight, cover)]
    for out, values in zip(laid, (colour, weight, cover), strict=True):
        out[seen.slices] = values
    laid_alpha = None
    if alpha is not None and reader.multiplies_alpha:
        laid_alpha = np.zeros(canvas, np.float32)
        laid_alpha[seen.slices] = alpha
    return Contribution(laid[0], laid[1], laid_alpha, laid[2])


class Levels:
    """A sink that lays rows of chunks into whole levels, and refuses to be given a pixel twice."""

    def __init__(self, grid: Grid, channels: int, dtype: Any) -> None:
        self.grid, self.tile = grid, Tile(0, 0, 0)
        self.levels = [np.zeros((*grid.level_shape(level), channels), dtype) for level in range(grid.levels)]
        self.filled = [np.zeros(grid.level_shape(level), bool) for level in range(grid.levels)]

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Array) -> None:
        region = self.grid.tile_region(self.tile, level)
        y, x = region.y0 + row_in_tile * self.grid.chunk, region.x0
        at = slice(y, y + pixels.shape[0]), slice(x, x + pixels.shape[1])
        assert pixels.shape[1] == region.shape[1]
        assert not self.filled[level][at].any()
        self.levels[level][at], self.filled[level][at] = pixels, True

    def read(self, level: int, region: Region) -> Array:
        assert self.filled[level][region.slices].all()
        return self.levels[level][region.slices]


def fused(scene: Scene, grid: Grid) -> tuple[list[Array], TileStats]:
    """Every level of the pyramid by the writer's own renderer, tile after tile."""
    sink, total = Levels(grid, scene.channels, scene.dtype), TileStats()
    for stage in range(grid.stages):
        for tile in grid.tiles(stage):
            sink.tile = tile
            if stage:
                shrink_tile(grid, tile, sink.read, sink, has_alpha=scene.has_alpha)
                continue
            stats = render_tile(scene, grid, tile, sink)
            for name in ("copied", "blended", "empty", "background"):
                setattr(total, name, getattr(total, name) + getattr(stats, name))
    assert all(filled.all() for filled in sink.filled)
    return sink.levels, total


def pyramid(level_0: Array, levels: int, has_alpha: bool) -> list[Array]:
    out = [level_0]
    while len(out) < levels:
        out.append(halve_tile(out[-1], has_alpha=has_alpha))
    return out


def stored_levels(path: Path, levels: int) -> list[Array]:
    """(y, x, c) of every level, by zarr-python."""
    group = zarr.open_group(path, mode="r")
    return [np.moveaxis(np.asarray(group[str(level)]), 0, 2) for level in range(levels)]


def write_here(composite: Composite, path: Path, output: OutputSpec) -> Any:
    """Through the store, without a cluster. Returns the report of the tiles of the first stage."""
    report = write(composite, str(path), output=output, part=(1, 1))
    assert write(composite, str(path), output=output, finish=True).complete
    return report


@examples(70)
@given(case=cases(odd_floats=True), lazy_chunk=st.sampled_from([13, 16, 40, 200]), data=st.data())
def test_whole_lazy_and_fused_are_the_same_bits(case: Case, lazy_chunk: int, data: st.DataObject) -> None:
    composite, grid = case.composite, case.grid
    scene = decide(composite)
    whole, background = whole_array(scene)
    assert_same_bits(render_region(scene, Region.of_shape(composite.shape)), whole)
    levels, stats = fused(scene, grid)
    for level, expected in zip(levels, pyramid(whole, grid.levels, composite.has_alpha), strict=True):
        assert_same_bits(level, expected)
    assert stats.background == background
    lazy = to_dask(composite, chunk=lazy_chunk).compute(scheduler="synchronous")
    assert_same_bits(np.moveaxis(lazy, 0, 2), whole)
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in composite.shape)
    part = Region(y0, x0, *(data.draw(st.integers(a + 1, n)) for a, n in zip((y0, x0), composite.shape, strict=True)))
    assert_same_bits(render_region(scene, part), whole[part.slices])


@examples(90)
@given(case=cases())
def test_within_the_bound_of_the_float64_reference(case: Case) -> None:
    composite = case.composite
    scene = decide(composite)
    got = render_region(scene, Region.of_shape(composite.shape)).astype(float)
    expected = reference.composite(
        case.pictures,
        composite.shape,
        mode=composite.mode,
        background=composite.background_values().tolist(),
        has_alpha=case.has_alpha,
    )
    full = full_scale(composite.dtype)
    rounding = 0.5 + 1e-6 * full if full > 1 else 1e-5
    if case.has_alpha:
        alpha = got[..., -1:] / full
        got = np.concatenate([got[..., :-1] * alpha, alpha], axis=2)
        rounding = np.array([2 * rounding] * (composite.channels - 1) + [rounding / full])  # type: ignore[assignment]
    over = np.abs(got - expected.values) - expected.allowed - rounding
    assert over.max() <= 0, f"{over.max()} beyond the bound at {np.unravel_index(over.argmax(), over.shape)}"


@examples(60)
@given(case=cases())
def test_weights_within_0_002_of_scipy(case: Case) -> None:
    composite = case.composite
    for picture, reader in zip(case.pictures, decide(composite).readers, strict=True):
        expected = reference.place(picture, composite.shape)
        got = whole_layer(reader, composite.shape)
        assert got.weight is not None
        if reader.has_mask:
            assert reader.units_dtype == reader.mask_units(Region(0, 0, 1, 1)).dtype
        error = np.abs(got.weight - expected.weight).max()
        limit = reference.WEIGHT_ERROR
        if picture.side == "inside" and picture.mask is not None:
            limit *= 2  # the one-sided feather is 2 G - 1
        assert error <= limit + 1e-6


@examples(25)
@given(case=cases())
def test_stored_levels_are_the_rendered_ones(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    composite, grid = case.composite, case.grid
    whole, background = whole_array(decide(composite))
    path = tmp_path_factory.mktemp("out") / "x.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_here(composite, path, case.output).background_pixels == background
    for level, expected in zip(
        stored_levels(path, grid.levels), pyramid(whole, grid.levels, composite.has_alpha), strict=True
    ):
        assert_same_bits(level, expected)


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    kind=st.sampled_from(["step", "blob", "pixel", "stripes"]),
    sigma=st.sampled_from([0.0, 1.0, 4.0, 12.0, 20.0]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    mode=st.sampled_from(["over", "average"]),
)
def test_pixels_that_one_layer_decides_are_its_own(
    seed: int, shape: tuple[int, int], kind: str, sigma: float, dtype: str, mode: Any
) -> None:
    """float images hold NaN, infinities and negative zeros, which only an untouched pixel keeps."""
    rng = np.random.default_rng(seed)
    pixels = (rng.random((2, *shape, 3)) * full_scale(dtype)).astype(dtype)
    if dtype == "float32":
        odd = rng.integers(0, 6, pixels.shape)
        for value, number in ((np.nan, 0), (np.inf, 1), (-0.0, 2)):
            pixels[odd == number] = value
    unit = pattern(rng, shape, kind)
    overlay = Picture(pixels[1], mask=unit.astype(np.float32), sigma=sigma)
    background = Picture(pixels[0])
    if mode == "average":
        background.mask = (1 - unit).astype(np.float32)
        background.sigma = sigma
    composite = Composite([layer_of(background, 0), layer_of(overlay, 1)], mode)
    got = render_region(decide(composite), Region.of_shape(shape))
    smooth = reference.ndimage.gaussian_filter(unit, sigma, mode="mirror", truncate=4) if sigma else unit
    inside, outside = smooth > 1 - 2e-5, smooth < 2e-5
    assert_same_bits(got[inside], pixels[1][inside])
    assert_same_bits(got[outside], pixels[0][outside])


def two_slides(shape: tuple[int, int] = (150, 170)) -> list[Picture]:
    rng = np.random.default_rng(5)
    base = (rng.random((*shape, 3)) * 255).astype(np.uint8)
    overlay = (rng.random((*shape, 3)) * 255).astype(np.uint8)
    low = (pattern(rng, (-(-shape[0] // 4), shape[1] // 4), "blob") * 255).astype(np.uint8)
    low[0, 0] = 255
    return [
        Picture(base),
        Picture(overlay, mask=low, sigma=14.0),
        Picture(overlay[:40, :50], sigma=3.0, offset=(70, 9)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cluster",
    [
        tb.ClusterOptions(workers=2, threads_per_worker=1),
        tb.ClusterOptions(workers=1, threads_per_worker=2),
        tb.ClusterOptions(threads_per_worker=2),
        tb.ClusterOptions(threads_per_worker=1),
    ],
    ids=["2 processes", "1 process", "2 threads", "1 thread"],
)
def test_workers_and_threads_do_not_change_a_bit(cluster: Any, tmp_path: Path) -> None:
    stack = two_slides()
    composite = Composite([layer_of(p, i) for i, p in enumerate(stack)])
    output = OutputSpec(16, 32)
    report = write(composite, str(tmp_path / "x.zarr"), output=output, cluster=cluster)
    levels, stats = fused(decide(composite), output.grid(composite.shape))
    for stored, expected in zip(stored_levels(tmp_path / "x.zarr", len(levels)), levels, strict=True):
        assert_same_bits(stored, expected)
    assert report.chunks == {"copied": stats.copied, "blended": stats.blended, "empty": stats.empty}
    assert min(stats.copied, stats.blended) > 0


def test_a_mask_smaller_than_a_pixel_of_the_halo_and_one_by_one_images() -> None:
    for shape in ((1, 1), (1, 7), (3, 2)):
        stack = [
            Picture(np.full((*shape, 3), 10, np.uint8)),
            Picture(np.full((*shape, 3), 200, np.uint8), mask=np.array([[True]]), sigma=150.0)
            if shape == (1, 1)
            else Picture(np.full((*shape, 3), 200, np.uint8), mask=np.eye(*shape, dtype=bool), sigma=150.0),
        ]
        composite = Composite([layer_of(p, i) for i, p in enumerate(stack)], canvas=Canvas(shape))
        got = render_region(decide(composite), Region.of_shape(shape)).astype(float)
        expected = reference.composite(stack, shape)
        assert np.all(np.abs(got - expected.values) <= expected.allowed + 0.5)
