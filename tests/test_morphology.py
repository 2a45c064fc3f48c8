"""Grown and shrunk masks against scipy's exact distances on the whole mask, tile by tile, and through composites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Command
from drawn import pattern
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from test_equivalence import assert_same_bits, examples, fused, whole_array

import tiledblend as tb
from tiledblend.compose.scene import decide
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.levels import at_level
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels import morphology
from tiledblend.kernels.morphology import Growth, grown

Array = np.ndarray[Any, Any]


def by_scipy(mask: Array, growth: Growth) -> Array:
    """The definition, on the whole mask. scipy takes a mask without zeros as if there were one far away."""
    source = mask if growth.radius >= 0 else ~mask
    if not source.any():
        return mask.copy()
    reached = ndimage.distance_transform_edt(~source, sampling=growth.spacing) <= abs(growth.radius)
    return reached if growth.radius >= 0 else ~reached


radii = st.one_of(
    st.sampled_from([0.5, 1, 2**0.5, 1.5, 2, 5**0.5, 3, 8**0.5, 3**0.5, 5, 50**0.5, 13, 25]), st.floats(0.1, 40)
)
spacings = st.sampled_from([(1.0, 1.0), (1.0, 1.0), (0.5, 0.25), (0.3, 0.31), (2.0, 1.0)])


@examples(250)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kind=st.sampled_from(["noise", "step", "blob", "pixel", "zeros", "ones", "stripes", "sparse"]),
    radius=radii,
    shrink=st.booleans(),
    spacing=spacings,
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_equal_to_scipys_distances_whole_and_in_parts(
    shape: tuple[int, int], kind: str, radius: float, shrink: bool, spacing: Any, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) > 0.97 if kind == "sparse" else pattern(rng, shape, kind) > 0.5
    growth = Growth(-radius if shrink else radius, spacing)
    whole = grown(mask, growth)
    np.testing.assert_array_equal(whole, by_scipy(mask, growth))
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in shape)
    part = Region(y0, x0, *(data.draw(st.integers(a + 1, n)) for a, n in zip((y0, x0), shape, strict=True)))
    y, x = growth.halo_px
    reach = Region(part.y0 - y, part.x0 - x, part.y1 + y, part.x1 + x) & Region.of_shape(shape)
    inner = grown(mask[reach.slices], growth)[part.shift(-reach.y0, -reach.x0).slices]
    np.testing.assert_array_equal(inner, whole[part.slices])


def test_strips_of_rows_are_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).random((200, 90)) > 0.995
    for radius in (3.0, -2.0, 17.5):
        expected = grown(mask, Growth(radius))
        with monkeypatch.context() as patch:
            patch.setattr(morphology, "STRIP_ROWS", 11)
            np.testing.assert_array_equal(grown(mask, Growth(radius)), expected)


def test_a_disc_of_pixels() -> None:
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    assert grown(mask, Growth(2.0)).sum() == 13
    assert grown(mask, Growth(2.2)).sum() == 13
    assert grown(mask, Growth(5**0.5)).sum() == 21
    assert Growth(2.0).halo_px == (2, 2)
    assert Growth(0.9).halo_px == (0, 0)


@pytest.mark.parametrize("radius", [float("nan"), float("inf"), 5000.0, -4097.0])
def test_radii_that_are_refused(radius: float) -> None:
    with pytest.raises(UsageError, match="grow by"):
        Growth(radius)


# --- through composites


def masked(cover: Array, um: tuple[float, float] | None = None, **options: Any) -> tb.Composite:
    shape = options.pop("canvas", cover.shape)
    base = tb.Layer(tb.from_array(np.zeros((*shape, 1), np.uint8), axes="yxc", pixel_size_um=um))
    over = tb.from_array(np.full((*shape, 1), 200, np.uint8), axes="yxc")
    return tb.Composite([base, tb.Layer(over, tb.from_array(cover, axes="yx", mask=True), **options)])


def shown(composite: tb.Composite) -> Array:
    return tb.to_array(composite)[..., 0] == 200


def blob() -> Array:
    return pattern(np.random.default_rng(3), (90, 110), "blob") > 0.5


@pytest.mark.parametrize(
    ("grow", "um", "growth"),
    [
        (6, None, Growth(6.0)),
        ("-4px", None, Growth(-4.0)),
        ("2um", (0.5, 0.5), Growth(4.0)),
        ("-3um", (0.5, 0.25), Growth(-3.0, (0.5, 0.25))),
        ("0px", None, Growth(0.0)),
    ],
)
def test_pixels_and_micrometres(grow: Any, um: Any, growth: Growth) -> None:
    np.testing.assert_array_equal(shown(masked(blob(), um, grow=grow)), by_scipy(blob(), growth))


def test_order_of_steps() -> None:
    """Values, then inverted, then grown, then feathered."""
    cover = blob()
    np.testing.assert_array_equal(shown(masked(cover, grow=5, invert=True)), by_scipy(~cover, Growth(5.0)))
    once = tb.to_array(masked(cover, grow=-5, feather=tb.Feather.px(6)))
    np.testing.assert_array_equal(once, tb.to_array(masked(by_scipy(cover, Growth(-5.0)), feather=tb.Feather.px(6))))
    labels = np.where(cover, 7, 3).astype(np.uint16)
    np.testing.assert_array_equal(
        shown(masked(labels, grow=5, mask_values=tb.Labels((7,)))), by_scipy(cover, Growth(5.0))
    )
    # a soft mask counts as inside from one half on
    soft = np.linspace(0, 1, 110, dtype=np.float32)[None].repeat(90, 0)
    np.testing.assert_array_equal(shown(masked(soft, grow=3)), by_scipy(soft >= 0.5, Growth(3.0)))
    # in canvas pixels, whatever the mask's resolution
    low = np.zeros((12, 14), np.uint8)
    low[4:8, 5:9] = 255
    got = shown(masked(low, canvas=(96, 112), grow=5))
    np.testing.assert_array_equal(got, by_scipy(np.kron(low, np.ones((8, 8))) > 0, Growth(5.0)))


def test_the_canvas_border_is_no_edge() -> None:
    cover = np.ones((40, 50), bool)
    cover[:, 30:] = False
    got = shown(masked(cover, grow=-6))
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(50) < 24, (40, 50)))


def test_shrinks_with_the_canvas() -> None:
    composite = at_level(masked(blob(), (0.5, 0.5), grow="4um"), 2)
    growth = composite.growth(composite.layers[1])
    assert growth == Growth(4.0, (2.0, 2.0))
    composite = at_level(masked(blob(), grow=8), 2)
    assert composite.growth(composite.layers[1]) == Growth(2.0)


@examples(40)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    f=st.sampled_from([1, 1, 4]),
    grow=st.floats(-20, 20),
    sigma=st.sampled_from([0.0, 2.0, 11.0]),
    kind=st.sampled_from(["blob", "pixel", "noise", "stripes"]),
    chunk=st.sampled_from([16, 32]),
    lazy_chunk=st.sampled_from([7, 50]),
    level=st.sampled_from([0, 0, 1]),
    seed=st.integers(0, 99),
)
def test_whole_lazy_and_fused_are_the_same_bits(
    shape: tuple[int, int],
    f: int,
    grow: float,
    sigma: float,
    kind: str,
    chunk: int,
    lazy_chunk: int,
    level: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    cover = pattern(rng, (-(-shape[0] // f), -(-shape[1] // f)), kind) > 0.5
    full = masked(cover, canvas=shape, grow=grow, feather=tb.Feather.px(sigma))
    scene = decide(full)
    units = scene.readers[1].mask_units(Region.of_shape(shape))
    spread = np.repeat(np.repeat(cover, f, 0), f, 1)[: shape[0], : shape[1]]
    np.testing.assert_array_equal(units > 0, by_scipy(spread, Growth(grow)))
    scene = scene.at_level(level) if max(shape) > 1 else scene
    composite = scene.composite
    whole, _ = whole_array(scene)
    levels, _ = fused(scene, OutputSpec(chunk, 2 * chunk, levels=1).grid(composite.shape))
    assert_same_bits(levels[0], whole)
    lazy = tb.to_dask(composite, chunk=lazy_chunk).compute(scheduler="synchronous")
    assert_same_bits(np.moveaxis(lazy, 0, 2), whole)


def test_refusals() -> None:
    image = tb.from_array(np.zeros((9, 9, 1), np.uint8), axes="yxc", name="over")
    given: dict[str, Any] = {"grow": 3, "invert": True, "mask_values": "binary"}
    for what, value in given.items():
        with pytest.raises(UsageError, match=f"over: {what} needs a mask"):
            tb.Layer(image, **{what: value})
    with pytest.raises(UsageError, match="grow 'wide' is not understood; use 8px"):
        masked(blob(), grow="wide")
    with pytest.raises(UsageError, match="grow 3um needs a pixel size"):
        masked(blob(), grow="3um")


def test_the_flag(command: Command, tmp_path: Path) -> None:
    cover = blob()
    for name, value in (("base.tif", 0), ("over.tif", 200)):
        tifffile.imwrite(tmp_path / name, np.full((90, 110), value, np.uint8))
    tifffile.imwrite(tmp_path / "mask.tif", cover.astype(np.uint8))
    for grow, radius in (("5px", 5.0), ("-4", -4.0), ("-2um", -4.0)):
        out = f"{radius}{len(grow)}.tif"
        ran = command("blend", "base.tif", "over.tif", "--mask", "mask.tif", "--grow", grow, "--mpp", 0.5, "-o", out)
        assert ran.code == 0, ran.err
        np.testing.assert_array_equal(tifffile.imread(tmp_path / out) == 200, by_scipy(cover, Growth(radius)))
