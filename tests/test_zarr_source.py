"""Zarr v2 and v3 arrays and OME-Zarr images against tensorstore and the arrays that were written."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import Alpha, RasterSource, open_source
from tiledblend.sources.opening import forget_sources

CYX = np.random.default_rng(2).integers(0, 256, (3, 203, 157), dtype=np.uint8)

LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {"chunks": (1, 32, 48)},
    "v3 sharded": {"chunks": (3, 32, 32), "shards": (3, 128, 64)},
    "v3 sharded gzip": {"chunks": (1, 16, 32), "shards": (1, 64, 64), "compressors": zarr.codecs.GzipCodec()},
    "v3 one chunk": {"chunks": (3, 203, 157), "compressors": None},
    "v2": {"chunks": (1, 32, 48), "zarr_format": 2},
    "v3 blosc": {"chunks": (1, 32, 48), "compressors": zarr.codecs.BloscCodec(cname="lz4", typesize=1)},
    "v3 sharded blosc": {
        "chunks": (3, 32, 32),
        "shards": (3, 128, 64),
        "compressors": zarr.codecs.BloscCodec(cname="zstd", typesize=1),
    },
    "v2 blosc": {"chunks": (1, 32, 48), "zarr_format": 2, "compressors": numcodecs.Blosc("lz4")},
    "v2 slash": {
        "chunks": (3, 50, 50),
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
        "compressors": None,
    },
}


def write_array(path: Path, values: np.ndarray, names: list[str] | None = None, **options: Any) -> Path:
    v2 = options.get("zarr_format") == 2
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, dimension_names=None if v2 else names, **options
    )
    array[:] = values
    if v2 and names:
        array.attrs["_ARRAY_DIMENSIONS"] = names
    return path


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def refusal(path: Path, **selection: Any) -> str:
    """The one line with which opening `path` is refused."""
    with pytest.raises(BadInputError) as caught:
        open_source(path, **selection)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def read_by_tensorstore(path: Path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec).result().read().result()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_against_tensorstore(tmp_path: Path, layout: str) -> None:
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], **LAYOUTS[layout])
    source = open_source(path)
    expected = read_by_tensorstore(path).transpose(1, 2, 0)
    np.testing.assert_array_equal(whole(source), expected)
    assert source.levels[0].tile == LAYOUTS[layout]["chunks"][1:]
    assert source.shape == (203, 157)
    assert source.channels == 3


@pytest.fixture(scope="module", params=LAYOUTS)
def each_layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RasterSource:
    path = tmp_path_factory.mktemp("layout") / "a.zarr"
    return open_source(write_array(path, CYX, ["c", "y", "x"], **LAYOUTS[request.param]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(y=st.tuples(st.integers(0, 203), st.integers(0, 203)), x=st.tuples(st.integers(0, 157), st.integers(0, 157)))
def test_any_region(each_layout: RasterSource, y: tuple[int, int], x: tuple[int, int]) -> None:
    region = Region(min(y), min(x), max(y), max(x))
    np.testing.assert_array_equal(each_layout.read(region), CYX[:, *region.slices].transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", "<f4", ">f4"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dtypes_come_native(tmp_path: Path, dtype: str, zarr_format: int) -> None:
    values = (CYX[0] * np.float32(1.5)).astype(dtype)
    source = open_source(write_array(tmp_path / "a.zarr", values, chunks=(64, 64), zarr_format=zarr_format))
    pixels = whole(source)
    assert source.dtype.isnative
    assert pixels.dtype == source.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(pixels[:, :, 0], values)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint64", "float16", "float64"])
def test_other_dtypes_are_refused_by_name_unless_a_mask(tmp_path: Path, dtype: str) -> None:
    values = (CYX[0] > 99).astype(dtype)
    path = write_array(tmp_path / "a.zarr", values, chunks=(64, 64))
    assert f"dtype {dtype}" in refusal(path)
    np.testing.assert_array_equal(whole(open_source(path, mask=True))[:, :, 0], values)


def test_complex_is_refused_as_mask_too(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.zarr", CYX[0].astype("complex64"), chunks=(64, 64))
    with pytest.raises(BadInputError, match="dtype complex64"):
        open_source(path, mask=True)


@pytest.mark.parametrize(
    ("shape", "axes", "is_rgb"),
    [((40, 50), "yx", False), ((40, 50, 3), "yxc", True), ((40, 50, 4), "yxc", False), ((5, 40, 50), "cyx", False)],
)
def test_axes_without_names(tmp_path: Path, shape: tuple[int, ...], axes: str, is_rgb: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = open_source(write_array(tmp_path / "a.zarr", values, chunks=tuple(min(s, 32) for s in shape)))
    assert source.info.axes == axes
    assert source.is_rgb is is_rgb
    assert "axes not named" in source.info.notes[0]
    expected = values[:, :, None] if axes == "yx" else values.transpose(1, 2, 0) if axes == "cyx" else values
    np.testing.assert_array_equal(whole(source), expected)


@pytest.mark.parametrize("shape", [(4, 50, 3), (3, 4, 4), (40, 50, 60), (2, 40, 50, 3), (40,)])
def test_ambiguous_axes_are_refused_saying_how_to_name_them(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_array(tmp_path / "a.zarr", np.zeros(shape, np.uint8), chunks=shape)
    message = refusal(path)
    assert f"shape {shape} has no axis names" in message
    assert "dimension_names" in message


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_names_decide(tmp_path: Path, zarr_format: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 30, 3), dtype=np.uint8)
    path = write_array(tmp_path / "a.zarr", values, ["X", "Y", "Channel"], chunks=(4, 30, 3), zarr_format=zarr_format)
    np.testing.assert_array_equal(whole(open_source(path)), values.transpose(1, 0, 2))


def test_missing_chunks_are_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), dtype="uint8", chunks=(32, 32), fill_value=7)
    array[:32, :32] = 9
    pixels = whole(open_source(tmp_path / "a.zarr"))[:, :, 0]
    assert (pixels[:32, :32] == 9).all()
    assert (pixels[32:] == 7).all()


def ome_image(
    path: Path,
    values: np.ndarray,
    axes: str,
    *,
    version: str = "0.5",
    unit: str | None = "micrometer",
    scale: float = 0.5,
    omero: dict[str, Any] | None = None,
    levels: int = 3,
    **options: Any,
) -> Path:
    """A pyramid by plain subsampling along y and x."""
    v3 = version == "0.5"
    group = zarr.create_group(path, zarr_format=3 if v3 else 2)
    datasets = []
    for level in range(levels):
        step = tuple(slice(None, None, 2**level) if axis in "yx" else slice(None) for axis in axes)
        chunks = tuple(32 if axis in "yx" else 1 for axis in axes)
        level_values = values[step]
        array = group.create_array(
            str(level),
            shape=level_values.shape,
            dtype=values.dtype,
            chunks=chunks,
            dimension_names=list(axes) if v3 else None,
            **options,
        )
        array[:] = level_values
        factors = [scale * 2**level if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": factors}]})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in named:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    ome: dict[str, Any] = {"multiscales": [{"axes": named, "datasets": datasets, "name": "image"}]}
    if not v3:
        ome["multiscales"][0]["version"] = version
    if omero:
        ome["omero"] = omero
    group.attrs.update({"ome": {"version": version, **ome}} if v3 else ome)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_levels_and_pixel_size(tmp_path: Path, version: str) -> None:
    source = open_source(ome_image(tmp_path / "a.ome.zarr", CYX, "cyx", version=version))
    assert [level.shape for level in source.levels] == [(203, 157), (102, 79), (51, 40)]
    assert source.pixel_size_um == (0.5, 0.5)
    assert source.info.format.startswith(f"OME-Zarr {version}")
    for level in range(3):
        np.testing.assert_array_equal(whole(source, level), CYX[:, :: 2**level, :: 2**level].transpose(1, 2, 0))
        stored = read_by_tensorstore(tmp_path / "a.ome.zarr" / str(level))
        np.testing.assert_array_equal(whole(source, level), stored.transpose(1, 2, 0))


def test_sharded_ome_zarr(tmp_path: Path) -> None:
    source = open_source(ome_image(tmp_path / "a", CYX, "cyx", shards=(3, 64, 64)))
    assert "sharded" in source.info.format
    assert source.levels[0].tile == (32, 32)
    np.testing.assert_array_equal(whole(source, 1), CYX[:, ::2, ::2].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("unit", "scale", "expected"),
    [("nanometer", 250.0, 0.25), ("millimeter", 0.001, 1.0), ("µm", 0.5, 0.5), (None, 0.5, None), ("pixel", 1, None)],
)
def test_units(tmp_path: Path, unit: str | None, scale: float, expected: float | None) -> None:
    source = open_source(ome_image(tmp_path / "a", CYX, "cyx", unit=unit, scale=scale))
    if expected is None:
        assert source.pixel_size_um is None
        assert any("pixel size is not known" in note for note in source.info.notes)
    else:
        assert source.pixel_size_um == pytest.approx((expected, expected))


def test_scale_of_the_multiscale_multiplies(tmp_path: Path) -> None:
    path = ome_image(tmp_path / "a", CYX, "cyx", scale=1.0)
    edit(path, lambda ome: ome["multiscales"][0].update(
        coordinateTransformations=[{"type": "scale", "scale": [1, 0.3, 0.4]}]
    ))  # fmt: skip
    assert open_source(path).pixel_size_um == pytest.approx((0.3, 0.4))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the OME attributes of a 0.5 group in place."""
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_five_axes_and_planes(tmp_path: Path, version: str) -> None:
    values = np.random.default_rng(0).integers(0, 60000, (2, 3, 4, 50, 40), dtype=np.uint16)
    path = ome_image(tmp_path / "a", values, "tczyx", version=version, levels=2)
    message = refusal(path)
    assert "axes t=2, c=3, z=4, y=50, x=40" in message
    assert "select one along t" in message
    source = open_source(path, plane={"t": 1, "z": 2})
    np.testing.assert_array_equal(whole(source), values[1, :, 2].transpose(1, 2, 0))
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(source))), whole(source))
    assert source.fingerprint() != open_source(path, plane={"t": 1, "z": 3}).fingerprint()
    assert "plane z=4 is not from 0 to 3" in refusal(path, plane={"t": 0, "z": 4})
    assert "no axis q" in refusal(path, plane={"t": 0, "z": 0, "q": 0})


@pytest.mark.parametrize("axes", ["yx", "zyx", "tzyx", "czyx", "tcyx", "tczyx"])
def test_axes_of_size_one_need_no_selection(tmp_path: Path, axes: str) -> None:
    shape = tuple({"y": 50, "x": 40}.get(axis, 1) for axis in axes)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = open_source(ome_image(tmp_path / "a", values, axes))
    np.testing.assert_array_equal(whole(source)[:, :, 0], values.reshape(50, 40))
    assert source.channels == 1


def test_levels_that_shrink_along_z_are_left_out(tmp_path: Path) -> None:
    values = np.zeros((4, 64, 64), np.uint8)
    path = ome_image(tmp_path / "a", values, "zyx", levels=2)
    write_array(tmp_path / "a" / "2", values[:2, :16, :16], ["z", "y", "x"], chunks=(1, 16, 16))
    edit(path, lambda ome: ome["multiscales"][0]["datasets"].append({"path": "2"}))
    source = open_source(path, plane={"z": 3})
    assert len(source.levels) == 2
    assert any("left out" in note for note in source.info.notes)


RGB = [{"label": "", "color": color} for color in ("FF0000", "00ff00", "0000FF")]


@pytest.mark.parametrize(
    ("channels", "count", "is_rgb", "alpha"),
    [
        (RGB, 3, True, Alpha.NONE),
        ([{"label": n} for n in ("Red", "Green", "Blue")], 3, True, Alpha.NONE),
        ([{"label": n} for n in "RGB"], 3, True, Alpha.NONE),
        ([{"label": n} for n in ("DAPI", "FITC", "Cy5")], 3, False, Alpha.NONE),
        ([{"label": n} for n in ("R", "G", "B", "alpha")], 4, True, Alpha.STRAIGHT),
        ([{"label": n} for n in ("R", "G", "B", "IR")], 4, False, Alpha.NONE),
        (RGB, 4, False, Alpha.NONE),
    ],
)
def test_omero_channels(tmp_path: Path, channels: list[dict], count: int, is_rgb: bool, alpha: Alpha) -> None:
    values = np.zeros((count, 40, 40), np.uint8)
    source = open_source(ome_image(tmp_path / "a", values, "cyx", omero={"channels": channels}))
    assert (source.is_rgb, source.alpha) == (is_rgb, alpha)
    if len(channels) == count and channels[0]["label"]:
        assert source.info.channel_names == tuple(channel["label"] for channel in channels)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bioformats2raw_layout(tmp_path: Path, version: str) -> None:
    v3 = version == "0.5"
    root = zarr.create_group(tmp_path / "a", zarr_format=3 if v3 else 2)
    root.attrs.update({"ome": {"bioformats2raw.layout": 3, "version": "0.5"}} if v3 else {"bioformats2raw.layout": 3})
    for series in range(2):
        ome_image(tmp_path / "a" / str(series), CYX + np.uint8(series), "cyx", version=version)
    np.testing.assert_array_equal(whole(open_source(tmp_path / "a")), CYX.transpose(1, 2, 0))
    np.testing.assert_array_equal(whole(open_source(tmp_path / "a", series=1)), (CYX + np.uint8(1)).transpose(1, 2, 0))
    assert "has no series 2; it has 2" in refusal(tmp_path / "a", series=2)


@pytest.mark.parametrize(("key", "reason"), [("plate", "a plate (HCS)"), ("well", "a well of a plate")])
def test_plates_are_refused_by_name(tmp_path: Path, key: str, reason: str) -> None:
    group = zarr.create_group(tmp_path / "a")
    group.attrs["ome"] = {"version": "0.5", key: {}}
    assert reason in refusal(tmp_path / "a")


def test_a_group_names_its_arrays(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a")
    group.create_array("mask", shape=(8, 8), dtype="uint8", chunks=(8, 8))
    assert "give one of its members: mask" in refusal(tmp_path / "a")


def array_document(**changes: Any) -> dict[str, Any]:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [64, 64],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 32]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }
    return {**document, **changes}


def grid(*chunk: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


def sharding(*chunk: int) -> list[dict[str, Any]]:
    configuration = {"chunk_shape": list(chunk), "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}]}
    return [{"name": "sharding_indexed", "configuration": configuration}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": [2**60, 64]}, "is not an image's"),
        ({"shape": [0, 64]}, "is not an image's"),
        ({"shape": [64.5, 64]}, "are not a list of whole numbers"),
        ({"shape": None}, "are not a list of whole numbers"),
        ({"shape": [10**6, 10**6], "chunk_grid": grid(65536, 65536)}, "4.0 GiB to decode"),
        ({"chunk_grid": grid(0, 32)}, "must be at least 1"),
        ({"chunk_grid": grid(32)}, "unlike numbers of axes"),
        ({"chunk_grid": {"name": "rectangular"}}, "its chunk grid is rectangular"),
        ({"shape": [10**6, 10**6], "chunk_grid": grid(2**20, 2**20), "codecs": sharding(1, 1)}, "shard is too large"),
        ({"chunk_grid": grid(48, 48), "codecs": sharding(32, 32)}, "not a multiple of its chunk"),
        ({"codecs": [{"name": "bytes"}, {"name": "no_such_codec"}]}, "no_such_codec"),
        ({"data_type": "no_such_type"}, "no_such_type"),
        ({"data_type": {"name": "structured"}}, "structured"),
        ({"node_type": "thing"}, "not array or group"),
        ({"codecs": None}, "malformed zarr metadata"),
        ({"attributes": [1]}, "a JSON object is needed"),
    ],
)
def test_absurd_or_malformed_metadata(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps(array_document(**changes)))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_metadata_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text, encoding="latin-1")
    refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ome: ome["multiscales"][0]["datasets"].clear(), "name no dataset"),
        (lambda ome: ome["multiscales"][0].pop("datasets"), "no 'datasets'"),
        (lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../other"), "is not inside the image"),
        (lambda ome: ome["multiscales"][0]["datasets"][0].update(path="/etc"), "is not inside the image"),
        (lambda ome: ome["multiscales"][0]["datasets"][1].update(path="9"), "not a complete zarr"),
        (lambda ome: ome["multiscales"][0]["datasets"].reverse(), "is larger than"),
        (lambda ome: ome["multiscales"][0]["axes"].pop(), "2 axes"),
        (lambda ome: ome["multiscales"][0].update(axes=7), "malformed OME-Zarr metadata"),
        (lambda ome: ome.update(multiscales=[]), "has no series 0"),
        (lambda ome: ome.update(multiscales={}), "has no series 0"),
    ],
)
def test_malformed_ome_metadata(tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    path = ome_image(tmp_path / "a", CYX, "cyx")
    edit(path, change)
    assert reason in refusal(path)


@pytest.mark.parametrize("layout", ["v3", "v3 sharded", "v2"])
def test_a_broken_chunk_is_one_line_with_its_region(tmp_path: Path, layout: str) -> None:
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], **LAYOUTS[layout])
    chunks = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr"))]
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[:37])
    with pytest.raises(BadInputError) as caught:
        open_source(path).read(Region(1, 2, 9, 9))
    assert f"{path}: level 0, region [1:9, 2:9]: cannot be read: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_stay_in_the_thread_that_asks(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], chunks=(1, 16, 16))
    source = open_source(path)
    before = set(threading.enumerate())
    whole(source)
    assert set(threading.enumerate()) == before


def test_many_threads(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], chunks=(3, 32, 32), shards=(3, 64, 64))
    source = open_source(path)
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda k: source.read(Region(k, k, 150, 150)), range(64)):
            np.testing.assert_array_equal(pixels[-1, -1], CYX[:, 149, 149])


def test_the_first_reads_may_come_at_once(tmp_path: Path) -> None:
    # zarr opens a store at its first read, and refuses to do so twice: both threads found it closed.
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], chunks=(3, 32, 32))
    for _ in range(3):
        forget_sources()
        source = open_source(path)
        assert all(store._is_open for store in source._stores)  # type: ignore[attr-defined]
        with ThreadPoolExecutor(8) as pool:
            for pixels in pool.map(source.read, [Region(0, 0, 150, 150)] * 16):
                np.testing.assert_array_equal(pixels[-1, -1], CYX[:, 149, 149])


def test_read_inside_a_running_event_loop(tmp_path: Path) -> None:
    import asyncio

    source = open_source(write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], chunks=(3, 64, 64)))

    async def in_a_notebook() -> np.ndarray:
        return whole(source)

    np.testing.assert_array_equal(asyncio.run(in_a_notebook()), CYX.transpose(1, 2, 0))


def test_pickle_and_fingerprint(tmp_path: Path) -> None:
    path = ome_image(tmp_path / "a", CYX, "cyx")
    source = open_source(path)
    assert pickle.loads(pickle.dumps(source)) is source
    before = source.fingerprint()
    assert set(before) == {"uri", "size", "modified", "structure"}
    forget_sources()
    assert open_source(path).fingerprint() == before
    edit(path, lambda ome: ome["multiscales"][0].update(name="other"))
    assert open_source(path) is not source
    assert open_source(path).fingerprint()["structure"] != before["structure"]


@pytest.mark.parametrize("layout", ["v2 blosc", "v3 blosc"])
@pytest.mark.parametrize("kept", [0.12, 0.5, 0.999])
def test_a_blosc_chunk_that_was_cut_off_is_no_pixels(tmp_path: Path, layout: str, kept: float) -> None:
    """C-Blosc itself reads on behind the end of what it was given."""
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], **LAYOUTS[layout])
    chunk = path / ("1.1.1" if layout.startswith("v2") else "c/1/1/1")
    chunk.write_bytes(chunk.read_bytes()[: int(chunk.stat().st_size * kept)])
    with pytest.raises(BadInputError, match=r"region .*blosc chunk of \d+ bytes whose header says \d+"):
        whole(open_source(path, channels=(1,)))


def test_a_blosc_chunk_of_a_shard_that_was_cut_off_is_no_pixels(tmp_path: Path) -> None:
    """The shard's index says that the chunk is shorter than it is."""
    options = {**LAYOUTS["v3 sharded blosc"], "chunks": (3, 128, 64)}
    path = write_array(tmp_path / "a.zarr", CYX, ["c", "y", "x"], **options)
    shard = path / "c/0/0/0"
    data = bytearray(shard.read_bytes())
    offset, length = np.frombuffer(data[-20:-4], "<u8")
    index = np.array([offset, length // 2], "<u8").tobytes()
    shard.write_bytes(bytes(data[:-20]) + index + int(google_crc32c.value(index)).to_bytes(4, "little"))
    with pytest.raises(BadInputError, match=r"blosc chunk of \d+ bytes whose header says \d+"):
        whole(open_source(path))
