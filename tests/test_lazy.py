"""The face for people with dask arrays in hand: what it takes, what it refuses, and when it computes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import pytest
import tifffile
from distributed import wait
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.errors import BadInputError, UsageError
from tiledblend.run.cluster import open_client

MASK = np.tri(20, 30, dtype=bool)
LABELS = MASK.astype(np.uint8) * np.uint8(9)
IMAGE = np.zeros((20, 30, 3), np.uint8)
WEIGHT = np.full((20, 30), 0.5, np.float32)
UNKNOWN = da.from_array(MASK, chunks=7)[da.from_array(MASK[:, 0], chunks=7)]
HIDDEN = np.ma.masked_array(MASK.astype(np.float32), mask=~MASK)


@pytest.mark.parametrize(
    ("mask", "options", "words"),
    [
        ([[0, 1]], {}, "mask is a list"),
        ("mask.tif", {}, "mask is a str"),
        (MASK, {"sigma": "8um"}, "sigma '8um'"),
        (MASK, {"sigma": None}, "sigma None"),
        (MASK, {"sigma": tb.Feather.px(3)}, "must be pixels"),
        (MASK, {"sigma": (1, 2, 3)}, r"sigma \(1, 2, 3\) must be one number or two"),
        (MASK, {"ksize": "5"}, "ksize '5'"),
        (MASK, {"sigma": 3, "ksize": 5}, "both sigma 3.0 and ksize 5"),
        (MASK, {"side": "outside"}, "side 'outside' must be both or inside"),
        (MASK, {"values": "labels"}, "mask_values 'labels'"),
        (MASK, {"values": {"labels": [2]}}, "mask_values"),
        (LABELS, {"values": (9, 0)}, "lo below hi"),
        (LABELS, {"values": (0, float("nan"))}, "lo below hi"),
    ],
)
def test_feather_refuses_wrong_parameters(mask: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tb.feather(mask, **options)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (MASK.astype(complex), "complex128"),
        (MASK.astype(object), "object"),
        (HIDDEN, "mask is a masked array"),
        (da.from_array(HIDDEN, chunks=7), "mask is a masked array"),
        (UNKNOWN, "compute_chunk_sizes"),
    ],
)
def test_feather_refuses_masks_that_it_cannot_use(mask: Any, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        tb.feather(mask, 1)


@pytest.mark.parametrize("sigma", [0, 2, (2, 0)])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_of_nothing_comes_nothing(shape: tuple[int, int], dtype: str, sigma: Any) -> None:
    for mask in (np.zeros(shape, dtype), da.zeros(shape, dtype=dtype)):
        weight = tb.feather(mask, sigma)
        assert type(weight) is type(mask)
        assert (weight.shape, weight.dtype) == (shape, np.float32)
    image = np.zeros((*shape, 3), np.uint8)
    for base in (image, da.from_array(image)):
        assert np.asarray(tb.blend(base, image, np.zeros(shape, np.float32), axes="yxc")).shape == image.shape


@pytest.mark.parametrize("sigma", [0, 2, (0, 3)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float64"])
def test_chunks_without_pixels_among_others(dtype: str, sigma: Any) -> None:
    mask = MASK.astype(dtype)
    lazy = da.from_array(mask, chunks=8).rechunk(((0, 9, 0, 11), (7, 23, 0)))
    assert 0 in lazy.chunks[0]
    weight = tb.feather(lazy, sigma)
    np.testing.assert_array_equal(weight.compute(scheduler="synchronous"), tb.feather(mask, sigma))
    blended = tb.blend(lazy.astype(np.uint8), IMAGE[:, :, 0], weight, axes="yx")
    np.testing.assert_array_equal(
        blended.compute(scheduler="synchronous"),
        tb.blend(mask.astype(np.uint8), IMAGE[:, :, 0], tb.feather(mask, sigma), axes="yx"),
    )


@pytest.mark.parametrize(
    ("base", "weight", "error", "words"),
    [
        (IMAGE.tolist(), WEIGHT, UsageError, "base is a list"),
        (IMAGE, 0.5, UsageError, "weight is a float"),
        (np.ma.masked_array(IMAGE, mask=IMAGE == 0), WEIGHT, BadInputError, "base is a masked array"),
        (IMAGE, UNKNOWN.astype(np.float32), BadInputError, "weight has shape .* not known yet"),
    ],
)
def test_blend_refuses(base: Any, weight: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tb.blend(base, IMAGE, weight, axes="yxc")


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    computed: list[tuple[int, ...]] = []

    def noted(block: NDArray[Any]) -> NDArray[Any]:
        computed.append(block.shape)
        return block

    image = da.from_array(IMAGE, chunks=(7, 7, 3)).map_blocks(noted, dtype=IMAGE.dtype, meta=IMAGE[:0, :0, :0])
    mask = da.from_array(MASK, chunks=7).map_blocks(noted, dtype=bool, meta=MASK[:0, :0])
    source, masked = tb.from_array(image, axes="yxc"), tb.from_array(mask, axes="yx", mask=True)
    lazy = tb.to_dask(tb.Composite([tb.Layer(source), tb.Layer(source, masked, feather=tb.Feather.px(2))]))
    blended = tb.blend(image, image, tb.feather(mask, 2), axes="yxc")
    assert computed == []
    lazy.compute(scheduler="synchronous")
    blended.compute(scheduler="synchronous")
    assert computed != []


def test_a_cluster_that_keeps_the_blocks_of_an_older_file_computes_those_of_the_new_one(tmp_path: Path) -> None:
    """A notebook persists a composite, the mask is drawn anew, and the cell runs again."""

    def composite(mask: NDArray[Any]) -> tb.Composite:
        tifffile.imwrite(tmp_path / "m.tif", mask.astype(np.uint8) * np.uint8(255), tile=(16, 16))
        drawn = tb.open(tmp_path / "m.tif", mask=True)
        base, over = (tb.from_array(np.full_like(IMAGE, grey), axes="yxc") for grey in (10, 200))
        return tb.Composite([tb.Layer(base), tb.Layer(over, drawn, feather=tb.Feather.px(1))])

    with open_client(tb.ClusterOptions(threads_per_worker=2)) as client, client.as_current():
        kept = client.persist(tb.to_dask(composite(MASK), chunk=8))
        wait(kept)
        newer = composite(~MASK)
        again = client.compute(tb.to_dask(newer, chunk=8)).result()
    np.testing.assert_array_equal(np.moveaxis(again, 0, 2), tb.to_array(newer))


def test_equal_composites_have_equal_keys(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tif", IMAGE, tile=(16, 16), photometric="rgb")
    names = {tb.to_dask(tb.Composite([tb.Layer(tb.open(tmp_path / "i.tif"))]), chunk=8).name for _ in range(2)}
    assert len(names) == 1


@pytest.mark.parametrize("chunk", [0, -1, 8.5, "auto", (8, 8), True])
def test_chunks_that_are_refused(chunk: Any) -> None:
    with pytest.raises(UsageError, match="chunk"):
        tb.to_dask(tb.Composite([tb.Layer(tb.from_array(IMAGE, axes="yxc"))]), chunk=chunk)


def test_verbs_want_a_composite(tmp_path: Path) -> None:
    source: Any = tb.from_array(IMAGE, axes="yxc")
    for verb in (tb.to_dask, tb.plan, lambda given: tb.write(given, tmp_path / "x.zarr")):
        with pytest.raises(UsageError, match="must be a Composite"):
            verb(source)
    assert list(tmp_path.iterdir()) == []


def test_the_package_pickles_by_name() -> None:
    """Functions of a notebook that say `tb.` go to workers with it."""
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert pickle.loads(dumps(tb)) is tb
    assert copy.deepcopy(tb) is tb


@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("mode", ["over", "average"])
def test_byte_order_does_not_change_a_pixel(axes: Any, dtype: str, mode: Any) -> None:
    rng = np.random.default_rng(3)
    shape = tuple({"y": 20, "x": 30, "c": 3}[axis] for axis in axes)
    base, overlay = (rng.integers(0, 60_000, shape).astype(dtype) for _ in range(2))
    weight = rng.random((20, 30), np.float32)
    weight[:5], weight[5:10] = 0, 1
    expected = tb.blend(base, overlay, weight, axes=axes, mode=mode)
    big = [array.astype(array.dtype.newbyteorder(">")) for array in (base, overlay, weight)]
    kept = [array.copy() for array in big]
    lazy = tb.blend(*(da.from_array(array, chunks=8) for array in big), axes=axes, mode=mode)
    assert lazy.dtype == expected.dtype
    for blended in (tb.blend(*big, axes=axes, mode=mode), lazy.compute(scheduler="synchronous")):
        np.testing.assert_array_equal(blended, expected, strict=True)
    for array, before in zip(big, kept, strict=True):
        np.testing.assert_array_equal(array, before)
