"""How a mask's numbers become weights, where it lies, and every refusal's words."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyramids import Pyramid

import tiledblend as tb
from tiledblend.compose.masks import MaskRule, decide_mask_rule
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.render import render_region
from tiledblend.compose.scene import decide
from tiledblend.describe.agreement import mask_scaling
from tiledblend.describe.composite import Composite
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec

Array = NDArray[Any]


def source(mask: Any, axes: str = "yx") -> RasterSource:
    return tb.from_array(np.asarray(mask), axes=axes, name="m.tif", mask=True)


def image(shape: tuple[int, int], dtype: Any = np.uint8) -> RasterSource:
    return tb.from_array(np.zeros((*shape, 3), dtype), axes="yxc", name="i.tif")


def reader_of(mask: Any, size: tuple[int, int], axes: str = "yx", **options: Any) -> LayerReader:
    layer = tb.Layer(image(size), source(mask, axes) if not isinstance(mask, RasterSource) else mask, **options)
    composite = Composite([layer])
    return decide(composite).readers[0]


def units(mask: Any, axes: str = "yx", size: tuple[int, int] | None = None, **options: Any) -> Array:
    """Weights before the feather: units as a share of full scale."""
    shape = size or np.asarray(mask).shape[:2]
    got = reader_of(mask, shape, axes, **options).mask_units(Region.of_shape(shape))
    return got if got.dtype == np.float32 else got / np.iinfo(got.dtype).max


@pytest.mark.parametrize(
    ("mask", "values", "expected"),
    [
        (np.array([[False, True]]), "auto", [0, 1]),
        (np.array([[0, 1]], np.uint8), "auto", [0, 1]),
        (np.array([[0, 1]], np.int64), "auto", [0, 1]),
        (np.array([[0, 51, 255]], np.uint8), "auto", [0, 0.2, 1]),
        (np.array([[0, 13107, 65535]], np.uint16), "auto", [0, 0.2, 1]),
        (np.array([[0, 2**32 - 1]], np.uint32), "auto", [0, 1]),
        (np.array([[0, 127]], np.int8), "auto", [0, 1]),
        (np.array([[0, 0.25, 1]], np.float32), "auto", [0, 0.25, 1]),
        (np.array([[0, 0.25, 1]], np.float64), "auto", [0, 0.25, 1]),
        (np.array([[0, 0.25, 1]], np.float16), "auto", [0, 0.25, 1]),
        (np.array([[0, 1, 7]], np.uint8), "binary", [0, 1, 1]),
        (np.array([[0, 2, 40]], np.float32), "binary", [0, 1, 1]),
        (np.array([[0, 0.7]]), "binary", [0, 1]),
        (np.array([[0, 4095, 5000]], np.uint16), (0, 4095), [0, 1, 1]),
        (np.array([[0, 0.25, 0.5, 0.75, 1]], np.float32), (0.25, 0.75), [0, 0, 0.5, 1, 1]),
        (np.array([[0, -0.5, 2]]), "binary", [0, 1, 1]),
        (np.array([[0, 1024, 4096]], np.uint16), (0, 4096), [0, 0.25, 1]),
        (np.array([[-1.0, 0, 1]]), (-1, 1), [0, 0.5, 1]),
        (np.array([[0, 2, 5, 3]], np.uint8), tb.Labels((2, 5)), [0, 1, 1, 0]),
        (np.array([[0, 2**40]], np.int64), tb.Labels((2**40,)), [0, 1]),
        (np.zeros((1, 3), np.uint8), "auto", [0, 0, 0]),
        (np.full((1, 2), 16, np.uint8), "auto", [16 / 255] * 2),
    ],
)
@pytest.mark.parametrize("feather", [0, 3])
def test_values(mask: Array, values: Any, expected: list[float], feather: float) -> None:
    got = units(mask, mask_values=values, feather=tb.Feather.px(feather))
    np.testing.assert_allclose(got[0], expected, atol=1e-5)
    np.testing.assert_allclose(
        units(mask, mask_values=values, feather=tb.Feather.px(feather), invert=True)[0],
        1 - np.array(expected),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.array([[0, 4095]], np.uint16),
            r"m\.tif: its maximum is 4095 of uint16's 65535.*--mask-values '\[0, 4095\]'",
        ),
        (np.array([[0, 2]], np.uint8), r"maximum is 2 of uint8's 255, so it holds labels or a narrower range"),
        (np.array([[0, 15]], np.uint8), r"maximum is 15"),
        (np.array([[0, 1000]], np.int32), r"--mask-values '\[0, 1023\]'"),
    ],
)
def test_labels_and_narrow_ranges_are_refused(mask: Array, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        units(mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "values", "message"),
    [
        (np.array([[0, np.nan]]), "auto", r"m\.tif: level 0, region \[0:1, 0:2\].*NaN"),
        (np.array([[0, np.inf]]), "auto", "NaN or infinite"),
        (np.array([[0, np.nan]]), "binary", "NaN"),
        (np.array([[0, 1.5]]), "auto", r"region \[0:1, 0:2\].*0 to 1\.5 lie outside 0 to 1"),
        (np.array([[-0.1, 1]]), "auto", "lie outside 0 to 1"),
        (np.array([[-3, 1]], np.int16), "auto", "mask value -3"),
        (np.array([[-3, 32767]], np.int16), "auto", "lie outside 0 to 32767"),
    ],
)
def test_values_that_no_rule_allows(mask: Array, values: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        units(mask, mask_values=values)
    assert "\n" not in str(caught.value)


def test_a_range_clips_and_says_how_much(caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    with caplog.at_level(logging.INFO, "tiledblend"):
        got = units(values, mask_values=(0.3, 0.7), feather=tb.Feather.px(0))
    expected = np.clip((values.astype(np.float64) - 0.3) / (0.7 - 0.3), 0, 1)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    below, above = (f"{100 * share:.3g} %" for share in ((values < 0.3).mean(), (values > 0.7).mean()))
    assert f"{below} of its values lie below 0.3 and {above} above 0.7: taken as 0 and 1" in caplog.text


def test_what_a_range_clips_is_counted_on_a_coarser_level_of_a_large_mask(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    monkeypatch.setattr("tiledblend.compose.masks.MOST_COUNTED", 1024)
    with caplog.at_level(logging.INFO, "tiledblend"):
        decide_mask_rule(Pyramid([values[:, :, None], values[::2, ::2, None]]), (0.25, 1.0))
        decide_mask_rule(source(values), (0.25, 1.0))
    assert f"{100 * (values[::2, ::2] < 0.25).mean():.3g} % of its values lie below 0.25" in caplog.text
    assert "(on its level 1)" in caplog.text
    assert "(of a sample)" in caplog.text


@pytest.mark.parametrize("values", [np.linspace(0, 1, 9, dtype=np.float32), np.array([0, 0.25, 3.5])])
def test_binary_probabilities_are_refused_and_told_of_threshold(values: Array) -> None:
    with pytest.raises(BadInputError, match=r"binary takes all but 0 as inside.*--threshold 0\.5"):
        units(values[None], mask_values="binary")
    with pytest.raises(BadInputError, match=r"give mask >= 0\.5"):
        tb.feather(values[None], values="binary")


@pytest.mark.parametrize(
    ("mask", "threshold"),
    [
        (np.array([[0, 0.3, 0.7, 0.70001, 1]], np.float32), 0.7),
        (np.array([[0, 0.3, 0.7, 0.70001, 1]]), 0.7),
        (np.array([[0, 127, 128, 255]], np.uint8), 127.5),
        (np.array([[0, 127, 128, 255]], np.uint8), 127),
        (np.array([[-5, 0, 4]], np.int16), 0),
        (np.array([[-2.5, 0.1, 7]], np.float32), 0),
        (np.array([[0, 1, 2, 3]], np.uint8), 2),
    ],
)
@pytest.mark.parametrize("feather", [0, 3.0])
def test_a_threshold_is_the_mask_at_or_above(mask: Array, threshold: float, feather: float) -> None:
    got = units(mask, threshold=threshold, feather=tb.Feather.px(feather))
    np.testing.assert_array_equal(got, mask >= threshold)


def test_a_threshold_comes_before_grow_and_feather_and_is_that_of_a_binary_file() -> None:
    """A probability map of another resolution: as if the file held 0 and 1."""
    values = np.random.default_rng(0).random((60, 70)).astype(np.float32)
    for size in ((960, 1120), (90, 105), (60, 70)):
        for options in ({}, {"grow": 3}, {"feather": tb.Feather.px(2.5)}, {"invert": True}):
            layers = [
                tb.Composite([tb.Layer(image(size)), tb.Layer(white(size), mask=source(mask), **kept, **options)])
                for mask, kept in ((values, {"threshold": 0.5}), (values >= 0.5, {}))
            ]
            np.testing.assert_array_equal(tb.to_array(layers[0]), tb.to_array(layers[1]))


def white(size: tuple[int, int]) -> RasterSource:
    return tb.from_array(np.full((*size, 3), 255, np.uint8), axes="yxc", name="w.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5, "mask_values": "binary"}, "threshold and mask_values both say"),
        ({"threshold": float("nan")}, "must be finite"),
        ({"threshold": "x"}, "threshold of layer i.tif 'x' must be a number"),
        ({"threshold": 1, "mask": None}, "threshold needs a mask"),
        ({"threshold": 1, "mask": "alpha"}, "not for the image's own alpha"),
    ],
)
def test_thresholds_that_say_nothing(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tb.Layer(**{"image": image((2, 2)), "mask": source(np.ones((2, 2))), **options})


def test_each_region_checks_what_was_decided() -> None:
    """A rule that no longer holds (the file was exchanged) is noticed where it is read."""
    composite = Composite([tb.Layer(image((1, 2)), source(np.array([[0, 9]], np.uint8)), mask_values="auto")])
    with pytest.raises(BadInputError, match="mask value 9 in a mask taken as binary"):
        LayerReader(composite, 0, MaskRule("binary")).mask_units(Region(0, 0, 1, 2))


@pytest.mark.parametrize("values", [(1, 1), (2, 1), (0, float("nan")), (0, float("inf")), "grey", (1, 2, 3)])
def test_mask_values_that_say_nothing(values: Any) -> None:
    with pytest.raises(UsageError, match="mask_values"):
        tb.Layer(image((1, 2)), source([[True, False]]), mask_values=values)
    with pytest.raises(UsageError, match="label"):
        tb.Labels(())


class CountingMask(RasterSource):
    """All zeros but for one row, which has `value`; counts what is read."""

    def __init__(self, shape: tuple[int, int], row: int, value: int, dtype: Any = np.uint8) -> None:
        self.spec, self.dtype, self.channels = SourceSpec("big"), np.dtype(dtype), 1
        self.levels, self.info = (Level(shape, (256, 256)),), SourceInfo("test", "yx")
        self.row, self.value, self.pixels = row, value, 0

    def _read(self, region: Region, level: int) -> Array:
        self.pixels += region.size
        out = np.zeros((*region.shape, 1), self.dtype)
        if region.y0 <= self.row < region.y1:
            out[self.row - region.y0] = self.value
        return out

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": "big"}


def test_auto_reads_until_it_can_decide() -> None:
    early = CountingMask((40_000, 5000), 3, 255)
    assert decide_mask_rule(early, "auto").kind == "scale"
    assert early.pixels < 20_000_000
    late = CountingMask((9000, 9000), 8999, 255)
    assert decide_mask_rule(late, "auto").kind == "scale"
    for values in ("binary", (0.0, 255.0), tb.Labels((1,))):
        unread = CountingMask((9000, 9000), 8999, 255)
        decide_mask_rule(unread, values)  # type: ignore[arg-type]
        assert unread.pixels == 0


def test_the_decision_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tiledblend"):
        decide_mask_rule(source(np.array([[0, 1]], np.uint8)), "auto")
        decide_mask_rule(source(np.array([[0, 255]], np.uint8)), "auto")
    assert "taken as binary" in caplog.text
    assert "scaled by 255" in caplog.text


def test_rgb_masks_are_luma(caplog: pytest.LogCaptureFixture) -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [1, 2, 3]]], np.uint8)
    with caplog.at_level(logging.INFO, "tiledblend"):
        got = units(rgb, "yxc")
    assert "BT.601" in caplog.text
    np.testing.assert_array_equal(np.rint(got * 255), [[76, 150, 29, 255, 2]])
    whites = np.array([[[1.0, 1.0, 1.0], [0, 0, 0]]])
    np.testing.assert_array_equal(units(whites, "yxc"), [[1, 0]])
    with_alpha = tb.from_array(np.full((1, 2, 4), 255, np.uint8), axes="yxc", mask=True, alpha=tb.Alpha.STRAIGHT)
    assert (reader_of(with_alpha, (1, 2)).mask_units(Region(0, 0, 1, 2)) == 255).all()
    with pytest.raises(BadInputError, match="2 channels; a mask has one"):
        tb.Layer(image((1, 2)), source(np.zeros((1, 2, 2), np.uint8), "yxc"))


def test_luma_does_not_depend_on_the_region() -> None:
    """Ties of the rounding fall alike whatever is read with them."""
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    rgb[::2] = 0, 0, 250  # 28.5
    reader = reader_of(rgb, (64, 64), "yxc")
    whole = reader.mask_units(Region(0, 0, 64, 64))
    for part in (Region(0, 0, 1, 64), Region(5, 7, 64, 8), Region(13, 13, 14, 14)):
        np.testing.assert_array_equal(reader.mask_units(part), whole[part.slices])


# Where a mask lies


def scaling(mask: tuple[int, int], size: tuple[int, int], **options: Any) -> int | None:
    layer = tb.Layer(image(size), source(np.zeros(mask, bool)), **options)
    return mask_scaling(layer, Composite([layer], canvas=tb.Canvas(options.pop("canvas", size))))


@pytest.mark.parametrize(
    ("mask", "size", "f"),
    [
        ((10, 10), (10, 10), 1),
        ((5, 5), (10, 10), 2),
        ((5, 5), (9, 9), 2),
        ((5, 5), (11, 11), 2),
        ((4, 4), (9, 9), 2),
        ((13, 8), (100, 60), 8),
        ((12, 7), (100, 60), 8),
        ((1, 1), (31, 17), 16),
        ((20, 30), (30, 45), None),
        ((20, 30), (10, 15), None),
        ((33, 34), (100, 100), None),
    ],
)
def test_powers_of_two_and_ratios(mask: tuple[int, int], size: tuple[int, int], f: int | None) -> None:
    assert scaling(mask, size) == f


@pytest.mark.parametrize(("mask", "size"), [((10, 20), (40, 40)), ((30, 35), (100, 100)), ((5, 9), (10, 10))])
def test_other_fields_of_view_are_refused_with_both_sizes(mask: tuple[int, int], size: tuple[int, int]) -> None:
    with pytest.raises(BadInputError, match=f"{mask[0]} x {mask[1]} .*{size[0]} x {size[1]}"):
        scaling(mask, size)


def test_repeated_pixels_and_the_last_replicated() -> None:
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(
        units(mask, size=(5, 4)), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    )
    np.testing.assert_array_equal(units(mask, size=(3, 4)), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]])


@pytest.mark.parametrize("size", [(50, 39), (49, 40), (30, 27)])
def test_a_region_of_a_small_mask_is_that_part_of_the_whole(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for mask in (rng.random((13, 10)), rng.integers(0, 256, (20, 16)).astype(np.uint8)):
        try:
            reader = reader_of(mask, size, feather=tb.Feather.px(2))
        except BadInputError:
            continue
        whole = reader.mask_units(Region.of_shape(size))
        for part in (Region(0, 0, 1, 1), Region(7, 3, 30, 26), Region(size[0] - 1, size[1] - 1, *size)):
            np.testing.assert_array_equal(reader.mask_units(part), whole[part.slices])


def test_labels_are_never_mixed() -> None:
    labels = np.array([[1, 3], [3, 1]], np.uint8)
    got = units(labels, size=(3, 3), mask_values=tb.Labels((2,)), fit="canvas")
    assert (got == 0).all()


def test_canvas_frame() -> None:
    """The mask covers the canvas, wherever the layer lies on it."""
    mask = np.zeros((20, 20), bool)
    mask[:10] = True
    base = tb.Layer(tb.from_array(np.zeros((20, 20, 1), np.uint8), axes="yxc"))
    small = tb.from_array(np.full((10, 10, 1), 200, np.uint8), axes="yxc")
    over = tb.Layer(small, source(mask), mask_frame="canvas", offset=(5, 5))
    got = tb.to_array(Composite([base, over]))[..., 0]
    expected = np.zeros((20, 20))
    expected[5:10, 5:15] = 200
    np.testing.assert_array_equal(got, expected)


# Alpha


def test_float_alpha_is_checked() -> None:
    for wrong in (np.nan, 1.5, -0.1):
        pixels = np.full((2, 2, 4), 0.5, np.float32)
        pixels[1, 1, 3] = wrong
        layer_image = tb.from_array(pixels, axes="yxc", name="f.tif", alpha=tb.Alpha.STRAIGHT)
        for mask in (None, "alpha"):
            with pytest.raises(BadInputError, match=r"f\.tif: level 0, region \[0:2, 0:2\]: alpha"):
                tb.to_array(Composite([tb.Layer(layer_image, mask)]))  # type: ignore[arg-type]


def test_premultiplied_colours_are_divided() -> None:
    pixels = np.array([[[50, 100, 25, 128], [0, 0, 0, 0], [9, 9, 9, 255]]], np.uint8)
    over = tb.Layer(tb.from_array(pixels, axes="yxc", alpha=tb.Alpha.PREMULTIPLIED))
    base = tb.Layer(tb.from_array(np.full((1, 3, 3), 100, np.uint8), axes="yxc"))
    got = tb.to_array(Composite([base, over])).astype(float)
    a = 128 / 255
    expected = [np.array([50, 100, 25]) + (1 - a) * 100, [100] * 3, [9] * 3]
    assert np.abs(got[0] - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_premultiplied_pixels_hide_does_not_bleed_in_when_resampled(dtype: type) -> None:
    # The whole image un-multiplied, then resampled weighted by alpha: a hidden pixel is nothing, whatever it holds.
    full = 255 if dtype is np.uint8 else 1
    hidden = 200 if dtype is np.uint8 else np.nan
    pixels = np.array([[[hidden] * 3 + [0], [full / 5] * 3 + [full * 2 / 5]]] * 2).astype(dtype)
    for alpha in (tb.Alpha.PREMULTIPLIED, tb.Alpha.STRAIGHT):
        colour = full / 2 if alpha is tb.Alpha.PREMULTIPLIED else full / 5
        layer = tb.Layer(tb.from_array(pixels, axes="yxc", alpha=alpha), fit="canvas")
        got = tb.to_array(Composite([layer], canvas=tb.Canvas((1, 1), channels=4)))
        assert np.allclose(got[0, 0, :3].astype(float), colour, atol=0.6 if full == 255 else 1e-6), alpha
        assert np.allclose(float(got[0, 0, 3]), full / 5, atol=0.6 if full == 255 else 1e-6)


def test_premultiplied_colours_beyond_their_alpha_are_cut_when_resampled() -> None:
    pixels = np.array([[[200, 0, 0, 100], [0, 0, 0, 100]]], np.uint8)
    layer = tb.Layer(tb.from_array(pixels, axes="yxc", alpha=tb.Alpha.PREMULTIPLIED), fit="canvas")
    got = tb.to_array(Composite([layer], canvas=tb.Canvas((1, 1), channels=4)))
    assert got[0, 0].tolist() == [128, 0, 0, 100]  # (255 x 100 + 0 x 100) / 200, not 255


def test_alpha_without_an_alpha_channel() -> None:
    with pytest.raises(BadInputError, match="mask is alpha, but the image has 3 channels"):
        tb.Layer(image((2, 2)), "alpha")


def test_inside_is_the_default_for_alpha_only() -> None:
    rgba = tb.from_array(np.zeros((2, 2, 4), np.uint8), axes="yxc", alpha=tb.Alpha.STRAIGHT)
    assert tb.Layer(rgba, "alpha").side == "inside"
    assert tb.Layer(rgba, source(np.zeros((2, 2), bool))).side == "both"
    assert tb.Layer(rgba, "alpha", feather_side="both").side == "both"


def test_one_label_image_of_several_layers_is_read_once_per_tile() -> None:
    labels = np.random.default_rng(0).integers(0, 6, (200, 200, 1)).astype(np.uint8)
    shared = Pyramid([labels], name="labels")
    layers = [tb.Layer(tb.from_array(np.zeros((200, 200, 1), np.uint8), axes="yxc"))]
    for value in (2, 3, 5):
        over = tb.from_array(np.full((200, 200, 1), 40 * value, np.uint8), axes="yxc")
        layers.append(tb.Layer(over, shared, mask_values=tb.Labels((value,))))
    composite = Composite(layers)
    scene = decide(composite)
    got = render_region(scene, Region(0, 0, 200, 200))
    assert shared.reads == {0: 200 * 200}
    expected = np.where(np.isin(labels, (2, 3, 5)), labels * 40, 0)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(tb.to_array(composite), expected)
