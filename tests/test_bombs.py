"""Small inputs that say large things: refused in one line, in bounded memory and time."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
import zstandard
from conftest import Command

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import open_source
from tiledblend.sources.tiff.source import list_series

BOMB = 1 << 26
MOST_BYTES = 24 << 20
SOUND = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)


def zeros(compressor: Any) -> bytes:
    """BOMB zeros through a streaming compressor."""
    piece = bytes(1 << 22)
    return b"".join([*(compressor.compress(piece) for _ in range(BOMB // len(piece))), compressor.flush()])


def zstd_frame(stated: bool) -> bytes:
    compressor = zstandard.ZstdCompressor()
    return zeros(compressor.compressobj(size=BOMB) if stated else compressor.compressobj())


def blosc() -> bytes:
    """A sound chunk whose header says that it decodes to BOMB bytes."""
    data = bytearray(numcodecs.Blosc("lz4").encode(np.zeros(1 << 14, np.uint8)))
    data[4:8] = BOMB.to_bytes(4, "little")
    return bytes(data)


BOMBS: dict[str, tuple[Any, Callable[[], bytes]]] = {
    "gzip": (numcodecs.GZip(), lambda: zeros(zlib.compressobj(9, wbits=31))),
    "zlib": (numcodecs.Zlib(), lambda: zeros(zlib.compressobj(9))),
    "bz2": (numcodecs.BZ2(), lambda: zeros(bz2.BZ2Compressor(1))),
    "lzma": (numcodecs.LZMA(), lambda: zeros(lzma.LZMACompressor(preset=0))),
    "zstd": (numcodecs.Zstd(), lambda: zstd_frame(stated=True)),
    "zstd streamed": (numcodecs.Zstd(), lambda: zstd_frame(stated=False)),
    "lz4": (numcodecs.LZ4(), lambda: BOMB.to_bytes(4, "little") + bytes(400)),
    "blosc": (numcodecs.Blosc(), blosc),
}


def peak_bytes(action: Callable[[], Any]) -> int:
    """By how much the resident memory of this process grows at the most meanwhile (Linux)."""

    def status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    action()
    return status("VmHWM") - before


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_decodes_to_no_more_than_its_pixels(tmp_path: Path, name: str, version: int) -> None:
    codec, make = BOMBS[name]
    path = tmp_path / "a.zarr"
    options: dict[str, Any] = {"zarr_format": 2, "compressors": codec}
    if version == 3:
        if name in ("lzma", "bz2", "zlib", "lz4"):
            pytest.skip("only zarr v2 stores name this codec plainly")
        options = {"compressors": {"gzip": zarr.codecs.GzipCodec(), "blosc": zarr.codecs.BloscCodec(typesize=1)}.get(
            name, zarr.codecs.ZstdCodec())}  # fmt: skip
    array = zarr.create_array(path, shape=SOUND.shape, dtype="uint8", chunks=(64, 64), **options)
    array[:] = SOUND
    whole = Region(0, 0, 128, 128)
    np.testing.assert_array_equal(open_source(path).read(whole)[:, :, 0], SOUND)
    (path / ("0.1" if version == 2 else "c/0/1")).write_bytes(make())
    source = open_source(path)
    np.testing.assert_array_equal(source.read(Region(64, 0, 128, 128))[:, :, 0], SOUND[64:])

    def refused() -> None:
        with pytest.raises(BadInputError, match=rf"level 0, region .*: a {codec.codec_id} chunk decodes to .* bytes"):
            source.read(whole)

    started = time.process_time()
    assert peak_bytes(refused) < MOST_BYTES
    assert time.process_time() - started < 5


def test_zstd_without_a_stated_size_is_read(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), dtype="uint8", chunks=(64, 64))
    array[:] = SOUND[:64, :64]
    compressor = zstandard.ZstdCompressor().compressobj()
    data = compressor.compress(SOUND[:64, :64].tobytes()) + compressor.flush()
    assert zstandard.get_frame_parameters(data).content_size == zstandard.CONTENTSIZE_UNKNOWN
    (tmp_path / "a.zarr" / "c/0/0").write_bytes(data)
    np.testing.assert_array_equal(open_source(tmp_path / "a.zarr").read(Region(0, 0, 64, 64))[:, :, 0], SOUND[:64, :64])


def test_a_chunk_object_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), dtype="uint8", chunks=(64, 64))
    array[:] = 1
    with (tmp_path / "a.zarr" / "c/0/0").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: no disk has it
    with pytest.raises(BadInputError, match="more than its pixels can take"):
        open_source(tmp_path / "a.zarr").read(Region(0, 0, 64, 64))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_a_chunk_that_is_no_file_is_not_waited_for(tmp_path: Path, command: Command, kind: str, sharded: bool) -> None:
    path = tmp_path / "a.zarr"
    shards = {"shards": (64, 64)} if sharded else {}
    zarr.create_array(path, shape=SOUND.shape, dtype="uint8", chunks=(32, 32), dimension_names=["y", "x"], **shards)[
        :
    ] = SOUND
    chunk = path / "c/0/1"
    chunk.unlink()
    if kind == "pipe":
        os.mkfifo(chunk)
    else:
        chunk.symlink_to("/dev/zero" if kind == "device" else "/dev/random")
    with pytest.raises(BadInputError, match="no regular file"):
        open_source(path).read(Region(0, 0, 128, 128))
    done = command("plan", path)
    assert done.code == 0
    assert f"{4 if sharded else 1} of 16 chunks" in done.out + done.err


def test_folders_that_go_round_are_not_followed(tmp_path: Path, command: Command) -> None:
    plane = {"name": "regular", "configuration": {"chunk_shape": [64, 64, 64]}}
    path = write_metadata(tmp_path / "a.zarr", shape=[128] * 3, dimension_names=["z", "y", "x"], chunk_grid=plane)
    (path / "c").mkdir()
    for number in range(2000):
        (path / "c" / str(number)).symlink_to(".")
    started = time.process_time()
    done = command("plan", "--layer", f"{{image: {{path: {path}, plane: {{z: 0}}}}}}")
    assert done.code == 0, done.err
    assert time.process_time() - started < 5


class Ran:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_pickle_in_a_zarr_is_never_opened(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(64, 64), dtype="uint8", chunks=(64, 64), zarr_format=2, compressors=None)
    document = json.loads((path / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    document[place] = [codec] if place == "filters" else codec
    (path / ".zarray").write_text(json.dumps(document))
    (path / "0.0").write_bytes(pickle.dumps(Ran(tmp_path / "harm")))
    with pytest.raises(BadInputError, match="codec 'pickle' is not one of pixels"):
        open_source(path).read(Region(0, 0, 64, 64))
    assert not (tmp_path / "harm").exists()


def write_metadata(path: Path, **changes: Any) -> Path:
    """A zarr v3 array without a chunk."""
    path.mkdir()
    document = {
        "zarr_format": 3, "node_type": "array", "data_type": "uint8", "fill_value": 0, "attributes": {},
        "shape": [4096, 4096], "dimension_names": ["y", "x"], "codecs": [{"name": "bytes"}],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(document | changes))
    return path


def chunks_of(*sizes: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(sizes)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "16,777,216 in 4096 x 4096 px"),
        ({"shape": [1 << 31, 1 << 31]}, "16,777,216 in 4096 x 4096 px"),
        (
            {
                "shape": [65536, 1 << 31, 1 << 31],
                "dimension_names": ["c", "y", "x"],
                "chunk_grid": chunks_of(1, 512, 512),
            },
            "4,194,304 in 4096 x 4096 px",
        ),
        ({"shape": [65537, 64, 64], "dimension_names": ["c", "y", "x"], "chunk_grid": chunks_of(1, 64, 64)}, "65537"),
        ({"shape": [1 << 31, 1 << 31], "chunk_grid": chunks_of(4096, 4096)}, "tiles are more than"),
    ],
)
def test_absurd_shapes_are_refused_at_once(
    command: Command, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_metadata(tmp_path / "a.zarr", **changes)
    started = time.process_time()
    for verb in (("plan", path), ("blend", path, "-o", tmp_path / "out.ome.zarr")):
        done = command(*verb)
        assert done.code in (2, 4)
        assert message in done.error
    assert time.process_time() - started < 5
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("version", [2, 3])
def test_consolidated_metadata_that_lie_change_nothing(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.create_group(path, zarr_format=version)
    array = group.create_array("0", shape=SOUND.shape, dtype="uint8", chunks=(64, 64))
    array[:] = SOUND
    lie = json.loads((path / "0" / (".zarray" if version == 2 else "zarr.json")).read_text()) | {"shape": [1 << 40] * 2}
    if version == 2:
        text = json.dumps(
            {"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}, "0/.zarray": lie}}
        )
        (path / ".zmetadata").write_text(text)
    else:
        document = json.loads((path / "zarr.json").read_text())
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {"0": lie}}
        (path / "zarr.json").write_text(json.dumps(document))
    np.testing.assert_array_equal(open_source(path / "0").read(Region(0, 0, 128, 128))[:, :, 0], SOUND)


@pytest.mark.parametrize("tag", [324, 325])
def test_a_table_of_more_entries_than_a_page_needs_is_not_read(tmp_path: Path, tag: int) -> None:
    """A sparse file of a GiB: no disk has it."""
    tags = {256: (4, 1, 128), 257: (4, 1, 128), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1),
            322: (4, 1, 16), 323: (4, 1, 16), 324: (16, 64, 4096), 325: (16, 64, 4096)}  # fmt: skip
    tags[tag] = 16, 1 << 27, 1 << 20
    directory = b"".join(struct.pack("<HHQQ", code, *rest) for code, rest in tags.items())
    with (tmp_path / "a.tif").open("wb") as file:
        file.write(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + directory + bytes(8))
        file.truncate((1 << 20) + (1 << 30))

    def refused() -> None:
        with pytest.raises(BadInputError, match="of 134217728 entries for a page that needs 64 or fewer"):
            open_source(tmp_path / "a.tif")

    assert peak_bytes(refused) < MOST_BYTES


def test_levels_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_group(path).create_array("0", shape=SOUND.shape, dtype="uint8", chunks=(64, 64))
    document = json.loads((path / "zarr.json").read_text())
    axes = [{"name": name, "type": "space"} for name in "yx"]
    document["attributes"] = {
        "ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}] * 20_000}]}
    }
    (path / "zarr.json").write_text(json.dumps(document))
    started = time.process_time()
    with pytest.raises(BadInputError, match="name 20000 datasets"):
        open_source(path)
    assert time.process_time() - started < 2


def test_multiscales_without_end(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [{"datasets": []}] * 20_000}})
    started = time.process_time()
    done = command("info", path)
    assert done.code == 4
    assert "20000 multiscales" in done.error
    assert time.process_time() - started < 2


FORGED = "Tumor\ntiledblend: error: forged\x1b[2J\ud800"


@pytest.mark.parametrize("verb", ["plan", "blend", "info"])
def test_a_class_forges_no_line(command: Command, tmp_path: Path, verb: str) -> None:
    """Of an outline that is repaired, and named in a note."""
    ring = [[0, 0], [90, 90], [90, 0], [0, 90], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "id": FORGED}
    feature["properties"] = {"classification": {"name": FORGED}}
    (tmp_path / "m.geojson").write_text(json.dumps(feature))
    tifffile.imwrite(tmp_path / "x.tif", SOUND, tile=(64, 64))
    layers = (tmp_path / "x.tif", tmp_path / "x.tif", "--mask", tmp_path / "m.geojson")
    given = {
        "plan": layers,
        "blend": (*layers, "-o", tmp_path / "o.ome.zarr", "--report", tmp_path / "r.html"),
        "info": (tmp_path / "m.geojson",),
    }
    done = command(verb, *given[verb])
    assert done.code == 0, done.err
    lines = (done.out + done.err).splitlines()
    assert all(line.startswith(("tiledblend: note", "tiledblend: report in")) for line in done.err.splitlines())
    assert not any(line.startswith("tiledblend: error") for line in lines)
    assert "\x1b" not in done.out + done.err
    assert (verb == "blend") == (tmp_path / "r.html").exists()


@pytest.mark.parametrize("result", [b"o.ome.zarr", b"o\xe9.ome.zarr", b"o\xe9.ome.tif"])
def test_names_in_another_encoding_are_blended(command: Command, tmp_path: Path, result: bytes) -> None:
    name, out = os.fsencode(tmp_path) + b"/caf\xe9.tif", os.fsdecode(os.fsencode(tmp_path) + b"/" + result)
    tifffile.imwrite(tmp_path / "x.tif", SOUND, tile=(64, 64))
    os.rename(tmp_path / "x.tif", name)
    for arguments in (("info",), ("plan",), ("blend", "-o", out)):
        done = command(arguments[0], os.fsdecode(name), *arguments[1:])
        assert done.code == 0, done.err
    np.testing.assert_array_equal(open_source(out).read(Region(0, 0, 128, 128))[:, :, 0], SOUND)
    if result.endswith(b"zarr"):
        done = command("verify", out, "--against-inputs", "1")
        assert done.code == 0, done.err


@pytest.mark.parametrize("verb", ["plan", "blend", "info"])
def test_a_channels_name_forges_no_line(command: Command, tmp_path: Path, verb: str) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_group(path).create_array("0", shape=SOUND.shape, dtype="uint8", chunks=(64, 64))[:] = SOUND
    axes = [{"name": "y", "type": "space", "unit": FORGED}, {"name": "x", "type": "space", "unit": FORGED}]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"] = {
        "ome": {
            "version": FORGED, "multiscales": [{"axes": axes, "datasets": datasets}],
            "omero": {"channels": [{"label": FORGED, "color": FORGED}]},
        }
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(document))
    done = command(verb, path, *(("-o", tmp_path / "o.ome.zarr") if verb == "blend" else ()))
    assert done.code == 0, done.err
    lines = (done.out + done.err).splitlines()
    assert not any(line.startswith("tiledblend: error") for line in lines)
    assert "\x1b" not in done.out + done.err


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">'
    + "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    + "]>"
)
OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" Name="{name}"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="128" SizeY="128" SizeC="{n}" SizeZ="{n}" SizeT="{n}">'
    "<TiffData/></Pixels></Image></OME>"
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("laughs.xml", LAUGHS + "<ASAP_Annotations>&l11;</ASAP_Annotations>", "document type or entities"),
        (
            "file.xml",
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&e;</ASAP_Annotations>',
            "document type or entities",
        ),
        ("wide.xml", ("<?xml version='1.0'?><!DOCTYPE a []><ASAP_Annotations/>").encode("utf-16-le"), "UTF-16"),
        ("deep.geojson", '{"type":"Feature","x":' + "[" * 300_000 + "]" * 300_000 + "}", "nested too deeply"),
        ("digits.geojson", '{"type":"Point","coordinates":[' + "9" * 300_000 + "]}", "not GeoJSON"),
    ],
)
def test_outlines_that_explode(command: Command, tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    tifffile.imwrite(tmp_path / "base.tif", SOUND, tile=(64, 64))
    started = time.process_time()
    done = command("plan", tmp_path / "base.tif", tmp_path / "base.tif", "--mask", tmp_path / name)
    assert (done.code, message in done.error) == (4, True), done.error
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (LAUGHS + OME.format(name="&l11;", n=1), (0, 4)),
        (OME.format(name="a", n=1_000_000), (0,)),
        ("<OME>" + "<Image>" * 50_000 + "</Image>" * 50_000 + "</OME>", (0, 4)),
    ],
    ids=["laughs", "absurd", "deep"],
)
def test_ome_metadata_that_explode(command: Command, tmp_path: Path, text: str, codes: tuple[int, ...]) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, SOUND, description=text, metadata=None, tile=(64, 64))
    started = time.process_time()
    done: list[Any] = []
    assert peak_bytes(lambda: done.append(command("plan", path))) < 10 * MOST_BYTES
    assert done[0].code in codes, done[0].err
    assert "Traceback" not in done[0].err
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "a: &a [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 40)),
        "? " + "{a: " * 3000 + "1" + "}" * 3000 + "\n: 1\n",
        "layers: [{image: x, opacity: " + "9" * 300_000 + "}]\n",
        "layers: " + "[" * 100_000,
        '{"layers": [{"image": "x", "opacity": ' + "9" * 300_000 + "}]}",
        "layers: [{image: x, opacity: 1" + ":59" * 300_000 + "}]",
        "layers: [{image: x, opacity: 1" + ":59" * 300 + ".5}]",
        "layers: [{image: x, opacity: 1" + ":9" * 49 + "}]",
        "layers: [{image: x, invert: !!bool x}]",
        "layers: [{image: x, opacity: !!timestamp x}]",
        'layers: [{image: x, opacity: !!float ""}]',
        "layers: [" + "a," * 1_500_000 + "]",
        "layers: [{image: x}]\nlevel: " + "9" * 90,
    ],
    ids=[
        "merges",
        "aliases",
        "deep key",
        "digits",
        "deep",
        "JSON digits",
        "base 60",
        "base 60 float",
        "base 60 short",
        "bool",
        "timestamp",
        "float",
        "flat",
        "level",
    ],
)
def test_jobs_that_explode(command: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    tifffile.imwrite(tmp_path / "x", SOUND, tile=(64, 64))
    started = time.process_time()
    done = command("plan", "--job", tmp_path / "job.yaml")
    assert done.code == 2
    assert "job.yaml" in done.error or "level 999" in done.error
    assert time.process_time() - started < 12


IMPOSSIBLE = ["a\\u0000b.tif", "\\ud800.tif", "~nobody\\u0000/a.tif"]
READ_FROM = [(key, name) for key in ("image", "mask", "like") for name in (*IMPOSSIBLE, "file:///a%00.tif")]


@pytest.mark.parametrize(("key", "name"), [*READ_FROM, *(("path", name) for name in IMPOSSIBLE)])
def test_names_that_no_file_can_have(command: Command, tmp_path: Path, key: str, name: str) -> None:
    tifffile.imwrite(tmp_path / "x", SOUND, tile=(64, 64))
    layer = {"image": "x"} | ({key: name} if key in ("image", "mask") else {})
    job: dict[str, Any] = {"layers": [{"image": "x"}, layer], "output": {"path": name if key == "path" else "o"}}
    text = json.dumps(job | ({"canvas": {"like": name}} if key == "like" else {}))
    (tmp_path / "job.yaml").write_text(text.replace("\\\\u", "\\u"))
    done = command("plan", "--job", tmp_path / "job.yaml")
    assert done.code == 4
    assert "no such file" in done.error


@pytest.mark.parametrize("grow", ["1e9px", "-1e300px", "4098px"])
def test_growing_without_end(command: Command, tmp_path: Path, grow: str) -> None:
    tifffile.imwrite(tmp_path / "x.tif", SOUND, tile=(64, 64))
    started = time.process_time()
    done = command("plan", tmp_path / "x.tif", tmp_path / "x.tif", "--mask", tmp_path / "x.tif", f"--grow={grow}")
    assert done.code == 2
    assert ("number up to 1e+12" if "300" in grow else "reaches further than 4096 pixels") in done.error
    assert time.process_time() - started < 5


def test_the_bombs_are_bombs() -> None:
    assert len(gzip.decompress(BOMBS["gzip"][1]())) == BOMB


@pytest.mark.parametrize("opened", [open_source, lambda path: list_series(str(path))], ids=["open", "list"])
def test_entities_in_ome_xml_are_refused(tmp_path: Path, opened: Callable[[Path], object]) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(np.ones((32, 32), np.uint8))
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata or ""
    bomb = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    declared = bomb + text[text.index("<OME") :].replace('Type="uint8"', 'Type="uint8" Name="&b;"')
    tifffile.tiffcomment(path, declared.encode())
    with pytest.raises(BadInputError, match="declares a document type") as caught:
        opened(path)
    assert str(path) in str(caught.value)
