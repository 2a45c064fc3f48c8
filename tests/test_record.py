"""The report of a run: one file that shows everything, calls nowhere, and keeps secrets."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Command

from tiledblend.describe.job import build
from tiledblend.errors import StorageError
from tiledblend.look.record import Made, check_report_path, methods_text, without_secrets, write_report


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
        "400 × 300 pixels at 0.5 µm per pixel",
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
        ({"feather": "ksize:5"}, "by the mask mask.png, feathered by OpenCV's 5 × 5 Gaussian kernel"),
        ({"invert": True, "feather": 3, "feather_side": "inside"}, "by the inverted mask mask.png, feathered by a"),
        ({"offset": [5, -7]}, "by the mask mask.png, at offset (5, -7) (y, x)"),
        ({"grow": "6px"}, "by the mask mask.png, grown by 6px"),
    ],
)
def test_methods_say_what_was_done(keys: dict[str, object], said: str, inputs: Path) -> None:
    top = {"image": str(inputs / "base.ome.tif"), "mask": str(inputs / "mask.png"), **keys}
    job = build({"layers": [{"image": str(inputs / "base.ome.tif")}, top]})
    assert said in methods_text(job.composite, Made("x", "a test", {}))


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
