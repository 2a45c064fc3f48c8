"""OME-Zarr in one zip file (.ozx): read by ranges, as zipfile, zarr-python and ngff-zarr read and write it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from range_server import range_server

from tiledblend.bytes.archive import Archive, open_archive
from tiledblend.bytes.ranges import open_bytes
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.look.info import describe
from tiledblend.sources import RasterSource, open_source
from tiledblend.sources.opening import forget_sources

CYX = np.random.default_rng(8).integers(0, 256, (3, 140, 170), dtype=np.uint8)


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def folder(path: Path, *, sharded: bool = True, zarr_format: int = 3) -> Path:
    """An OME-Zarr of two levels whose first chunks are not stored."""
    values = CYX.copy()
    values[:, :64, :64] = 0
    group = zarr.create_group(path, zarr_format=zarr_format)
    for name, level in (("0", values), ("1", np.ascontiguousarray(values[:, ::2, ::2]))):
        shards = {"shards": (3, 64, 64)} if sharded else {}
        group.create_array(name, data=level, chunks=(1, 32, 32), **shards)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5 * 2**k, 0.5 * 2**k]}]}
        for k in range(2)
    ]
    multiscales = [{"name": "m", "version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": multiscales}} if zarr_format == 3 else {
        "multiscales": multiscales
    })  # fmt: skip
    return path


def zipped(
    source: Path, target: Path, *, prefix: str = "", method: int = zipfile.ZIP_STORED, wide: bool = False
) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for file in sorted(source.rglob("*"), key=lambda f: (f.name != "zarr.json", len(f.parts), f)):
            if file.is_file():
                info = zipfile.ZipInfo(prefix + file.relative_to(source).as_posix())
                info.compress_type = method
                with archive.open(info, "w", force_zip64=wide) as member:
                    member.write(file.read_bytes())
        archive.comment = json.dumps({"ome": {"version": "0.5"}}).encode()
    return target


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", ["sharded", "chunks", "v2", "in a folder", "zip64"])
@pytest.mark.parametrize("remote", [False, True])
def test_an_archive_is_read_as_the_folder_that_it_was(tmp_path: Path, method: int, kind: str, remote: bool) -> None:
    plain = folder(tmp_path / "a", sharded=kind not in ("chunks", "v2"), zarr_format=2 if kind == "v2" else 3)
    prefix = "a.ome.zarr/" if kind == "in a folder" else ""
    zipped(plain, tmp_path / "a.ozx", prefix=prefix, method=method, wide=kind == "zip64")
    expected = open_source(plain)
    with range_server(tmp_path) as address:
        source = open_source(f"{address}/a.ozx" if remote else tmp_path / "a.ozx")
        assert (source.pixel_size_um, len(source.levels)) == ((0.5, 0.5), 2)
        for level in range(2):
            np.testing.assert_array_equal(whole(source, level), whole(expected, level))
        region = Region(30, 60, 120, 101)
        np.testing.assert_array_equal(source.read(region), expected.read(region))
        lacks, found = expected.unstored(), source.unstored()
        assert lacks is not None
        assert found is not None
        assert (found.missing > 0, found.chunks) == (True, lacks.chunks)
        assert pickle.loads(pickle.dumps(source)) is source


def test_the_directory_is_the_one_that_zipfile_reads(tmp_path: Path) -> None:
    path = zipped(folder(tmp_path / "a"), tmp_path / "a.ozx", method=zipfile.ZIP_DEFLATED)
    ours = open_archive(str(path)).members
    with zipfile.ZipFile(path) as archive:
        theirs = {
            i.filename: (i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC)
            for i in archive.infolist()
        }
        assert {name: tuple(member) for name, member in ours.items()} == theirs
        for name in theirs:
            assert Archive(open_bytes(path)).read(name, 1 << 30) == archive.read(name)


def test_what_was_put_before_an_archive_is_no_matter(tmp_path: Path) -> None:
    path = zipped(folder(tmp_path / "a"), tmp_path / "a.ozx")
    prefixed = tmp_path / "b.zip"
    prefixed.write_bytes(b"PK\x03\x04 a stub" + path.read_bytes())
    np.testing.assert_array_equal(whole(open_source(prefixed)), whole(open_source(path)))


def test_a_member_is_opened_by_its_path_and_info_lists_them(tmp_path: Path) -> None:
    root = tmp_path / "many"
    zarr.create_group(root)
    folder(root / "first")
    folder(root / "second")
    path = zipped(root, tmp_path / "many.ozx")
    assert [entry["path"] for entry in describe(path)] == [f"{path}!/first", f"{path}!/second"]
    assert all(entry["layer"] for entry in describe(path))
    np.testing.assert_array_equal(whole(open_source(f"{path}!/second")), whole(open_source(root / "second")))
    with pytest.raises(BadInputError, match="without zarr metadata there"):
        open_source(f"{path}!/third")


@pytest.mark.filterwarnings("ignore")
def test_what_ngff_zarr_writes(tmp_path: Path) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image = ngff_zarr.to_ngff_image(CYX, dims=list("cyx"), scale={"c": 1, "y": 0.5, "x": 0.25})
    for version in ("0.5", "0.6"):
        path = tmp_path / f"{version}.ozx"
        ngff_zarr.to_ngff_zarr(str(path), ngff_zarr.to_multiscales(image, scale_factors=[2]), version=version)
        np.testing.assert_array_equal(whole(open_source(path)), CYX.transpose(1, 2, 0))


def test_chunks_pass_on_from_an_archive(tmp_path: Path) -> None:
    import tiledblend as tb

    first = tmp_path / "first.ome.zarr"
    base = tb.from_array(np.moveaxis(CYX, 0, 2), axes="yxc")
    output = tb.OutputSpec(chunk=32, shard=64)
    tb.write(tb.Composite([tb.Layer(base)]), first, output=output)
    path = zipped(first, tmp_path / "first.ozx")
    tb.write(tb.Composite([tb.Layer(tb.open(path))]), tmp_path / "second.ome.zarr", output=output)
    for file in first.rglob("c/0/*/*"):
        assert file.read_bytes() == (tmp_path / "second.ome.zarr" / file.relative_to(first)).read_bytes()


def test_an_archive_that_changes_is_another_source(tmp_path: Path) -> None:
    path = zipped(folder(tmp_path / "a"), tmp_path / "a.ozx")
    source = open_source(path)
    before = source.fingerprint()
    assert source.fingerprint() == before
    changed = tmp_path / "b"
    folder(changed)
    array = zarr.open_array(changed / "0", mode="r+")
    array[:, 100:, 100:] = 7
    zipped(changed, tmp_path / "b.ozx")
    os.replace(tmp_path / "b.ozx", path)
    with pytest.raises(BadInputError, match="changed while the run was using it"):
        source.require_unchanged()
    forget_sources()
    again = open_source(path)
    assert (again.read(Region(100, 100, 101, 101)) == 7).all()
    assert again.fingerprint() != before


def damaged(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    forget_sources()
    with pytest.raises(BadInputError) as caught:
        whole(open_source(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_damaged_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    path = zipped(folder(tmp_path / "a", sharded=False), tmp_path / "a.ozx")
    data = path.read_bytes()
    bad = tmp_path / "bad.ozx"
    assert "was cut off" in damaged(bad, data[:-200])
    assert "was cut off" in damaged(bad, data[: len(data) // 2])
    directory = data.find(b"PK\x01\x02")
    for place in range(0, directory, 2411):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        bad.write_bytes(changed)
        forget_sources()
        with suppress(BadInputError):
            # what no chunk and no document is in: a date, a name that the directory has once more
            np.testing.assert_array_equal(whole(open_source(bad)), whole(open_source(path)))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(10, 5, "members, and says 65"), (12, 1 << 30, "lies beyond its end"), (4, 3, "one of several parts; join them")],
)
def test_ends_that_say_what_is_not_so(tmp_path: Path, at: int, value: int, reason: str) -> None:
    data = bytearray(zipped(folder(tmp_path / "a", sharded=False), tmp_path / "a.ozx").read_bytes())
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<I" if at == 12 else "<H", data, end + at, value)
    if at == 10:
        struct.pack_into("<H", data, end + at, struct.unpack_from("<H", data, end + at)[0] + 60)
    assert reason in damaged(tmp_path / "bad.ozx", bytes(data))


def test_archives_that_are_no_zarr_or_not_read_say_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BadInputError, match="a zip archive without zarr metadata at its root; unpack it first"):
        open_source(tmp_path / "a.zip")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("zarr.json", "{}")
    (tmp_path / "b.zip").write_bytes(stream.getvalue())
    with pytest.raises(BadInputError, match=r"zarr\.json is packed by method 14"):
        open_source(tmp_path / "b.zip")
