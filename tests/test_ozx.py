"""Results in one file: what zip readers and zarr readers make of them, and what is there when a run does not end."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tiledblend as tb
from tiledblend.cli.main import run_command
from tiledblend.containers.ozx import place as ozx_place
from tiledblend.containers.ozx.packing import Packer
from tiledblend.containers.verify import verify
from tiledblend.errors import RefusedError, StorageError, UsageError, VerificationError

RGB = np.random.default_rng(4).integers(0, 256, (300, 260, 3), dtype=np.uint8)
OUTPUT = tb.OutputSpec(chunk=32, shard=128)


def composite() -> tb.Composite:
    base = tb.from_array(RGB, axes="yxc", pixel_size_um=(0.5, 0.5))
    mask = tb.from_array(np.tri(300, 260, dtype=bool), axes="yx", mask=True)
    return tb.Composite(
        [tb.Layer(base), tb.Layer(tb.from_array(RGB[::-1], axes="yxc"), mask, feather=tb.Feather.px(3))]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same composite as a folder and as one file beside it."""
    folder = tmp_path_factory.mktemp("ozx")
    tb.write(composite(), folder / "out.ome.zarr", output=OUTPUT)
    tb.write(composite(), folder / "out.ozx", output=OUTPUT)
    return folder


def test_it_is_the_folder_in_the_order_of_rfc_9(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["out.ome.zarr", "out.ome.zarr.manifest", "out.ozx"]
    with zipfile.ZipFile(whole / "out.ozx") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        levels = sum(name.endswith("/zarr.json") for name in names)
        assert names[: levels + 1] == ["zarr.json", *(f"{level}/zarr.json" for level in range(levels))]
        assert not any(name.endswith("zarr.json") for name in names[levels + 1 :])
        comment = json.loads(archive.comment)
        assert comment["ome"] == {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}
        for member in archive.infolist():
            assert (member.compress_type, member.extract_version) == (zipfile.ZIP_STORED, 45)
            if member.filename != "zarr.json":
                assert archive.read(member) == (whole / "out.ome.zarr" / member.filename).read_bytes()
        root = json.loads(archive.read("zarr.json"))["attributes"]
    other = json.loads((whole / "out.ome.zarr/zarr.json").read_text())["attributes"]
    assert root["ome"] == other["ome"]
    with pytest.raises(KeyError):
        zipfile.ZipFile(whole / "out.ozx").getinfo("manifest")


def test_readers_of_zips_and_zarrs(whole: Path) -> None:
    expected = zarr.open_array(whole / "out.ome.zarr/0", mode="r")[:]
    store = zarr.storage.ZipStore(whole / "out.ozx", mode="r")
    np.testing.assert_array_equal(zarr.open_group(store, mode="r")["0"][:], expected)
    store.close()
    tensorstore = pytest.importorskip("tensorstore")
    zipped = {"driver": "zip", "base": {"driver": "file", "path": str(whole / "out.ozx")}, "path": "0/"}
    read = tensorstore.open({"driver": "zarr3", "kvstore": zipped}).result().read().result()
    np.testing.assert_array_equal(read, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", ["0.5", "0.6"])
def test_ngff_zarr_reads_it(tmp_path: Path, version: str) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    tb.write(composite(), tmp_path / "out.ozx", output=tb.OutputSpec(chunk=32, shard=128, ome_zarr=version))
    read = ngff_zarr.from_ngff_zarr(str(tmp_path / "out.ozx"), validate=True)
    expected = tb.open(tmp_path / "out.ozx").read(tb.geometry.Region.of_shape((300, 260)))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(read.images[0].data), 0, 2), expected)
    assert ngff_zarr.rfc9_zip.read_ozx_version(str(tmp_path / "out.ozx")) == version
    assert ngff_zarr.rfc9_zip.read_ozx_json_first(str(tmp_path / "out.ozx"))


class StoppedError(Exception):
    """Where a test stops a run."""


def stop_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, add_file = [0], Packer.add_file

    def stopping(self: Packer, *given: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise StoppedError
        add_file(self, *given)

    monkeypatch.setattr(Packer, "add_file", stopping)


def stop_before_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packer, "finish", _stopping)


def stop_before_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ozx_place, "publish", _stopping)


def stop_after_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ozx_place.OzxPlace, "remove", _stopping)


def _stopping(*_: Any, **__: Any) -> None:
    raise StoppedError


STOPS = [stop_in_a_part, stop_before_the_directory, stop_before_the_name, stop_after_the_name]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("older", [False, True])
def test_a_commit_that_was_cut_off_leaves_nothing_or_all(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[pytest.MonkeyPatch], None],
    older: bool,
) -> None:
    path, before = tmp_path / "out.ozx", None
    if older:
        tb.write(tb.Composite([tb.Layer(tb.from_array(RGB, axes="yxc"))]), path, output=OUTPUT)
        before = path.read_bytes()
    with monkeypatch.context() as patched:
        stop(patched)
        with pytest.raises(StoppedError):
            tb.write(composite(), path, output=OUTPUT, replace=older)
    named = stop is stop_after_the_name
    complete = (whole / "out.ozx").read_bytes()
    if named:
        assert path.read_bytes() == complete
    elif older:
        assert path.read_bytes() == before
    else:
        assert not path.exists()
    with pytest.raises(RefusedError):
        tb.write(composite(), path, output=OUTPUT)
    tb.write(composite(), path, output=OUTPUT, resume=True, replace=older)
    assert path.read_bytes() == complete
    assert [file.name for file in tmp_path.iterdir()] == ["out.ozx"]


def test_a_run_that_was_cut_off_is_cleaned_or_gone_on_with(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.ozx"
    with monkeypatch.context() as patched:
        stop_before_the_directory(patched)
        with pytest.raises(StoppedError):
            tb.write(composite(), path, output=OUTPUT)
    (tmp_path / "out.ozx.unfinished" / "note.txt").write_text("mine")
    assert told("clean", path)[0] == 0
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["note.txt", "out.ozx.unfinished"]
    os.remove(tmp_path / "out.ozx.unfinished" / "note.txt")
    os.rmdir(tmp_path / "out.ozx.unfinished")
    for part in range(1, 4):
        tb.write(composite(), path, output=OUTPUT, part=(part, 3))
        assert not path.exists()
    tb.write(composite(), path, output=OUTPUT, finish=True)
    assert path.read_bytes() == (whole / "out.ozx").read_bytes()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.ozx"
    path.write_bytes(b"PK\x03\x04 mine")
    for how in ({}, {"replace": True}, {"resume": True}):
        with pytest.raises(RefusedError):
            tb.write(composite(), path, output=OUTPUT, **how)
        assert path.read_bytes() == b"PK\x03\x04 mine"
    with pytest.raises(StorageError, match="does not exist; make it first"):
        tb.write(composite(), tmp_path / "no" / "out.ozx", output=OUTPUT)
    with pytest.raises(UsageError, match="is written to a path on this machine"):
        tb.write(composite(), "s3://bucket/out.ozx", output=OUTPUT)
    with pytest.raises(UsageError, match=r"an \.ozx holds OME-Zarr 0\.5 or later"):
        tb.write(composite(), tmp_path / "o.ozx", output=tb.OutputSpec(chunk=32, shard=128, ome_zarr="0.4"))


def test_a_file_that_comes_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, finish = tmp_path / "out.ozx", Packer.finish

    def meanwhile(self: Packer, comment: dict[str, Any]) -> None:
        finish(self, comment)
        path.write_text("mine")

    monkeypatch.setattr(Packer, "finish", meanwhile)
    with pytest.raises(RefusedError, match="exists"):
        tb.write(composite(), path, output=OUTPUT)
    assert path.read_text() == "mine"


def told(*arguments: Any) -> tuple[int, str]:
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text):
        code = run_command([str(argument) for argument in arguments])
    return code, text.getvalue()


@pytest.mark.parametrize("mode", ["--full", "--fast"])
def test_verify(tmp_path: Path, whole: Path, mode: str) -> None:
    data = (whole / "out.ozx").read_bytes()
    code, text = told("verify", whole / "out.ozx", mode)
    assert (code, "all present and right" in text) == (0, True)
    with zipfile.ZipFile(whole / "out.ozx") as archive:
        places = {info.filename: info.header_offset + 30 + len(info.filename) + 20 for info in archive.infolist()}
    path = tmp_path / "out.ozx"
    for name in ("zarr.json", "1/zarr.json", "0/c/0/0/0"):
        changed = bytearray(data)
        changed[places[name] + 40] ^= 1
        path.write_bytes(changed)
        code, text = told("verify", path, mode)
        is_looked_at = mode == "--full" or name.endswith("zarr.json")
        assert code == (7 if is_looked_at else 0), text
        assert text.count("\n") == 1
    path.write_bytes(data[:-100])
    assert told("verify", path, mode)[0] == 7
    with pytest.raises(VerificationError):
        verify(str(path))


def test_verify_names_what_an_archive_lacks_and_has_too_much(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "out.ozx"
    with zipfile.ZipFile(whole / "out.ozx") as source, zipfile.ZipFile(path, "w") as made:
        for info in source.infolist():
            if info.filename != "0/c/0/1/1":
                made.writestr(info.filename, source.read(info))
        made.writestr("notes.txt", "mine")
    found = verify(str(path))
    assert (found.missing, found.extra, found.damaged) == (("0/c/0/1/1",), ("notes.txt",), ())


def test_the_command_line_makes_shows_and_checks_it(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "b.zarr", data=RGB, chunks=(64, 64, 3), dimension_names=["y", "x", "c"])
    out = tmp_path / "out.ozx"
    assert "room     up to" in told("plan", tmp_path / "b.zarr", "-o", out)[1]
    made = ("blend", tmp_path / "b.zarr", "-o", out, "--ome-zarr", "0.6", "--chunk", 64, "--shard", 128)
    assert told(*made)[0] == 0
    assert told(*made)[0] == 3
    assert "complete already" in told(*made, "--resume")[1]
    assert "OME-Zarr 0.6 (zarr v3) sharded" in told("info", out)[1]
    assert told("verify", out, "--against-inputs", "all")[0] == 0
    assert told("preview", out, tmp_path / "o.png")[0] == 0
    assert told("blend", out, "-o", tmp_path / "again.ome.zarr", "--chunk", 64, "--shard", 128)[0] == 0
    again = zarr.open_array(tmp_path / "again.ome.zarr/0", mode="r")[:]
    np.testing.assert_array_equal(np.moveaxis(again, 0, 2), RGB)
