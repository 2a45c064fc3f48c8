"""What OME-Zarr's metadata mean, version by version, against independent readers and arrays that were written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from object_stores import serving

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import RasterSource, open_source
from tiledblend.sources.units import micrometres

CYX = np.random.default_rng(5).integers(0, 256, (3, 70, 90), dtype=np.uint8)


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def stored(path: Path, ome: dict[str, Any], arrays: dict[str, np.ndarray], **options: Any) -> Path:
    """A zarr v3 group with these OME attributes and arrays."""
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = ome
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=tuple(min(32, side) for side in values.shape), **options)
    return path


def system(axes: str, name: str = "physical", unit: str = "micrometer") -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    made = [{"name": a, "type": kinds.get(a, "space"), **({} if a in kinds else {"unit": unit})} for a in axes]
    return {"name": name, "axes": made}


def image06(axes: str, transformation: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The attributes of one 0.6 image with one level."""
    placed = {**transformation, "input": {"path": "0"}, "output": {"name": "physical"}}
    multiscale = {
        "name": "m",
        "coordinateSystems": [system("yx", "elsewhere"), system(axes)],
        "datasets": [{"path": "0", "coordinateTransformations": [placed]}],
        **more,
    }
    return {"version": "0.6", "multiscales": [multiscale]}


SCALE_AND_PLACE = {
    "type": "sequence",
    "transformations": [
        {"type": "scale", "scale": [1, 1, 2, 0.5, 0.25]},
        {"type": "translation", "translation": [0, 0, 3, 100, 50]},
    ],
}


@pytest.mark.parametrize("axes", ["tczyx", "tzcxy", "xyzct", "czyxt", "tcxzy"])
def test_axes_of_0_6_are_those_of_its_coordinate_system(tmp_path: Path, axes: str) -> None:
    values = CYX[None, :, None].transpose(["tczyx".index(axis) for axis in axes])
    factors = dict(zip("tczyx", [1, 1, 2, 0.5, 0.25], strict=True))
    places = dict(zip("tczyx", [0, 0, 3, 100, 50], strict=True))
    steps = [
        {"type": "scale", "scale": [factors[axis] for axis in axes]},
        {"type": "translation", "translation": [places[axis] for axis in axes]},
    ]
    ome = image06(axes, {"type": "sequence", "transformations": steps})
    source = open_source(stored(tmp_path / "a", ome, {"0": values}))
    np.testing.assert_array_equal(whole(source), CYX.transpose(1, 2, 0))
    assert source.pixel_size_um == (0.5, 0.25)
    assert source.origin_um == (100, 50)
    assert source.info.format.startswith("OME-Zarr 0.6")


@pytest.mark.parametrize(
    ("transformation", "size", "origin"),
    [
        ({"type": "identity"}, (1, 1), (0, 0)),
        ({"type": "scale", "scale": [1, 1, 1, 0.5, 0.25]}, (0.5, 0.25), (0, 0)),
        (SCALE_AND_PLACE, (0.5, 0.25), (100, 50)),
        (
            {
                "type": "affine",
                "affine": [
                    [1, 0, 0, 0, 0, 0],
                    [0, 1, 0, 0, 0, 0],
                    [0, 0, 1, 0, 0, 0],
                    [0, 0, 0, 0.5, 0, 7],
                    [0, 0, 0, 0, 0.25, 9],
                ],
            },
            (0.5, 0.25),
            (7, 9),
        ),
        (
            {"type": "bijection", "forward": SCALE_AND_PLACE, "inverse": {"type": "identity"}},
            (0.5, 0.25),
            (100, 50),
        ),
        (
            {
                "type": "byDimension",
                "transformations": [
                    {
                        "transformation": {"type": "scale", "scale": [0.5, 0.25]},
                        "inputAxes": [3, 4],
                        "outputAxes": [3, 4],
                    }
                ],
            },
            (0.5, 0.25),
            (0, 0),
        ),
    ],
)
def test_transformations_of_0_6(
    tmp_path: Path, transformation: dict[str, Any], size: tuple[float, float], origin: tuple[float, float]
) -> None:
    source = open_source(stored(tmp_path / "a", image06("tczyx", transformation), {"0": CYX[None, :, None]}))
    assert (source.pixel_size_um, source.origin_um) == (size, origin)


def test_an_axis_map_names_the_axes(tmp_path: Path) -> None:
    # the array is x, y; its coordinate system y, x
    ome = image06("yx", {"type": "mapAxis", "mapAxis": [1, 0]})
    source = open_source(stored(tmp_path / "a", ome, {"0": CYX[0].T}))
    np.testing.assert_array_equal(whole(source)[:, :, 0], CYX[0])


@pytest.mark.parametrize(
    "transformation", [{"type": "affine", "path": "matrix"}, {"type": "displacements", "path": "d"}, {"type": "new"}]
)
def test_a_transformation_that_is_not_understood_costs_the_pixel_size(tmp_path: Path, transformation: Any) -> None:
    source = open_source(stored(tmp_path / "a", image06("cyx", transformation), {"0": CYX}))
    assert source.pixel_size_um is None
    assert any("the pixel size is not known" in note for note in source.info.notes)


def test_a_further_system_of_an_image_is_not_its_pixel_size(tmp_path: Path) -> None:
    further = {
        "type": "scale",
        "scale": [1, 10, 10],
        "input": {"name": "physical"},
        "output": {"name": "elsewhere"},
    }
    ome = image06("cyx", {"type": "scale", "scale": [1, 0.5, 0.25]}, coordinateTransformations=[further])
    assert open_source(stored(tmp_path / "a", ome, {"0": CYX})).pixel_size_um == (0.5, 0.25)


def test_ngff_zarr_and_models_agree_on_0_6(tmp_path: Path) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    path = tmp_path / "a.ome.zarr"
    image = ngff_zarr.to_ngff_image(
        CYX[None, :, None],
        dims=list("tczyx"),
        scale={"t": 1, "c": 1, "z": 2, "y": 0.5, "x": 0.25},
        translation={"t": 0, "c": 0, "z": 0, "y": 100, "x": 50},
        axes_units=dict.fromkeys("zyx", "nanometer"),
    )
    ngff_zarr.to_ngff_zarr(str(path), ngff_zarr.to_multiscales(image, scale_factors=[]), version="0.6")
    source = open_source(path)
    read = ngff_zarr.from_ngff_zarr(str(path)).images[0]
    assert source.pixel_size_um == pytest.approx((read.scale["y"] / 1000, read.scale["x"] / 1000))
    assert source.origin_um == pytest.approx((read.translation["y"] / 1000, read.translation["x"] / 1000))
    np.testing.assert_array_equal(whole(source), np.asarray(read.data)[0, :, 0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("version", "is_known"),
    [
        *((version, True) for version in ("0.4", "0.5", "0.6", "0.6.dev4", "0.6rc0", "0.5-dev-spatialdata")),
        *((version, False) for version in ("0.7", "0.9.dev1", "1.0", 7)),
    ],
)
def test_the_version_is_looked_at(tmp_path: Path, version: Any, is_known: bool) -> None:
    ome = {**image06("cyx", {"type": "scale", "scale": [1, 0.5, 0.25]}), "version": version}
    source = open_source(stored(tmp_path / "a", ome, {"0": CYX}))
    assert any(f"version {version} is not known" in note for note in source.info.notes) is not is_known


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("micrometer", 1), ("micrometers", 1), ("Micrometre", 1), ("micron", 1), ("microns", 1), ("um", 1), ("µm", 1),
        ("\u03bcm", 1), ("nanometer", 1e-3), ("nanometres", 1e-3), ("picometer", 1e-6), ("femtometers", 1e-9),
        ("millimeter", 1e3), ("mm", 1e3), ("centimetre", 1e4), ("decimeter", 1e5), ("meter", 1e6), ("metres", 1e6),
        ("decameter", 1e7), ("hectometer", 1e8), ("kilometer", 1e9), ("megameter", 1e12), ("Mm", 1e12), ("Gm", 1e15),
        ("yoctometer", 1e-18), ("yottameter", 1e30), ("attometer", 1e-12), ("zeptometer", 1e-15), ("exametre", 1e24),
        ("angstrom", 1e-4), ("angstroms", 1e-4), ("inch", 25400), ("inches", 25400), ("foot", 304800),
        ("feet", 304800), ("yard", 914400), ("mile", 1609344000), ("second", None), ("pixel", None), ("", None),
        (3, None),
    ],
)  # fmt: skip
def test_units(unit: Any, um: float | None) -> None:
    assert micrometres(unit) == (um if um is None else pytest.approx(um, rel=1e-15))


@pytest.mark.parametrize("name", ["channel", "ch", "marker", "lambda", "band", "C"])
def test_the_channel_axis_is_told_by_its_type(tmp_path: Path, name: str) -> None:
    ome = image06("cyx", {"type": "scale", "scale": [1, 0.5, 0.25]})
    ome["multiscales"][0]["coordinateSystems"][1]["axes"][0]["name"] = name
    source = open_source(stored(tmp_path / "a", ome, {"0": CYX}, dimension_names=[name, "y", "x"]))
    np.testing.assert_array_equal(whole(source), CYX.transpose(1, 2, 0))


def test_space_axes_of_other_names_are_y_and_x(tmp_path: Path) -> None:
    ome = image06("cyx", {"type": "scale", "scale": [1, 0.5, 0.25]})
    for axis, name in zip(ome["multiscales"][0]["coordinateSystems"][1]["axes"], ["c", "row", "col"], strict=True):
        axis["name"] = name
    source = open_source(stored(tmp_path / "a", ome, {"0": CYX}))
    assert source.pixel_size_um == (0.5, 0.25)
    assert any("row, col are taken as y, x" in note for note in source.info.notes)


def with_omero(path: Path, channels: list[dict[str, Any]], values: np.ndarray = CYX) -> RasterSource:
    ome = {**image06("cyx", {"type": "scale", "scale": [1, 0.5, 0.25]}), "omero": {"channels": channels}}
    return open_source(stored(path, ome, {"0": values}))


COLORS = ("FF0000", "00FF00", "0000FF")


@pytest.mark.parametrize(
    ("labels", "dtype", "is_rgb"),
    [
        (("R", "G", "B"), "uint8", True),
        (("red", "Green", "BLUE"), "uint16", True),
        ((None, None, None), "uint8", True),
        ((None, None, None), "uint16", False),
        (("", "", ""), "uint8", True),
        (("TRITC", "FITC", "DAPI"), "uint8", False),
        (("TRITC", "FITC", "DAPI"), "uint16", False),
        (("Channel 0", "Channel 1", "Channel 2"), "uint8", False),
        ((0, 1, 2), "uint8", False),
    ],
)
def test_names_decide_whether_colours_are_rgb(
    tmp_path: Path, labels: tuple[Any, ...], dtype: str, is_rgb: bool
) -> None:
    channels = [{"label": label, "color": color} for label, color in zip(labels, COLORS, strict=True)]
    source = with_omero(tmp_path / "a", channels, CYX.astype(dtype))
    assert source.is_rgb is is_rgb
    assert "None" not in source.info.channel_names
    says_maybe = any("give --rgb" in note for note in source.info.notes)
    assert says_maybe is (not is_rgb and dtype == "uint8" and labels[0] in ("Channel 0", 0))


def test_rgb_is_said_by_the_caller_or_by_a_photometric_interpretation(tmp_path: Path) -> None:
    plain = with_omero(tmp_path / "a", [])
    assert not plain.is_rgb
    assert any("give --rgb" in note for note in plain.info.notes)
    from dataclasses import replace

    said = open_source(replace(plain.spec, rgb=True))
    assert said.is_rgb
    assert not any("--rgb" in note for note in said.info.notes)
    with pytest.raises(BadInputError, match="three channels, it has 2"):
        open_source(replace(plain.spec, rgb=True, channels=(0, 1)))
    ome = image06("cyx", {"type": "identity"}, metadata={"photometric": "RGB"})
    assert open_source(stored(tmp_path / "b", ome, {"0": CYX})).is_rgb


def test_display_windows_are_read(tmp_path: Path) -> None:
    windows: list[Any] = [{"start": 5, "end": 900, "min": 0, "max": 65535}, {"min": 1, "max": 2}, None]
    source = with_omero(tmp_path / "a", [{"label": "a", "window": window} for window in windows])
    assert source.info.channel_windows == ((5, 900), (1, 2), None)
    odd: list[Any] = [{"start": 9, "end": 9}, {"start": "x"}, {"start": float("nan"), "end": 1}]
    assert with_omero(tmp_path / "b", [{"window": window} for window in odd]).info.channel_windows == ()


def test_levels_of_another_dtype_are_left_out(tmp_path: Path) -> None:
    ome = image06("cyx", {"type": "identity"})
    ome["multiscales"][0]["datasets"].append({"path": "1"})
    source = open_source(stored(tmp_path / "a", ome, {"0": CYX, "1": CYX[:, ::2, ::2].astype("float32")}))
    assert len(source.levels) == 1
    assert any("levels from 1 on are left out" in note for note in source.info.notes)


def layout_of(path: Path, series: list[str], **more: Any) -> Path:
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3, **more}
    group.create_group("OME").attrs["ome"] = {"version": "0.5", "series": series}
    for number, name in enumerate(series):
        stored(path / name, image06("cyx", {"type": "identity"}), {"0": CYX + np.uint8(number)})
    return path


def test_series_of_other_names(tmp_path: Path) -> None:
    path = layout_of(tmp_path / "a", ["slide", "macro"])
    np.testing.assert_array_equal(whole(open_source(path, series=1)), (CYX + np.uint8(1)).transpose(1, 2, 0))
    np.testing.assert_array_equal(whole(open_source(path)), CYX.transpose(1, 2, 0))
    with pytest.raises(BadInputError, match="has no series 2; it has 2"):
        open_source(path, series=2)
    group = zarr.open_group(path / "OME", mode="r+")
    group.attrs["ome"] = {"series": ["../a"]}
    with pytest.raises(BadInputError, match="not inside the image"):
        open_source(path)


def test_a_root_that_holds_a_plate(tmp_path: Path) -> None:
    plate = {"wells": [{"path": "B/07", "rowIndex": 1, "columnIndex": 6}]}
    path = layout_of(tmp_path / "a", ["B/07/0", "B/07/1"], plate=plate)
    with pytest.raises(BadInputError, match=r"a plate \(HCS\), not one image; give one field .* such as its B/07/0"):
        open_source(path)
    np.testing.assert_array_equal(whole(open_source(path, series=1)), (CYX + np.uint8(1)).transpose(1, 2, 0))


TRANSPOSE = {"name": "transpose", "configuration": {"order": [1, 0]}}
SHARDING = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [8, 8], "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}]},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codecs": [TRANSPOSE, SHARDING]}, "transpose before sharding"),
        ({"chunk_grid": {"name": "hexagonal"}}, "its chunk grid is hexagonal"),
    ],
)  # fmt: skip
def test_what_is_valid_and_not_read_says_so(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(32, 32), dtype="uint8", dimension_names=["y", "x"])
    document = json.loads((tmp_path / "a/zarr.json").read_text()) | change
    (tmp_path / "a/zarr.json").write_text(json.dumps(document))
    with pytest.raises(BadInputError, match=f"is not read: .*{reason}.*; store it again with"):
        open_source(tmp_path / "a")


def test_codecs_of_imagecodecs_in_zarr_v2_are_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(32, 32), dtype="uint8", zarr_format=2)
    document = json.loads((tmp_path / "a/.zarray").read_text()) | {"compressor": {"id": "imagecodecs_jpeg"}}
    (tmp_path / "a/.zarray").write_text(json.dumps(document))
    with pytest.raises(BadInputError, match="imagecodecs_jpeg of the imagecodecs package, which is not read; store it"):
        open_source(tmp_path / "a")


Answer = Callable[[bytes | None, str], tuple[int, bytes]]


@contextmanager
def answering(folder: Path, answer: Answer) -> Iterator[str]:
    """A web server of a folder. answer: (status, body) of a file's bytes, None for what is not there, and its name."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            status, body = answer(path.read_bytes() if path.is_file() else None, path.name)
            span = self.headers.get("Range", "")
            if status == 200 and span.startswith("bytes="):
                first, _, last = span.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, len(body) - int(last))
                end = int(last) + 1 if first and last else len(body)
                self.send_response_only(206)
                self.send_header("Content-Range", f"bytes {start}-{min(end, len(body)) - 1}/{len(body)}")
                body = body[start:end]
            else:
                self.send_response_only(status)
            if body.startswith(b"\x1f\x8b"):
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 10:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the server's own name

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Handler) as address:
        yield address


def _forbidding(data: bytes | None, name: str) -> tuple[int, bytes]:
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    return (403, denied) if data is None else (200, data)


def _with_a_page(data: bytes | None, name: str) -> tuple[int, bytes]:
    return 200, b"<!doctype html><html><body>app</body></html>" if data is None else data


def _compressing(data: bytes | None, name: str) -> tuple[int, bytes]:
    if data is None:
        return 404, b""
    return 200, gzip.compress(data) if name == "zarr.json" or name.startswith(".z") else data


@pytest.mark.parametrize("answer", [_forbidding, _with_a_page, _compressing])
@pytest.mark.parametrize("kind", ["v2", "v3", "sharded"])
def test_web_servers_as_people_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, kind: str
) -> None:
    monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "5")
    values = CYX.copy()
    values[:, :32, :32] = 0  # a chunk that zarr-python does not store
    options: dict[str, Any] = {"shards": (3, 64, 64)} if kind == "sharded" else {}
    if kind == "v2":
        array = zarr.create_array(tmp_path / "a", shape=values.shape, dtype="uint8", chunks=(3, 32, 32), zarr_format=2)
        array.attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    else:
        names = ["c", "y", "x"]
        array = zarr.create_array(
            tmp_path / "a", shape=values.shape, dtype="uint8", chunks=(3, 32, 32), dimension_names=names, **options
        )
    array[:] = values
    with answering(tmp_path, answer) as address:
        source = open_source(f"{address}/a")
        region = Region.of_shape((70, 90))
        if answer is _with_a_page and kind != "sharded":
            # its page instead of a chunk is no chunk
            region = Region(32, 32, 70, 90)
        np.testing.assert_array_equal(source.read(region), values[:, *region.slices].transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["v2", "sharded"])
def test_a_bucket_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pytest.importorskip("obstore")
    from tiledblend.bytes.buckets import forget_clients

    values = CYX.copy()
    values[:, :32, :32] = 0
    more: dict[str, Any] = {"zarr_format": 2} if kind == "v2" else {"shards": (3, 64, 64)}
    array = zarr.create_array(tmp_path / "b/folder/a", shape=values.shape, dtype="uint8", chunks=(3, 32, 32), **more)
    array.attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    array[:] = values
    with answering(tmp_path, _forbidding) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "5")
        forget_clients()
        try:
            source = open_source("s3://b/folder/a")
            np.testing.assert_array_equal(whole(source), values.transpose(1, 2, 0))
            assert source.encoded() is not None
            assert source.unstored() is None or source.unstored().refused is False
            from tiledblend.errors import StorageError

            with pytest.raises(BadInputError, match="no such object, and no zarr metadata below it"):
                open_source("s3://b/folder/none")
            with pytest.raises(StorageError, match="access denied"):
                open_source("s3://elsewhere/none")
        finally:
            forget_clients()


def test_what_is_denied_altogether_is_not_taken_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "5")
    zarr.create_array(tmp_path / "a", data=CYX[0], chunks=(32, 32))
    is_open = [True]

    def answer(data: bytes | None, name: str) -> tuple[int, bytes]:
        return (200, data) if data is not None and is_open[0] else (403, b"")

    from tiledblend.bytes import remote
    from tiledblend.errors import StorageError

    monkeypatch.setattr(remote, "WITNESS_SECONDS", 0)
    with answering(tmp_path, answer) as address:
        source = open_source(f"{address}/a")
        is_open[0] = False
        with pytest.raises(StorageError, match="access denied"):
            whole(source)
        with pytest.raises(StorageError, match="access denied"):
            open_source(f"{address}/a", level=0, plane={}, mask=True)


@pytest.mark.parametrize(
    "address",
    [
        "https://bucket.s3.amazonaws.com",
        "https://s3.us-west-2.amazonaws.com",
        "https://s3.amazonaws.com",
        "https://account.blob.core.windows.net",
        "https://account.dfs.core.windows.net",
        "https://storage.googleapis.com",
        "https://abc.r2.cloudflarestorage.com",
        "https://onelake.dfs.fabric.microsoft.com",
    ],
)
def test_a_web_address_is_a_plain_get(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pytest.importorskip("obstore.store")
    from tiledblend.bytes.buckets import client_of, forget_clients

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    forget_clients()
    try:
        assert isinstance(client_of(address), store.HTTPStore)
    finally:
        forget_clients()
