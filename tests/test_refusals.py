"""Values, settings and places that a library would choke on: one line of their class, and nothing touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command
from PIL import Image

from tiledblend.bytes.buckets import client_of, forget_clients, path_of_file_url
from tiledblend.errors import UsageError


@pytest.fixture
def images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / f"{name}.png")


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("pixels", ["1e308", "1e-320", "1e-9", "1e12", "1e12,1e-9", "1e-9,1e12"])
@pytest.mark.parametrize(
    "flags",
    [
        ("--fit", "physical"),
        ("--fit", "physical", "--offset", "1e12um,1e12um"),
        ("--mask", "a.png", "--feather", "1um"),
        ("--mask", "a.png", "--grow", "1e12um"),
        ("--offset", "1um,1e12um"),
        ("--mpp", "1e12"),
        ("--mpp", "1e-9"),
    ],
    ids=" ".join,
)
def test_pixel_sizes_that_overflow(command: Command, flags: tuple[str, ...], pixels: str) -> None:
    ran = command("plan", "a.png", "b.png", "--pixel-size-um", pixels, *flags)
    assert ran.code in (0, 2, 4), ran.err
    assert "unexpected" not in ran.err


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    "numbers", ["1e308,0,0,0,1e308,0", "1e200,1e200,0,1e200,1e201,0", "1,0,1e308,0,1,0", "1e-200,0,0,0,1,0"]
)
@pytest.mark.parametrize("maps", ["layer_to_canvas", "canvas_to_layer"])
@pytest.mark.parametrize("centre", [0, 0.5])
def test_matrices_that_overflow(command: Command, numbers: str, maps: str, centre: float) -> None:
    first, second = numbers.split(",")[:3], numbers.split(",")[3:]
    matrix = f"{{matrix: [[{', '.join(first)}], [{', '.join(second)}]], maps: {maps}, centre: {centre}}}"
    ran = command("plan", "a.png", "b.png", "--affine", matrix)
    assert ran.code in (0, 2, 4), ran.err
    assert "unexpected" not in ran.err


def test_an_image_that_says_an_impossible_pixel_size_says_none(command: Command, tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), resolution=(1e-9, 1e-9), resolutionunit=3)
    ran = command("plan", "a.tif", "-o", "out.ome.zarr")
    assert ran.code == 0, ran.err
    assert "needs a pixel size" in command("plan", "a.tif", "a.tif", "--mask", "a.tif", "--feather", "1um").error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives up root's rights")
def test_a_demo_where_nothing_may_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o555)
    lines = (
        "import os, sys; sys.path.insert(0, sys.argv[1] + '/tests')",
        "from faults.zygote import bow_to_permissions as bow",
        "from tiledblend.cli.main import run_command as run",
        "bow(); os.chdir(sys.argv[2])",
        "print([run(['demo', '--size', '512']), run(['demo', '--size', '512', '--out', 'new'])])",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(lines), str(ROOT), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[5, 5]", done.stderr
    for line in done.stderr.splitlines():
        assert "tiledblend: error: cannot make" in line
        assert "unexpected" not in line


@pytest.mark.parametrize(
    ("root", "name", "value"),
    [
        ("s3://b", "AWS_SECRET_ACCESS_KEY", "abcdef\n"),
        ("s3://b", "AWS_ACCESS_KEY_ID", "\x01abcdef"),
        ("s3://b", "AWS_ACCESS_KEY_ID", "schlüssel"),
        ("s3://b", "AWS_SESSION_TOKEN", "a\rb"),
        ("s3://b", "AWS_REGION", "eu\n"),
        ("s3://b", "AWS_ENDPOINT_URL", "http://127.0.0.1:9\n"),
        ("az://b", "AZURE_STORAGE_ACCOUNT_NAME", "acc\n"),
        ("az://b", "AZURE_STORAGE_SAS_TOKEN", "sv=\n"),
        ("gs://b", "GOOGLE_BEARER_TOKEN", "token\n"),
        ("gs://b", "GOOGLE_BASE_URL", "http://127.0.0.1:9\x7f"),
    ],
)
def test_settings_that_no_request_may_have(monkeypatch: pytest.MonkeyPatch, root: str, name: str, value: str) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv(name, value)
    forget_clients()
    with pytest.raises(UsageError, match=f"^{root}: {name} in the environment holds a line break") as caught:
        client_of(root)
    assert value.strip() not in str(caught.value)


@pytest.mark.usefixtures("images")
def test_small_outputs_lie_in_no_input(command: Command, tmp_path: Path) -> None:
    flags = ("--chunk", 64, "--shard", 64)
    for version in ("0.4", "0.5"):
        zarr = f"in{version}.ome.zarr"
        assert command("blend", "a.png", "-o", zarr, "--ome-zarr", version, *flags).code == 0
        before = sorted((tmp_path / zarr).rglob("*"))
        for line in (
            ("blend", zarr, "-o", f"{zarr}/x.png"),
            ("blend", "a.png", "-o", f"{zarr}/0/x.tif"),
            ("blend", "a.png", "-o", "new.ome.zarr", "--report", f"{zarr}/r.html", *flags),
            ("preview", zarr, f"{zarr}/p.png"),
            ("outline", zarr, "-o", f"{zarr}/o.geojson"),
        ):
            ran = command(*line)
            assert ran.code == 3, (line, ran.err)
            assert f"lies inside the zarr {tmp_path / zarr}" in ran.error
        assert sorted((tmp_path / zarr).rglob("*")) == before
        assert not (tmp_path / "new.ome.zarr").exists()


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("document", [None, b"{}", b'{"name": "mine"}', b"\x00"])
def test_clean_keeps_what_is_not_a_run(command: Command, tmp_path: Path, document: bytes | None) -> None:
    from tiledblend.containers.ledger import SUFFIX

    for name in ("mine.zarr", "mine.ome.tif"):
        ledger = tmp_path / f"{name}{SUFFIX}"
        ledger.mkdir()
        (ledger / "notes.txt").write_text("keep")
        if document is not None:
            (ledger / "job.json").write_bytes(document)
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_text("keep")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert command("clean", name).code in (3, 5), name
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("images")
def test_a_file_url_of_another_host(command: Command, tmp_path: Path) -> None:
    assert path_of_file_url("file://LOCALHOST/a") == "/a"
    there = f"file://elsewhere{tmp_path}"
    assert command("info", f"file://localhost{tmp_path}/a.png").code == 0
    for line in (
        ("info", f"{there}/a.png"),
        ("plan", f"{there}/a.png"),
        ("plan", "a.png", "b.png", "--mask", f"{there}/a.png"),
        ("blend", "a.png", "-o", f"{there}/o.ome.zarr"),
        ("blend", "a.png", "-o", f"{there}/o.png"),
        ("preview", "a.png", f"{there}/o.png"),
        ("clean", f"{there}/o.ome.zarr"),
        ("plan", "--job", f"{there}/job.yaml"),
    ):
        ran = command(*line)
        assert ran.code in (2, 4), (line, ran.err)
        assert "names a file of the host elsewhere" in ran.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
