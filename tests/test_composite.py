"""Descriptions are checked when they are made: every mismatch is one line that names both sides."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import tiledblend as tb
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import deep_fingerprint, fingerprint
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.errors import BadInputError, TiledblendError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.gaussian import FeatherKernel
from tiledblend.sources.base import Alpha, RasterSource

LOOSE: Any = tb
"""What a caller without a type checker may pass."""


def image(
    shape: tuple[int, int] = (20, 30),
    channels: int = 3,
    dtype: Any = np.uint8,
    name: str = "i.tif",
    alpha: Alpha = Alpha.NONE,
    pixel_size_um: tuple[float, float] | None = None,
) -> RasterSource:
    pixels = np.zeros((*shape, channels), dtype)
    return tb.from_array(pixels, axes="yxc", name=name, alpha=alpha, pixel_size_um=pixel_size_um)


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    assert isinstance(error.value, TiledblendError)
    assert "\n" not in str(error.value)
    return str(error.value)


# Feather


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, Feather()),
        (16, Feather.px(16)),
        (2.5, Feather.px(2.5)),
        ("16px", Feather.px(16)),
        ("16", Feather.px(16)),
        (" 1.5e1 px ", Feather.px(15)),
        ("8um", Feather.um(8)),
        ("8 µm", Feather.um(8)),
        ("ksize:5", Feather.ksize(5)),
        ({"sigma": "16px"}, Feather.px(16)),
        ({"sigma": 3}, Feather.px(3)),
        ({"ksize": 7}, Feather.ksize(7)),
        (Feather.um(2), Feather.um(2)),
    ],
)
def test_feather_parse(value: Any, expected: Feather) -> None:
    assert Feather.parse(value) == expected


@pytest.mark.parametrize(
    "value",
    [-1, "-16px", "16 m", "px", "", "ksize:4", "ksize:-3", "ksize:", "1e999", float("nan"), float("inf"), True, None,
     [16], {}, {"sigma": 1, "ksize": 3}, {"ksize": "5"}, {"ksize": True}, {"width": 3}, "--px", "1e", "ksize:100001"],
)  # fmt: skip
def test_feathers_that_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="feather") as caught:
        Feather.parse(value)
    one_line(caught)


def test_micrometres_need_pixels_of_known_size() -> None:
    assert Feather.um(8).kernel((0.5, 0.5)) == FeatherKernel(16)
    assert Feather.um(0).kernel(None) == FeatherKernel(0)
    with pytest.raises(UsageError, match="needs a pixel size"):
        Feather.um(8).kernel(None)
    assert Feather.um(8).kernel((0.5, 0.25)) == FeatherKernel((16, 32))
    assert Feather.um(8).kernel((0.5, 0.25), 4) == FeatherKernel((4, 8))
    assert Feather.px(8).kernel((0.5, 0.25)) == FeatherKernel(8)
    with pytest.raises(UsageError, match="needs a pixel size"):
        Composite([Layer(image(), feather=Feather.um(8))])
    sized = Composite([Layer(image(pixel_size_um=(0.25, 0.25)), feather=Feather.um(8))])
    assert sized.grid.pixel_size_um == (0.25, 0.25)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: LOOSE.Feather("16px"), "feather sigma '16px' must be a number"),
        (lambda: LOOSE.Feather.px(None), "feather sigma None"),
        (lambda: LOOSE.Feather(1, "mm"), "feather unit 'mm' must be px or um"),
        (lambda: LOOSE.Feather(3, "px", 5), "both sigma 3.0 and ksize 5"),
        (lambda: LOOSE.Feather.ksize(5.7), "feather ksize 5.7 must be a whole number"),
        (lambda: LOOSE.Length("3"), "length '3' must be a number"),
        (lambda: LOOSE.Length(3, "mm"), "length unit 'mm'"),
        (lambda: LOOSE.Labels(9), "labels 9"),
        (lambda: LOOSE.Labels(("a",)), "labels"),
        (lambda: LOOSE.Canvas(5), "canvas shape 5"),
        (lambda: LOOSE.Canvas((5.5, 5)), "canvas shape"),
        (lambda: LOOSE.Canvas((5, 5), dtype="foo"), "canvas dtype 'foo'"),
        (lambda: LOOSE.Canvas((5, 5), pixel_size_um=(1, 2, 3)), "pixel size"),
        (lambda: LOOSE.Composite(LOOSE.Layer(image())), "must be a list of Layer"),
        (lambda: LOOSE.Composite([image()]), "must be a list of Layer"),
        (lambda: LOOSE.Composite(None), "layers None"),
        (lambda: LOOSE.Composite([LOOSE.Layer(image())], canvas=(20, 30)), "must be a Canvas"),
        (lambda: LOOSE.Composite([LOOSE.Layer(image())], background="red"), "background 'red'"),
        (lambda: LOOSE.Composite([LOOSE.Layer(image())], background=None), "background None"),
        (lambda: LOOSE.Composite([LOOSE.Layer(image())], reduction="x"), "reduction 'x'"),
        (lambda: LOOSE.at_level(LOOSE.Composite([LOOSE.Layer(image())]), 1.5), "level 1.5 must be a whole number"),
        (lambda: LOOSE.plan(LOOSE.Composite([LOOSE.Layer(image())]), samples=-1), "samples -1"),
        (lambda: LOOSE.blend_ometiff(LOOSE.Composite([LOOSE.Layer(image())]), "x.ome.tif"), "must be a Plan"),
        (lambda: LOOSE.ClusterOptions(workers="2"), "--workers '2' must be a whole number"),
        (lambda: LOOSE.ClusterOptions(threads_per_worker=1.5), "--threads-per-worker 1.5"),
        (lambda: LOOSE.ClusterOptions(memory_limit=[1]), "--memory-limit"),
        (lambda: LOOSE.open(3), "int is no path"),
        (lambda: LOOSE.open("x.tif", channels=1), "channels 1"),
        (lambda: LOOSE.open("x.tif", plane="z"), "plane 'z'"),
    ],
)
def test_descriptions_of_another_kind(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        made()
    one_line(caught)


def test_numbers_of_numpy_become_python_ones() -> None:
    """What a run's ledger keeps is JSON, and a description is a key of dicts."""
    layer = LOOSE.Layer(
        image(), image(channels=1), np.array([0, 9]), opacity=np.float32(0.5), feather=LOOSE.Feather(np.float32(2))
    )
    canvas = LOOSE.Canvas(np.array([20, 30]), np.uint8(3), np.uint8)
    made = LOOSE.Composite([layer], background=np.array([1, 2, 3]), canvas=canvas)
    assert json.loads(json.dumps(fingerprint(made)))["background"] == [1, 2, 3]
    assert hash(made) == hash(Composite([layer], background=(1, 2, 3), canvas=Canvas((20, 30), 3, "uint8")))


# Layers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opacity": 1.5}, "opacity 1.5"),
        ({"opacity": -0.1}, "opacity"),
        ({"opacity": float("nan")}, "opacity"),
        ({"fit": "canvas", "offset": (1, 0)}, "both fit canvas and an offset"),
        ({"mask_frame": "image"}, "mask_frame"),
        ({"fit": "layer"}, "fit"),
        ({"feather_side": "outside"}, "feather_side"),
    ],
)
def test_layers_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Layer(image(), **options)
    assert "i.tif" in one_line(caught)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "m.png"}, r"mask 'm\.png' must be a source"),
        ({"image": "i.png"}, r"image 'i\.png' must be a source"),
        ({"feather": [3]}, r"feather \[3\] is not understood; use 16px, 8um"),
        ({"offset": (1.5, 0)}, "offset"),
        ({"offset": (1,)}, "offset"),
        ({"offset": 5}, "offset"),
        ({"mask": np.zeros((20, 30), bool)}, "must be a source"),
        ({"opacity": "x"}, "opacity of layer .* 'x' must be a number"),
        ({"opacity": None}, "opacity"),
        ({"mask": image(channels=1), "invert": "no"}, "invert 'no' must be True or False"),
        ({"mask": image(channels=1), "mask_values": {"labels": [1]}}, "mask_values"),
        ({"mask": image(channels=1), "mask_values": {1}}, "mask_values"),
        ({"mask": image(channels=1), "mask_values": ("a", "b")}, "mask_values"),
        ({"pixel_size_um": (None, 1)}, "pixel size"),
    ],
)
def test_arguments_of_another_kind(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Layer(**{"image": image(), **options})
    one_line(caught)


def test_numpy_offsets_and_lists_are_taken() -> None:
    layer = Layer(image(), image(channels=1), offset=np.array([2, -3]), mask_values=[0, 9])  # type: ignore[arg-type]
    assert (layer.offset, layer.mask_values) == ((2, -3), (0, 9))
    assert type(layer.offset[0]) is int


def test_canvas_of_another_dtype() -> None:
    with pytest.raises(BadInputError, match=r"canvas dtype is uint16, but i\.tif is uint8"):
        Composite([Layer(image())], canvas=Canvas((20, 30), dtype="uint16"))


def test_frames() -> None:
    layer = Layer(image((10, 10)), offset=(-3, 25))
    composite = Composite([Layer(image()), layer, Layer(image((5, 5)), fit="canvas")])
    assert composite.frame(layer) == Region(-3, 25, 7, 35)
    assert composite.frame(composite.layers[2]) == Region(0, 0, 20, 30)


# Composites


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Layer(image((21, 30))), r"i\.tif is 21 x 30 pixels .*20 x 30, as .* is; .*--offset Y,X.*--fit canvas"),
        (Layer(image(dtype=np.uint16, name="b.tif")), r"b\.tif is uint16, but a\.tif is uint8"),
        (Layer(image(channels=4, name="b.tif")), r"b\.tif has 4 colour channels, but a\.tif has 3"),
        (Layer(image(channels=1, name="b.tif")), r"b\.tif has 1 colour channel"),
        (Layer(image((5, 5)), offset=(20, 0)), r"wholly outside the canvas of 20 x 30"),
        (Layer(image((5, 5)), offset=(-5, 0)), r"wholly outside"),
        (Layer(image(), tb.from_array(np.zeros((7, 3), bool), axes="yx", name="m.png", mask=True)),
         r"m\.png is 7 x 3 .*20 x 30"),
    ],
)  # fmt: skip
def test_layers_that_do_not_match(second: Layer, words: str) -> None:
    with pytest.raises(BadInputError, match=words) as caught:
        Composite([Layer(image(name="a.tif")), second])
    one_line(caught)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "under"}, "mode 'under'"),
        ({"background": (1, 2)}, "background has 2 values; the canvas has 3"),
        ({"background": -1}, "background -1 lies outside uint8"),
        ({"background": 256}, "outside uint8, 0 to 255"),
        ({"background": float("nan")}, "must be finite"),
        ({"background": 1e300}, "must be finite"),
    ],
)
def test_parameters_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Composite([Layer(image())], **options)
    one_line(caught)


def test_no_layers_and_no_canvas() -> None:
    with pytest.raises(UsageError, match="at least one layer"):
        Composite([])
    for shape in ((0, 5), (5, -1), (5,)):
        with pytest.raises(UsageError, match="canvas shape"):
            Canvas(shape)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pixel size"):
        Canvas((5, 5), pixel_size_um=(0.0, 1.0))
    with pytest.raises(BadInputError, match="canvas has 5 channels"):
        Composite([Layer(image())], canvas=Canvas((20, 30), 5))


def test_alpha_of_the_canvas() -> None:
    rgba = image(channels=4, alpha=Alpha.STRAIGHT)
    assert Composite([Layer(rgba)]).has_alpha
    assert not Composite([Layer(rgba)], canvas=Canvas((20, 30), 3)).has_alpha
    assert not Composite([Layer(image()), Layer(rgba)]).has_alpha
    assert Composite([Layer(image())], canvas=Canvas((20, 30), 4)).has_alpha
    assert Composite([Layer(rgba)]).keeps_bottom_alpha
    assert not Composite([Layer(rgba)], background=(0, 0, 0, 255)).keeps_bottom_alpha


def test_a_composite_is_frozen_and_picklable() -> None:
    composite = Composite([Layer(image(), feather=Feather.px(3))], "average", 7)
    copy = pickle.loads(pickle.dumps(composite))
    assert (copy.mode, copy.background, copy.shape, copy.grid) == ("average", 7, (20, 30), composite.grid)
    with pytest.raises(AttributeError):
        composite.mode = "over"  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.complex64, bool, np.uint32])
def test_dtypes_of_images_are_refused_by_name(dtype: Any) -> None:
    with pytest.raises(BadInputError, match=np.dtype(dtype).name):
        image(dtype=dtype)


@pytest.mark.parametrize("identity", [fingerprint, partial(deep_fingerprint, threads=1)])
def test_fingerprints_tell_which_input_a_layer_shows(identity: Callable[[Composite], Any]) -> None:
    """Both have the same inputs, of the same name: a run of one is not continued with the other."""
    first, second = (
        Layer(tb.from_array(np.zeros((4, 4), np.uint8), axes="yx")),
        Layer(image((4, 4), 1, name="numpy array")),
    )
    one, other = Composite([first, second, first]), Composite([first, second, second])
    assert identity(one) != identity(other)


def test_fingerprints_tell_what_alpha_means() -> None:
    rgba = [image(channels=4, alpha=alpha) for alpha in (Alpha.STRAIGHT, Alpha.PREMULTIPLIED)]
    assert fingerprint(Composite([Layer(rgba[0])])) != fingerprint(Composite([Layer(rgba[1])]))
