"""The page: what it answers, to whom, and what a person does with it in a real browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import ROOT, Command

from tiledblend.demo.tissue import Slides
from tiledblend.look.view import most_connections, parse_channels

FILES = Path(__file__).parents[1] / "tiledblend" / "look" / "viewer"


@contextmanager
def viewing(folder: Path, *arguments: object) -> Iterator[str]:
    """The address of a running `tiledblend view`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tiledblend", "view", *map(str, arguments), "--port", "0", "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def page(slides: Slides, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A planned composite of the demo slides."""
    with viewing(
        tmp_path_factory.mktemp("view"), slides.base, slides.overlay, "--mask", slides.mask, "--feather", "8px"
    ) as url:
        yield url


def answer_to(url: str, *lines: str) -> bytes:
    """The first line that a request gets, of which every line is given."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return link.makefile("rb").readline().strip()


def test_hosts_are_checked_in_one_place(page: str) -> None:
    local, refused = f"Host: {page[7:-1]}", b"HTTP/1.1 403 this page answers to localhost and 127.0.0.1 only"
    for line in ("GET / HTTP/1.1", f"GET {page} HTTP/1.1", "GET http://localhost:1/scene.json HTTP/1.1"):
        assert answer_to(page, line, local) == b"HTTP/1.1 200 OK"
    assert answer_to(page, f"GET {page}nothing HTTP/1.1", local).startswith(b"HTTP/1.1 404")
    for lines in (
        ("GET / HTTP/1.1", "Host: evil.example"),
        ("GET /nothing HTTP/1.1", "Host: evil.example"),
        ("GET http://evil.example/ HTTP/1.1", local),
        (f"GET {page} HTTP/1.1", "Host: evil.example"),
        ("GET evil.example HTTP/1.1", local),
        ("GET / HTTP/1.0",),
    ):
        assert answer_to(page, *lines) == refused, lines


def test_connections_beyond_what_it_can_hold_are_refused_at_once(page: str) -> None:
    host, port = page.removeprefix("http://").rstrip("/").split(":")
    most = most_connections()
    held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(most)]
    try:
        deadline = time.monotonic() + 20
        while not (said := answer_to(page, "GET / HTTP/1.1", f"Host: {host}")).startswith(b"HTTP/1.1 503"):
            assert time.monotonic() < deadline, said
    finally:
        for link in held:
            link.close()
    deadline = time.monotonic() + 20
    while get(page)[0] != 200:
        assert time.monotonic() < deadline


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_page_and_its_files(page: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", page)
    for name, kind in (("", "text/html"), ("viewer.js", "text/javascript"), ("viewer.css", "text/css")):
        code, headers, body = get(page + name)
        assert (code, headers["Content-Type"].split(";")[0]) == (200, kind)
        assert body == (FILES / (name or "index.html")).read_bytes()
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert get(page + "openseadragon.min.js")[0] == 200
    assert (
        "BSD" in (FILES / "openseadragon.LICENSE.txt").read_text()
        or "Redistribution" in (FILES / "openseadragon.LICENSE.txt").read_text()
    )
    for absent in ("nothing", "../view.py", "%2e%2e/view.py", "index.html", "tile/", "openseadragon.LICENSE.txt"):
        assert get(page + absent)[0] == 404


def test_no_address_of_our_page_leaves_it() -> None:
    """Relative addresses only: it works below any prefix, through a tunnel, and offline."""
    for name in ("index.html", "viewer.css", "viewer.js"):
        text = (FILES / name).read_text("utf-8")
        assert not re.search(r"https?:|[\"'(]//|(?:src|href|fetch)[=(]\s*[\"'`]/|url\(|@import", text), name


def test_scene_and_tiles(page: str, slides: Slides) -> None:
    code, headers, body = get(page + "scene.json")
    scene = json.loads(body)
    assert (code, headers["Cache-Control"]) == (200, "no-store")
    assert scene["title"] == f"planned: {Path(slides.overlay).name} over {Path(slides.base).name}"
    assert (scene["shape"], scene["levels"], scene["pixel_size_um"]) == ([1000, 1000], 2, [0.5, 0.5])
    assert [view["kind"] for view in scene["views"]] == ["result", "image", "image", "weight"]
    assert scene["channels"] == []
    code, headers, body = get(page + "tile/image-0/0/1/0.png")
    assert (code, headers["Content-Type"]) == (200, "image/png")
    drawn = cv2.cvtColor(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(drawn, tifffile.imread(slides.base)[512:, :512])
    for wrong in ("tile/none/0/0/0.png", "tile/result/7/0/0.png", "tile/result/0/9/0.png", "tile/result/0/0/0.png?c=1"):
        code, _, body = get(page + wrong)
        assert code == 404
        assert body.count(b"\n") == 1
    assert get(page + "tile/result/0/0/0.png?o=1000")[0] == 404
    assert get(page + "tile/result/0/0/0.png?o=x")[0] == 404
    assert get(page + "tile/result/0/0/0.png?o=%C2%B2")[0] == 404


def test_who_may_ask(page: str) -> None:
    port = int(page.rstrip("/").rpartition(":")[2])
    for host, code in (
        (f"127.0.0.1:{port}", 200),
        ("localhost:9999", 200),  # the other end of a tunnel
        ("[::1]:80", 200),
        (f"evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ):
        assert get(page + "scene.json", Host=host)[0] == code, host
    assert get(page + "scene.json", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0] == 403
    assert get(page + "scene.json", **{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"})[0] == 403
    assert get(page, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, "/scene.json")
        assert connection.getresponse().status == 405, method
        connection.close()


def test_it_listens_on_this_machine_only(page: str) -> None:
    """127.0.0.2 is another address of this machine: a server on all of them would answer."""
    port = int(page.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_taken_port_is_named(page: str, command: Command, slides: Slides) -> None:
    port = page.rstrip("/").rpartition(":")[2]
    ran = command("view", slides.base, "--port", port)
    assert ran.code == 6
    assert f"port {port}" in ran.error


def test_channels_of_an_address() -> None:
    assert parse_channels("") == []
    assert [c.index for c in parse_channels("3,00FF00,1.5,9;0,FFFFFF,0,1e3")] == [3, 0]


def test_a_damaged_tile_is_told_in_one_line(tmp_path: Path, slides: Slides) -> None:
    damaged = tmp_path / "damaged.tif"
    with tifffile.TiffFile(slides.base) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(Path(slides.base).read_bytes())
    data[offset : offset + count] = bytes(count)
    damaged.write_bytes(data)
    with viewing(tmp_path, damaged) as url:
        code, _, body = get(url + "tile/result/0/0/0.png")
        assert code == 500
        assert b"damaged.tif: level 0, region" in body
        assert body.count(b"\n") == 1
        assert get(url + "tile/result/0/1/1.png")[0] == 200


def test_a_result_without_its_inputs_says_so(tmp_path: Path, command: Command) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (90, 80, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "m.png"), np.tri(90, 80, dtype=np.uint8) * 255)
    assert command("blend", "a.png", "b.png", "--mask", "m.png", "-o", "o.ome.zarr", "--chunk", 64).code == 0
    with viewing(tmp_path, "o.ome.zarr") as url:
        scene = json.loads(get(url + "scene.json")[2])
        assert (scene["title"], scene["note"], len(scene["views"])) == ("o.ome.zarr", None, 4)
    (tmp_path / "b.png").unlink()
    with viewing(tmp_path, "o.ome.zarr") as url:
        scene = json.loads(get(url + "scene.json")[2])
        assert [view["id"] for view in scene["views"]] == ["result"]
        assert "only the result can be shown" in scene["note"]
        assert get(url + "tile/result/0/0/0.png")[0] == 200


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def fluorescence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored 16-bit seven-channel result: base 1000 a channel, overlay 3000, the overlay right of x = 400."""
    folder = tmp_path_factory.mktemp("fluorescence")
    gradient = np.linspace(0, 200, 800 * 600).reshape(600, 800)
    for name, level in (("base", 1000), ("overlay", 3000)):
        pixels = np.stack([level + gradient + 10 * c for c in range(7)]).astype(np.uint16)
        metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": list("abcdefg")}}
        tifffile.imwrite(folder / f"{name}.ome.tif", pixels, tile=(256, 256), metadata=metadata)
    tifffile.imwrite(folder / "mask.tif", np.tile(np.arange(800) >= 400, (600, 1)).astype(np.uint8) * 255)
    flags = ("--mask", "mask.tif", "--chunk", "128", "--shard", "256", "-o", "out.ome.zarr")
    subprocess.run(
        [sys.executable, "-m", "tiledblend", "blend", "base.ome.tif", "overlay.ome.tif", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return folder


class Visit:
    """A page in a browser, everything that it asks for and says."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = (1280, 800)) -> None:
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(url)
        self.settle()

    def settle(self) -> None:
        """Wait until every picture that is shown has all its tiles, and nothing moves."""
        ready = """(() => { const v = globalThis.tiledblend?.viewer; if (!v || !v.world.getItemCount()) return false;
            const items = [...Array(v.world.getItemCount()).keys()].map((i) => v.world.getItemAt(i));
            const seen = items.filter((item) => item.getOpacity() > 0);
            return seen.length > 0 && seen.every((item) => item.getFullyLoaded()) && !v.isAnimating?.(); })()"""
        calm = 0
        for _ in range(300):
            self.page.wait_for_timeout(50)
            calm = calm + 1 if self.page.evaluate(ready) else 0
            if calm >= 8:
                return
        raise AssertionError(f"the page never came to rest; it said {self.said}")

    def picture(self) -> np.ndarray:
        data = np.frombuffer(self.page.screenshot(), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(int)

    def state(self, expression: str) -> Any:
        return self.page.evaluate(f"tiledblend.{expression}")


def test_a_person_looks_at_fluorescence(browser: Any, fluorescence: Path) -> None:
    with viewing(fluorescence, "out.ome.zarr") as url:
        visit = Visit(browser, url)
        page = visit.page
        assert page.title() == "out.ome.zarr"
        assert page.locator(".channel").count() == 7
        assert page.locator("#scale-label").inner_text().endswith("µm")

        # contrast: one channel alone, in red, from 0 to 4000
        page.click("#no-channels")
        page.locator(".channel input[type=checkbox]").nth(2).check()
        page.locator(".channel input[type=color]").nth(2).evaluate(
            "e => { e.value = '#ff0000'; e.dispatchEvent(new Event('input', { bubbles: true })); }"
        )
        page.locator(".channel input[type=number].low").nth(2).fill("0")
        page.locator(".channel input[type=number].high").nth(2).fill("4000")
        page.keyboard.press("Enter")
        page.wait_for_timeout(400)
        visit.settle()
        shot = visit.picture()
        middle = shot.shape[1] // 2
        left, right = shot[400, middle - 100], shot[400, middle + 100]
        assert left[1] == left[2] == right[1] == right[2] == 0
        assert abs(left[0] - 255 * 1120 / 4000) < 4
        assert abs(right[0] - 255 * 3120 / 4000) < 4

        # swipe: base and overlay side by side, the line dragged
        others = []
        for key in ("c", "c", "2", "c", "4"):
            page.keyboard.press(key)
            others.append(page.locator("#other").input_value())
        assert others == ["image-0", "image-1", "image-1", "weight-1", "image-0"]  # never the one that is shown
        page.keyboard.press("2")
        page.select_option("#other", "image-1")
        visit.settle()
        box = page.locator("#divider").bounding_box()
        page.mouse.move(box["x"] + 14, 300)
        page.mouse.down()
        page.mouse.move(820, 300, steps=4)
        page.mouse.up()
        visit.settle()
        shot = visit.picture()
        assert abs(shot[500, 800, 0] - 255 * 1120 / 4000) < 6  # base up to the line, though the mask begins at 640
        assert abs(shot[500, 840, 0] - 255 * 3120 / 4000) < 6
        page.keyboard.press("s")
        visit.settle()
        assert abs(visit.picture()[500, 700, 0] - 255 * 2120 / 4000) < 6  # half of each

        # zoom by wheel, pan by keys, to full resolution and back
        page.select_option("#other", "")
        before = visit.state("viewer.viewport.getZoom()")
        page.mouse.move(640, 400)
        page.mouse.wheel(0, -400)
        visit.settle()
        assert visit.state("viewer.viewport.getZoom()") > before
        page.keyboard.press("f")
        visit.settle()
        assert page.locator("#where").inner_text().endswith("100 %")
        x = visit.state("viewer.viewport.getCenter().x")
        page.keyboard.press("ArrowRight")
        visit.settle()
        assert visit.state("viewer.viewport.getCenter().x") > x
        assert any("/tile/image-0/0/" in address for address in visit.asked)
        page.keyboard.press("0")
        page.keyboard.press("e")
        visit.settle()
        cyan = (np.abs(visit.picture() - [0, 229, 255]) < 60).all(2)
        assert cyan[:, 630:650].any(1).sum() > 400

        page.set_viewport_size({"width": 390, "height": 800})
        visit.settle()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert {address.split("/")[2] for address in visit.asked} == {url.split("/")[2]}
        assert [line for line in visit.said if not line.startswith("Ignoring tile")] == []
        page.close()


def test_a_person_looks_at_a_planned_composite(browser: Any, page: str) -> None:
    visit = Visit(browser, page, (390, 800))
    assert visit.page.locator("#controls").is_hidden()  # a phone shows the picture first
    visit.page.keyboard.press("m")
    assert visit.page.locator("[name=view]").count() == 4
    visit.page.keyboard.press("m")
    visit.page.keyboard.press("4")
    visit.settle()
    middle = visit.picture()[300:500, 100:290]
    assert middle.min() == 0
    assert middle.max() == 255
    assert (middle[..., 0] == middle[..., 2]).all()
    visit.page.keyboard.press("?")
    assert visit.page.locator("#help").is_visible()
    assert {address.split("/")[2] for address in visit.asked} == {page.split("/")[2]}
    assert visit.said == []
    visit.page.close()


def test_full_resolution_and_beyond_show_the_stored_pixels(browser: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (1301, 1225, 3), np.uint8)
    tifffile.imwrite(tmp_path / "noise.tif", pixels, tile=(256, 256), photometric="rgb")
    with viewing(tmp_path, "noise.tif") as url:
        visit = Visit(browser, url)  # its middle lies between pixels of the image

        def is_as_stored() -> bool:
            """On every pixel of the screen's middle that lies within one pixel of the image."""
            drawn = base64.b64decode(visit.state("viewer.drawer.canvas.toDataURL()").partition(",")[2])
            shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            corner = "viewer.world.getItemAt(0).viewerElementToImageCoordinates(new OpenSeadragon.Point({0}, {0}))"
            start, end = visit.state(corner.format(0)), visit.state(corner.format(100))
            places = []
            for axis, screen in (("y", np.arange(100, 700)), ("x", np.arange(300, 700))):
                at = start[axis] + (screen + 0.5) * (end[axis] - start[axis]) / 100
                inner = np.abs(at % 1 - 0.5) < 0.3
                places.append((screen[inner], np.floor(at[inner]).astype(int)))
            (y, row), (x, column) = places
            assert min(len(y), len(x)) > 100
            return np.array_equal(shown[np.ix_(y, x)], pixels[np.ix_(row, column)])

        visit.page.keyboard.press("f")
        visit.settle()
        assert is_as_stored()
        visit.page.mouse.move(700, 400)
        visit.page.mouse.down()
        visit.page.mouse.move(671, 333, steps=7)
        visit.page.mouse.up()  # it glides on
        visit.settle()
        assert is_as_stored()
        for zoom in (2, 4):  # smoothed, then as squares, of several tiles
            visit.page.evaluate(f"tiledblend.viewer.viewport.zoomTo({zoom} * 1225 / 1280)")
            visit.settle()
        assert is_as_stored()
        visit.page.close()


def test_another_picture_while_colours_change(browser: Any, fluorescence: Path) -> None:
    """On a slow line: what has old colours goes, whatever is looked at before the new ones are there."""
    with viewing(fluorescence, "out.ome.zarr") as url:
        visit = Visit(browser, url)
        page = visit.page
        line = page.context.new_cdp_session(page)
        line.send("Network.enable")
        slow = {"offline": False, "latency": 700, "downloadThroughput": -1, "uploadThroughput": -1}
        line.send("Network.emulateNetworkConditions", slow)
        field = page.locator(".channel input[type=number].high").nth(0)
        for value in (2000, 3000, 4000):  # each before the one before is there
            field.fill(str(value))
            page.wait_for_timeout(250)
        field.press("Enter")
        page.keyboard.press("3")
        visit.settle()
        world = (
            "[...Array(tiledblend.viewer.world.getItemCount()).keys()].map((i) => tiledblend.viewer.world.getItemAt(i))"
        )
        seen = f"{world}.filter((item) => item.getOpacity())"
        assert page.evaluate(f"{seen}.map((item) => item.viewId)") == ["image-1"]
        page.keyboard.press("1")
        visit.settle()
        shown = page.evaluate(f"{seen}.map((item) => item.source.getTileUrl(0, 0, 0))")
        assert len(shown) == 1
        assert re.search(r"c=0%2C[0-9A-F]{6}%2C[0-9.]+%2C4000%3B", shown[0])
        assert [line for line in visit.said if not line.startswith("Ignoring tile")] == []
        page.close()
