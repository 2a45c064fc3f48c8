"""A result over HTTP: ranges, CORS, nothing but the result, and read by zarr and tifffile as from a disk."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import ROOT, Command

import tiledblend as tb


@pytest.fixture
def result(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = tb.from_array(pixels, axes="yxc")
    tb.write(tb.Composite([tb.Layer(image)]), tmp_path / "out put.ome.zarr", output=tb.OutputSpec(chunk=64, shard=128))
    (tmp_path / "beside.txt").write_text("private")
    return tmp_path / "out put.ome.zarr"


@contextmanager
def served(path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tiledblend", "serve", str(path), "--port", "0", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "tiledblend: ended"


def ask(url: str, path: str = "", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request(method, parts.path + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_ranges_and_cors_and_nothing_else(result: Path) -> None:
    (result / ".hidden").write_text("secret")
    (result / "0" / ".git").mkdir()
    (result / "0" / ".git" / "config").write_text("secret")
    (result / "way").symlink_to(result.parent / "beside.txt")
    whole = (result / "0" / "c" / "0" / "0" / "0").read_bytes()
    with served(result) as url:
        assert url.startswith("http://127.0.0.1:")
        status, headers, data = ask(url, "/zarr.json", Origin="https://viewer.example")
        assert (status, data) == (200, (result / "zarr.json").read_bytes())
        assert headers["access-control-allow-origin"] == "*"
        assert headers["content-type"] == "application/json"
        status, headers, data = ask(url, "/0/c/0/0/0", Range="bytes=10-29")
        assert (status, data, headers["content-range"]) == (206, whole[10:30], f"bytes 10-29/{len(whole)}")
        assert ask(url, "/0/c/0/0/0", Range="bytes=-20")[2] == whole[-20:]
        status, headers, data = ask(url, "/0/c/0/0/0", method="HEAD")
        assert (status, headers["content-length"], data) == (200, str(len(whole)), b"")
        status, headers, _ = ask(url, "/zarr.json", method="OPTIONS", Origin="https://viewer.example")
        assert (status, headers["access-control-allow-private-network"]) == (204, "true")
        refused = [
            "",
            "/",
            "/0",
            "/.hidden",
            "/0/.git/config",
            "/way",
            "/../beside.txt",
            "/%2e%2e/beside.txt",
            "/0/../zarr.json",
        ]
        refused += ["/0/c/9/9/9", "/0//zarr.json", "/zarr.json%00"]
        for path in refused:
            status, _, data = ask(url, path)
            assert status in (403, 404), path
            assert b"private" not in data
            assert b"secret" not in data
        assert ask(url, "/zarr.json", Host="evil.example")[0] == 403
        assert ask(url, "/zarr.json", method="PUT")[0] == 405
        base = url[: url.index("/", 8)]
        assert ask(base, "/out%20put.ome.zarr/zarr.json")[0] == 404  # not without the part that nobody can guess


def test_zarr_and_our_own_reader_open_what_is_served(result: Path) -> None:
    expected = tb.open(result).read(tb.Region(0, 0, 300, 400))
    with served(result) as url:
        source: Any = tb.open(url)
        np.testing.assert_array_equal(source.read(tb.Region(0, 0, 300, 400)), expected)


def test_a_file_is_served_by_its_name(result: Path, command: Command) -> None:
    path = result.parent / "a.ome.tif"
    tb.export_ometiff(str(result), path)
    with served(path) as url:
        assert url.endswith("/a.ome.tif")
        status, headers, data = ask(url, Range="bytes=0-3")
        assert (status, data, headers["accept-ranges"]) == (206, path.read_bytes()[:4], "bytes")
        assert ask(url, "/../beside.txt")[0] in (403, 404)
        assert tb.open(url).shape == (300, 400)
    assert command("serve", "none.ome.zarr").code == 4
    assert command("serve", "s3://b/out.ome.zarr").code == 2
