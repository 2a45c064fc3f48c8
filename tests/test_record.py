"""The report of a run: one file that shows everything, calls nowhere, and keeps secrets."""

from __future__ import annotations

import base64
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Command

import tiledblend as tb
from tiledblend.compose.scene import decide
from tiledblend.describe.job import build
from tiledblend.errors import StorageError
from tiledblend.look.methods import Made, methods_text
from tiledblend.look.record import check_report_path, without_secrets, write_report


class Text(HTMLParser):
    """Words of a page and the addresses in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.addresses, self.tags = "", list[str](), set[str]()
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("base", "<b>overlay&"):
        pixels = rng.integers(0, 4000, (7, 300, 400), np.uint16)
        metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": list("abcdefg")}}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", pixels, tile=(128, 128), metadata=metadata)
    cv2.imwrite(str(tmp_path / "mask.png"), np.tri(300, 400, dtype=np.uint8) * 255)
    return tmp_path


FLAGS = ("base.ome.tif", "<b>overlay&.ome.tif", "--mask", "mask.png", "--feather", "4um", "--opacity", "0.75")
SIZES = ("--chunk", 64, "--shard", 128)


def test_a_report_of_a_seven_channel_run(inputs: Path, command: Command) -> None:
    ran = command("blend", *FLAGS, *SIZES, "-o", "out.ome.zarr", "--report", "report.html", "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert ran.err.count("mask.png: uint8 values scaled by 255") == 1  # however often the mask is looked at
    page = (inputs / "report.html").read_text("utf-8")
    text = Text(page)
    assert text.words.count("feathered by a Gaussian of σ = 8 px (4 µm), at an opacity of 0.75") == 1
    assert "<b>overlay&.ome.tif was blended over it by the mask mask.png" in text.words
    assert "b" not in text.tags  # a file's name is no markup
    assert "script" not in text.tags
    for said in (
        "300 × 400 pixels (y × x) at 0.5 µm per pixel",
        "OME-Zarr 0.5 pyramid of",
        f"{facts['chunks']['blended']:,} blended",
        f"{facts['bytes_written']:,}",
        "7 channels of uint16",
        "a, b, c, d, e, f, g",
        "opencv-python-headless",
        "mask_frame: layer",
    ):
        assert said in re.sub(r"\s+", " ", text.words), said
    stored = json.loads((inputs / "out.ome.zarr" / "zarr.json").read_text())["attributes"]["tiledblend"]
    assert all(known["structure"] in text.words for known in stored["job"]["inputs"])
    assert len(text.addresses) == 4  # base, overlay, weight, result
    for address in text.addresses:
        head, _, data = address.partition(",")
        assert head == "data:image/png;base64"
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (225, 300, 3)


def test_nothing_is_overwritten_and_it_is_known_before_the_run(inputs: Path, command: Command) -> None:
    (inputs / "mine.html").write_text("mine")
    for path, code in (("mine.html", 3), ("none/a.html", 5), ("a.txt", 2)):
        assert command("blend", *FLAGS, "-o", "out.ome.zarr", "--report", path).code == code
    assert command("blend", *FLAGS, "-o", "out.ome.zarr", "--report", "a.html", "--part", "1/2").code == 2
    assert not (inputs / "out.ome.zarr").exists()
    assert (inputs / "mine.html").read_text() == "mine"


def test_parts_report_when_they_are_finished(inputs: Path, command: Command) -> None:
    for part in ("1/2", "2/2"):
        assert command("blend", *FLAGS, *SIZES, "-o", "out.ome.zarr", "--part", part).code == 0
    assert command("blend", *FLAGS, *SIZES, "-o", "out.ome.zarr", "--finish", "--report", "a.html").code == 0
    assert "by earlier drivers" in (inputs / "a.html").read_text("utf-8")
    assert command("blend", *FLAGS, *SIZES, "-o", "out.ome.zarr", "--resume", "--report", "b.html").code == 0
    words = Text((inputs / "b.html").read_text("utf-8")).words
    assert "complete already, nothing computed" in words
    assert "Mpx/s" not in words


@pytest.mark.parametrize(
    ("out", "kind"), [("small.tif", "a TIF image"), ("file.ome.tif", "an OME-TIFF with a pyramid")]
)
def test_files_have_reports_too(out: str, kind: str, inputs: Path, command: Command) -> None:
    ran = command("blend", *FLAGS, "-o", out, "--report", "a.html")
    assert ran.code == 0, ran.err
    words = Text((inputs / "a.html").read_text("utf-8")).words
    assert f"The result is stored as {kind}" in words


def test_a_report_that_cannot_be_written_says_that_the_result_is_there(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    job = build({"layers": [{"image": str(inputs / "base.ome.tif")}]})
    made = Made("base.ome.tif", "a test", {"seconds": 1.0, "pixels": 1, "bytes_written": 1})
    with pytest.raises(StorageError, match="complete, only its report is missing"):
        write_report(inputs / "none" / "a.html", job, made)
    check_report_path(inputs / "a.HTML")


def test_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key-1234")
    told = without_secrets("s3://user:pass@b/k.tif, https://h/x.tif?sig=abc&t=1 and hidden-key-1234 'gs://b/k?a=b'")
    assert told == "s3://***@b/k.tif, https://h/x.tif?*** and *** 'gs://b/k?***'"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"feather": "ksize:5"},
            "mask.png (37.6 % of the canvas, 0.0113 mm²), feathered by OpenCV's 5 × 5 Gaussian kernel",
        ),
        (
            {"invert": True, "feather": 3, "feather_side": "inside"},
            "by the inverted mask mask.png (62.4 % of the canvas, 0.0187 mm²), feathered by a",
        ),
        ({"offset": [5, -7]}, "mm²), at offset (5, -7) (y, x)"),
        ({"grow": "6px"}, "mm²), grown by 6px"),
    ],
)
def test_methods_say_what_was_done(keys: dict[str, object], said: str, inputs: Path) -> None:
    top = {"image": str(inputs / "base.ome.tif"), "mask": str(inputs / "mask.png"), **keys}
    job = build({"layers": [{"image": str(inputs / "base.ome.tif")}, top]})
    assert said in methods_text(decide(job.composite), Made("x", "a test", {}))


@pytest.mark.parametrize(
    ("out", "flags", "said", "lossless"),
    [
        ("a.ome.zarr", (), "(zstd:1), without loss: stored pixels are the computed ones", True),
        ("a.ome.tif", (), "deflate, without loss", True),
        (
            "a.ome.tif",
            ("--compression", "jpeg:80"),
            "JPEG compression of quality 80 changes stored",
            False,
        ),
        ("a.jpg", (), "loses detail: JPEG compression changes stored", False),
        ("a.png", (), "a PNG image, without loss", True),
    ],
)
def test_the_methods_are_true_of_the_container(
    tmp_path: Path, command: Command, out: str, flags: tuple[str, ...], said: str, lossless: bool
) -> None:
    """Where the base alone has weight, its pixels are there again exactly where the text says so."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    tifffile.imwrite(tmp_path / "base.tif", pixels, photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "over.tif", 255 - pixels, photometric="rgb", tile=(64, 64))
    mask = np.zeros((160, 200), np.uint8)
    mask[40:80, 50:100] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    layers = ("base.tif", "over.tif", "--mask", "mask.png")
    ran = command("blend", *layers, *flags, "-o", out, "--report", "a.html")
    assert ran.code == 0, ran.err
    words = Text((tmp_path / "a.html").read_text("utf-8")).words
    assert said in words
    assert "by the mask mask.png (6.25 % of the canvas)" in words
    stored = tb.open(tmp_path / out).read(tb.Region(100, 0, 160, 200))
    assert (stored == pixels[100:]).all() == lossless


def test_methods_name_classes_and_outlines_and_the_area(inputs: Path) -> None:
    boxes = [("Tumor", 0, 0, 100, 50), ("Tumor", 200, 100, 300, 200), ("Stroma", 0, 100, 50, 200)]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, x0, y0, x1, y1 in boxes
    ]
    (inputs / "a.geojson").write_text(json.dumps(features))
    image, mask = str(inputs / "base.ome.tif"), {"path": str(inputs / "a.geojson"), "classes": ["Tumor"]}
    job = build({"layers": [{"image": image}, {"image": image, "mask": mask}]})
    said = methods_text(decide(job.composite), Made("x", "a test", {}))
    area = (100 * 50 + 100 * 100) * 0.25 / 1e6
    assert f"by the mask a.geojson (2 outlines of class Tumor; 12.5 % of the canvas, {area:.3g} mm²)" in said


@pytest.mark.parametrize("out", ["out.ome.zarr", "out.ome.tif", "out.tif"])
def test_the_yaml_of_a_report_makes_the_same_again(inputs: Path, command: Command, out: str) -> None:
    flags = (*FLAGS, "--mask-values", "0,200", "--grow", "3px", "--offset", "0,0", "--level", "1", "--background", "7")
    assert command("blend", *flags, "-o", out, "--report", "a.html").code == 0
    page = (inputs / "a.html").read_text("utf-8")
    (inputs / "job.yaml").write_text(html.unescape(page[page.rindex("<pre>") + 5 : page.rindex("</pre>")]))
    first = tb.open(inputs / out).read(tb.Region(0, 0, 150, 200))
    (inputs / out).rename(inputs / "moved")
    assert command("blend", "--job", "job.yaml").code == 0
    np.testing.assert_array_equal(tb.open(inputs / out).read(tb.Region(0, 0, 150, 200)), first)


def test_grown_and_registered_layers_have_views_and_seams(inputs: Path, command: Command) -> None:
    """`unmasked` must leave out all that belongs to the mask."""
    top = "{image: base.ome.tif, mask: mask.png, grow: 4px, affine: [[0.9, -0.1, 20], [0.1, 0.9, 10]], feather: 3px}"
    ran = command("seams", "base.ome.tif", "--layer", top, "--json")
    assert ran.code == 0, ran.err
    seam = json.loads(ran.out)["seams"][0]
    assert seam["after"]["mean"] < seam["before"]["mean"]
    assert command("preview", "base.ome.tif", "--layer", top, "--seams", "--weights", "p.png").code == 0


def test_the_result_has_a_scale_bar_where_its_format_says_no_pixel_size(tmp_path: Path, command: Command) -> None:
    pixels = np.full((300, 400), 200, np.uint8)
    metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "grey.ome.tif", pixels, metadata=metadata)
    assert command("blend", "grey.ome.tif", "-o", "small.png", "--report", "a.html").code == 0
    layer, result = Text((tmp_path / "a.html").read_text("utf-8")).addresses
    assert result == layer
