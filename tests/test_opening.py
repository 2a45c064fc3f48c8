"""Opening by content, the process's cache, level and channel views, and what `info` says."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tiledblend.bytes.buckets import _client, client_of
from tiledblend.bytes.objects import open_store
from tiledblend.errors import BadInputError, StorageError, UsageError
from tiledblend.geometry import Region
from tiledblend.look.info import describe, render_info
from tiledblend.sources import Alpha, RasterSource, SourceSpec, from_array, open_source
from tiledblend.sources.opening import forget_sources, make_spec
from tiledblend.sources.views import downsampling

RGBA = np.random.default_rng(5).integers(0, 256, (40, 60, 4), dtype=np.uint8)


@pytest.fixture
def pyramid(tmp_path: Path) -> Path:
    """An OME-Zarr 0.5 of two RGB levels, 100 x 75 and 50 x 38, 0.25 µm a pixel."""
    root = tmp_path / "pyramid.ome.zarr"
    group = zarr.create_group(root, zarr_format=3)
    shapes = [(100, 75), (50, 38)]
    for level, shape in enumerate(shapes):
        array = group.create_array(str(level), shape=(3, *shape), dtype="uint8", chunks=(3, 32, 32))
        array[:] = np.random.default_rng(level).integers(0, 256, (3, *shape), dtype=np.uint8)
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 0.25 * 2**k, 0.25 * 2**k]}]}
        for k in range(2)
    ]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": n} for n in ("red", "green", "blue")]},
    }
    return root


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_format_is_known_by_content_not_by_name(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "image.tif", format="PNG")
    assert open_source(tmp_path / "image.tif").info.format == "PNG"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"%!PS-1.7 not an image",
            "not an image that tiledblend reads (first bytes 25 21 50 53 2d 31 2e 37); it reads TIFF",
        ),
        (b"%PDF-1.7", "is a PDF, which is not read; export the picture as TIFF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file (Imaris, BigDataViewer and others), which is not read"),
        (b"\xda\xce\xbe\x0a" + bytes(60), "is a Nikon ND2 file, which is not read; export it as OME-TIFF"),
        (b"\x93NUMPY\1\0", "is a numpy array, which is not read; give it from Python"),
        (b"", "the file is empty"),
        (b"PK\x03\x04 zip", "zip archive: it has no directory at its end"),
    ],
)
def test_not_an_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        open_source(path)
    assert f"{path}: {reason}" in one_line(caught)


@pytest.mark.parametrize("address", ["http:/host/a.tif", "https:/host/a.zarr", "s3:/bucket/a.zarr", "GS:/bucket/a"])
def test_an_address_that_lost_a_slash(address: str) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(Path(address.replace(":/", "://")) if "host" in address else address)
    assert f"{address}: is an address with one slash: give {address.replace(':/', '://')} as text" in one_line(caught)


def test_a_file_address_has_one_slash_or_three(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    for address in (f"file:{tmp_path}/a.png", f"file://{tmp_path}/a.png"):
        assert open_source(address).shape == RGBA.shape[:2]


def test_a_vsi_is_not_taken_for_its_overview(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.vsi", RGBA)
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path / "a.vsi")
    assert "is an Olympus VSI, whose slide is in .ets files" in one_line(caught)


def test_parts_of_a_mirax_slide_name_the_file_to_give(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "Slidedat.ini").write_text("[GENERAL]")
    for path in (tmp_path / "s", tmp_path / "s" / "Slidedat.ini"):
        with pytest.raises(BadInputError) as caught:
            open_source(path)
        assert f"is part of a MIRAX slide; give {tmp_path / 's'}.mrxs" in one_line(caught)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path / "nowhere.svs")
    assert one_line(caught) == f"{tmp_path / 'nowhere.svs'}: no such file"


def test_directory_without_metadata(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path)
    assert "a directory without zarr metadata" in one_line(caught)


def test_own_output_before_its_commit(tmp_path: Path) -> None:
    (tmp_path / "0" / "c" / "0").mkdir(parents=True)
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path)
    assert "not a complete zarr" in one_line(caught)


def test_metadata_file_names_its_directory(pyramid: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(pyramid / "zarr.json")
    assert f"give its directory {pyramid}" in one_line(caught)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path / "pipe")
    assert "not a regular file" in one_line(caught)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.zarr", "gs://bucket/a.zarr", "az://c/a.svs", "https://example.org/a.svs"]
)
def test_urls_name_the_extra_where_it_is_not_installed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    _client.cache_clear()
    with pytest.raises(BadInputError) as caught:
        open_source(url)
    assert "need the cloud extra" in one_line(caught)


def test_an_output_in_a_bucket_names_the_extra_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"s3://bucket: .* need the cloud extra"):
        open_store("s3://bucket/out.ome.zarr")


@pytest.mark.parametrize(
    ("root", "name"),
    [("s3://bucket", "AWS_ENDPOINT_URL"), ("gs://bucket", "GOOGLE_BASE_URL"), ("az://c", "AZURE_STORAGE_ENDPOINT")],
)
def test_an_endpoint_without_http_is_named_but_not_shown(root: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for wrong in ("store.example.org:8333", "127.0.0.1:8333", "s3.example.org"):
        monkeypatch.setenv(name, wrong)
        _client.cache_clear()
        with pytest.raises(UsageError, match=f"{name} in the environment must begin with https://") as caught:
            client_of(root)
        assert wrong not in str(caught.value)
    _client.cache_clear()


def test_a_missing_azure_account_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    _client.cache_clear()
    with pytest.raises(StorageError, match="set AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY"):
        client_of("az://container")


def test_file_url_and_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a b.png")
    monkeypatch.chdir(tmp_path)
    by_url = open_source((tmp_path / "a b.png").as_uri())
    assert by_url is open_source("a b.png")
    assert by_url.spec.path == str(tmp_path / "a b.png")


def test_cache_gives_the_same_object_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGBA).save(path)
    first = open_source(path)
    assert open_source(path) is first
    assert pickle.loads(pickle.dumps(first)) is first
    assert open_source(path, mask=True) is not first
    Image.fromarray(RGBA[:20, :, 0]).save(path)
    second = open_source(path)
    assert second is not first
    assert second.shape == (20, 60)
    forget_sources()
    assert open_source(path) is not second


def test_cache_notices_a_level_that_changes_below_the_first_document(pyramid: Path) -> None:
    first = open_source(pyramid)
    assert open_source(pyramid) is first
    document = json.loads((pyramid / "0/zarr.json").read_text())
    (pyramid / "0/zarr.json").write_text(json.dumps({**document, "attributes": {"stained": "again"}}))
    second = open_source(pyramid)
    assert second is not first
    second.require_unchanged()


def test_cache_notices_chunks_that_were_written_since_they_were_listed(pyramid: Path) -> None:
    first = open_source(pyramid)
    first.fingerprint()
    for path in filter(Path.is_file, (pyramid / "0/c").rglob("*")):
        os.utime(path, ns=(path.stat().st_mtime_ns + 10**10,) * 2)
    first.read(Region.of_shape(first.shape))
    with pytest.raises(BadInputError, match="the input changed"):
        first.require_unchanged()
    open_source(pyramid).require_unchanged()


def test_a_pickle_holds_no_pixels(pyramid: Path) -> None:
    source = open_source(pyramid, level=1, channels=(2, 0))
    whole(source)
    data = pickle.dumps(source)
    assert len(data) < 1000
    forget_sources()
    np.testing.assert_array_equal(whole(pickle.loads(data)), whole(source))


def test_level_view(pyramid: Path) -> None:
    full, coarse = open_source(pyramid), open_source(pyramid, level=1)
    assert coarse.shape == (50, 38)
    assert len(coarse.levels) == 1
    assert full.pixel_size_um == (0.25, 0.25)
    assert coarse.pixel_size_um == (0.5, 0.5)
    np.testing.assert_array_equal(whole(coarse), whole(full, 1))
    assert coarse.fingerprint()["structure"] != full.fingerprint()["structure"]


def test_channel_view(pyramid: Path) -> None:
    full = open_source(pyramid)
    assert full.is_rgb
    swapped = open_source(pyramid, channels=[2, 0])
    assert not swapped.is_rgb
    assert swapped.info.channel_names == ("blue", "red")
    np.testing.assert_array_equal(whole(swapped), whole(full)[:, :, [2, 0]])
    np.testing.assert_array_equal(whole(open_source(pyramid, channels=[1, 2])), whole(full)[:, :, 1:3])


def test_alpha_survives_a_view_only_as_its_last_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGBA).save(path)
    assert open_source(path, channels=(0, 1, 2, 3)).alpha is Alpha.STRAIGHT
    rgb = open_source(path, channels=(0, 1, 2))
    assert rgb.alpha is Alpha.NONE
    assert rgb.is_rgb
    assert open_source(path, channels=(3,)).alpha is Alpha.NONE
    assert open_source(path, channels=(1, 3)).alpha is Alpha.STRAIGHT


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"level": 2}, "has no level 2; it has levels 0 to 1"),
        ({"level": -1}, "has no level -1"),
        ({"channels": (0, 3)}, "has no channel 3; it has channels 0 to 2"),
        ({"channels": ()}, "must be one or more, each once"),
        ({"channels": (1, 1)}, "must be one or more, each once"),
        ({"series": 1}, "has no series 1"),
        ({"plane": {"z": 0}}, "no axis z to select a plane of"),
    ],
)
def test_selections_that_do_not_exist(pyramid: Path, selection: dict, reason: str) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(pyramid, **selection)
    assert reason in one_line(caught)


def test_a_spec_says_everything(pyramid: Path) -> None:
    spec = make_spec(pyramid, level=1)
    assert spec == SourceSpec(str(pyramid), level=1)
    assert open_source(spec).shape == (50, 38)
    with pytest.raises(UsageError, match="already stated"):
        open_source(spec, level=1)


@pytest.mark.parametrize(("fine", "coarse", "factor"), [(5, 3, 2.0), (4097, 1025, 4.0), (1000, 400, 2.5), (7, 7, 1.0)])
def test_downsampling(fine: int, coarse: int, factor: float) -> None:
    assert downsampling(fine, coarse) == factor


def test_read_outside_is_refused(pyramid: Path) -> None:
    source = open_source(pyramid)
    with pytest.raises(BadInputError, match="lies outside level 0"):
        source.read(Region(0, 0, 101, 10))
    with pytest.raises(BadInputError, match="has no level 5"):
        source.read(Region(0, 0, 1, 1), 5)
    assert source.read(Region(3, 3, 3, 9)).shape == (0, 6, 3)


def test_info_of_a_pyramid(pyramid: Path) -> None:
    (entry,) = describe(pyramid)
    assert entry["layer"]
    assert entry["mask"]
    assert entry["shape"] == [100, 75]
    assert entry["pixel_size_um"] == [0.25, 0.25]
    assert [level["shape"] for level in entry["levels"]] == [[100, 75], [50, 38]]
    assert json.loads(json.dumps(entry)) == entry
    text = render_info([entry])
    for part in (str(pyramid), "OME-Zarr 0.5", "100 x 75", "0.25 x 0.25 µm", "uint8, 3 channels RGB", "layer, mask"):
        assert part in text


def test_info_says_why_not_a_layer(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "labels.zarr", shape=(64, 64), dtype="int32", chunks=(32, 32))
    (entry,) = describe(tmp_path / "labels.zarr")
    assert not entry["layer"]
    assert entry["mask"]
    assert "dtype int32" in entry["problem"]
    assert entry["shape"] == [64, 64]
    assert "mask only: dtype int32" in render_info([entry])


def test_info_of_a_stack_names_its_axes(tmp_path: Path) -> None:
    zarr.create_array(
        tmp_path / "z.zarr", shape=(5, 64, 64), dtype="uint8", chunks=(1, 32, 32), dimension_names=["z", "y", "x"]
    )
    (entry,) = describe(tmp_path / "z.zarr")
    assert not entry["layer"]
    assert not entry["mask"]
    assert "axes z=5, y=64, x=64" in entry["problem"]
    assert "nothing: " in render_info([entry])


def test_info_lists_the_arrays_of_a_group(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    for name in ("a", "b"):
        group.create_array(name, shape=(32, 32), dtype="uint8", chunks=(32, 32))
    entries = describe(tmp_path / "g.zarr")
    assert [Path(entry["path"]).name for entry in entries] == ["a", "b"]
    assert all(entry["layer"] for entry in entries)


def test_info_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        describe(tmp_path / "nothing")


def test_info_of_a_slide() -> None:
    slide = Path(__file__).parents[2] / "shared" / "data" / "CMU-1-Small-Region.svs"
    if not slide.exists():
        pytest.skip("the example slide is not beside this checkout")
    entries = describe(slide)
    assert entries[0]["layer"]
    assert entries[0]["shape"] == [2967, 2220]
    assert entries[0]["pixel_size_um"] == pytest.approx([0.499, 0.499])
    beside = {entry["name"].lower(): entry for entry in entries[1:]}
    assert not beside["label"]["layer"]
    assert "beside the slide's image" in beside["macro"]["problem"]


def test_opening_a_png_imports_no_reader_of_other_formats(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    code = (
        "import sys; from tiledblend.sources import open_source, from_array; open_source(sys.argv[1]);"
        "print([m for m in ('zarr', 'dask', 'cv2', 'tifffile', 'PIL', 'imagecodecs') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_from_array_is_exported() -> None:
    assert from_array(RGBA, axes="yxc").channels == 4
