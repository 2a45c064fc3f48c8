"""Numpy and dask arrays as sources."""

from __future__ import annotations

import pickle
from itertools import permutations
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.run.cluster import open_client
from tiledblend.run.options import ClusterOptions
from tiledblend.sources import Alpha, from_array
from tiledblend.sources.base import MASK_DTYPES

YXC = np.random.default_rng(1).integers(0, 60000, (37, 53, 5), dtype=np.uint16)


@settings(deadline=None)
@given(
    y=st.lists(st.integers(0, 37), min_size=2, max_size=2, unique=True).map(sorted),
    x=st.lists(st.integers(0, 53), min_size=2, max_size=2, unique=True).map(sorted),
    axes=st.sampled_from(["".join(p) for p in permutations("yxc")]),
    lazy=st.booleans(),
)
def test_any_region_in_any_order_of_axes(y: list[int], x: list[int], axes: str, lazy: bool) -> None:
    stored = YXC.transpose(["yxc".index(axis) for axis in axes])
    array = da.from_array(stored, chunks=16) if lazy else stored
    pixels = from_array(array, axes=axes).read(Region(y[0], x[0], y[1], x[1]))
    np.testing.assert_array_equal(pixels, YXC[y[0] : y[1], x[0] : x[1]])
    assert pixels.dtype == np.uint16


def test_facts() -> None:
    source = from_array(YXC[:, :, :3], axes="yxc", name="stain", pixel_size_um=(0.5, 0.25))
    assert source.shape == (37, 53)
    assert source.name == "stain"
    assert source.is_rgb
    assert source.pixel_size_um == (0.5, 0.25)
    assert not from_array(YXC[:3].transpose(0, 1, 2), axes="cyx").is_rgb
    assert from_array(YXC[:, :, 0], axes="yx").channels == 1
    assert from_array(YXC[:, :, :4], axes="yxc", alpha=Alpha.PREMULTIPLIED).is_rgb
    assert from_array(YXC[None, :, :, :], axes="tyxc").shape == (37, 53)


def test_level_tile_is_the_dask_chunk() -> None:
    source = from_array(da.zeros((5, 100, 90), chunks=(5, 32, 16), dtype="uint8"), axes="cyx")
    assert source.levels[0].tile == (32, 16)


def test_big_endian_becomes_native() -> None:
    source = from_array(YXC.astype(">u2"), axes="yxc")
    assert source.dtype.isnative
    pixels = source.read(Region(0, 0, 37, 53))
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, YXC)


def test_the_callers_array_cannot_be_written_through() -> None:
    pixels = from_array(YXC, axes="yxc").read(Region(0, 0, 2, 2))
    with pytest.raises(ValueError, match="read-only"):
        pixels[...] = 0
    assert YXC.flags.writeable


@pytest.mark.parametrize("dtype", MASK_DTYPES)
def test_mask_dtypes(dtype: str) -> None:
    array = np.ones((4, 4), dtype)
    assert from_array(array, axes="yx", mask=True).dtype == np.dtype(dtype)
    if dtype not in ("uint8", "uint16", "float32"):
        with pytest.raises(BadInputError, match=f"dtype {dtype} is not one that a layer's image can have"):
            from_array(array, axes="yx")


def test_complex_is_no_mask_either() -> None:
    with pytest.raises(BadInputError, match="dtype complex64"):
        from_array(np.ones((4, 4), "complex64"), axes="yx", mask=True)


@pytest.mark.parametrize(
    ("array", "axes", "kind", "reason"),
    [
        (YXC, "yx", UsageError, "name 2 dimensions, the array has 3"),
        (YXC, "zyx", BadInputError, "axes z=37, y=53, x=5: more than one 2-D image"),
        (YXC, "ycc", BadInputError, "a name is there twice"),
        (YXC, "abc", BadInputError, "needs the axes y and x"),
        (YXC[:0], "yxc", BadInputError, "at least 1 along every axis"),
        ([[1, 2]], "yx", UsageError, "numpy or dask array is needed, not list"),
    ],
)
def test_refusals(array: object, axes: str, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind) as caught:
        from_array(array, axes=axes)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_dask_sizes_are_refused() -> None:
    array = da.from_array(YXC[:, :, 0], chunks=16)
    unknown = array[array[:, 0] > 7]
    with pytest.raises(BadInputError, match="must be known"):
        from_array(unknown, axes="yx")


def test_alpha_needs_a_colour() -> None:
    with pytest.raises(UsageError, match="alpha channel needs a channel beside it"):
        from_array(YXC[:, :, 0], axes="yx", alpha=Alpha.STRAIGHT)


@pytest.mark.parametrize("lazy", [False, True])
def test_pickle_and_fingerprint(lazy: bool) -> None:
    def make(values: np.ndarray) -> object:
        return da.from_array(values, chunks=20) if lazy else values

    source = from_array(make(YXC), axes="yxc", name="a")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(Region(3, 4, 30, 40)), YXC[3:30, 4:40])
    assert again.fingerprint() == source.fingerprint()
    assert from_array(make(YXC + 1), axes="yxc", name="a").fingerprint() != source.fingerprint()


def test_a_failing_dask_read_is_one_line() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("disk\nis gone")

    source = from_array(da.map_blocks(fail, da.zeros((8, 8), dtype="uint8"), dtype="uint8"), axes="yx", name="lazy")
    with pytest.raises(BadInputError) as caught:
        source.read(Region(0, 0, 4, 4))
    assert str(caught.value) == "lazy: level 0, region [0:4, 0:4]: cannot be read: disk is gone"


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<u2"])
def test_fingerprint_is_of_the_values(dtype: str) -> None:
    stored = YXC.astype(dtype)
    source, native = from_array(stored, axes="yxc"), from_array(YXC.astype(stored.dtype.newbyteorder("=")), axes="yxc")
    assert source.fingerprint() == native.fingerprint()
    swapped = stored.view(stored.dtype.newbyteorder())
    assert source.fingerprint() != from_array(swapped, axes="yxc").fingerprint()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": 3}, "axes 3"),
        ({"alpha": "straight"}, "alpha 'straight' must be one of Alpha.NONE, Alpha.STRAIGHT"),
        ({"pixel_size_um": 0.5}, "pixel_size_um 0.5 must be two positive numbers"),
        ({"pixel_size_um": (0.5, -1)}, "pixel_size_um"),
        ({"pixel_size_um": (1, 2, 3)}, "pixel_size_um"),
        ({"pixel_size_um": (0.5, float("nan"))}, "pixel_size_um"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_array(YXC, **{"axes": "yxc", **options})


def test_masked_arrays_are_refused() -> None:
    hidden = np.ma.masked_array(YXC, mask=YXC > 100)
    for array in (hidden, da.from_array(hidden, chunks=16)):
        with pytest.raises(BadInputError, match=r"masked array; .*filled"):
            from_array(array, axes="yxc")


def test_results_on_a_cluster_are_refused() -> None:
    """A tile reads its part of the graph by itself, and finds no results there."""
    with open_client(ClusterOptions(threads_per_worker=1)) as client:
        kept = client.persist(da.from_array(YXC, chunks=16))
        for array in (kept, kept + 1):
            with pytest.raises(BadInputError, match="before persist"):
                from_array(array, axes="yxc")
