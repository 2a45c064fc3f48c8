"""Every kind of damage is found and named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_pixels import JOB, make_layout, write_result

from tiledblend.containers.output import begin
from tiledblend.containers.verify import verify
from tiledblend.errors import BadInputError, UsageError, VerificationError

KINDS: list[dict[str, Any]] = [
    {},
    {"layout": "interleaved"},
    {"is_rgb": False, "codec": "gzip:1"},
    {"codec": "blosc-zstd"},
    {"codec": "none"},
    {"ome_zarr": "0.4"},
    {"ome_zarr": "0.4", "is_rgb": False, "codec": "none"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_good_results_pass(tmp_path: Path, kind: dict[str, Any], with_manifest: bool) -> None:
    layout = make_layout((70, 50), **kind)
    write_result(tmp_path / "o", layout)
    if not with_manifest:
        (tmp_path / "o.manifest").unlink()
    for mode in ("fast", "full"):
        report = verify(str(tmp_path / "o"), mode)  # type: ignore[arg-type]
        assert report.ok, report.summary()
        assert report.has_manifest is with_manifest
        assert report.objects == layout.object_count() + layout.grid.levels
        assert report.decoded == (0 if mode == "fast" and with_manifest else report.objects)
        report.require_ok()
        assert report.as_dict()["ok"] is True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipping" / "o"
    if not path.exists():
        write_result(path, make_layout((70, 50)))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    good = file.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    manifest = path.with_name("o.manifest")
    listed = manifest.read_bytes()
    key = file.relative_to(path).as_posix()
    try:
        file.write_bytes(flipped)
        report = verify(str(path), "full")
        assert not report.ok
        assert key == "zarr.json" or key in report.damaged
        if "/c/" in key:
            # The checksums inside the objects alone find it too.
            manifest.unlink()
            assert verify(str(path)).damaged == (key,)
    finally:
        file.write_bytes(good)
        manifest.write_bytes(listed)


def test_missing_torn_and_extra_are_named(tmp_path: Path) -> None:
    path = tmp_path / "o"
    write_result(path, make_layout((100, 70)))
    (path / "0/c/0/1/1").unlink()
    (path / "1/c/0/0/0").write_bytes((path / "1/c/0/0/0").read_bytes()[:-1])
    (path / "0/c/0/9").mkdir()
    (path / "0/c/0/9/9").write_bytes(b"x")
    report = verify(str(path))
    assert (report.missing, report.torn, report.extra) == (("0/c/0/1/1",), ("1/c/0/0/0",), ("0/c/0/9/9",))
    with pytest.raises(VerificationError, match=r"1 missing \(first: 0/c/0/1/1\); 1 torn .*; 1 not of this"):
        report.require_ok()


def test_every_single_object_deleted_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "o"
    write_result(path, make_layout((60, 40)))
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        good, key = file.read_bytes(), file.relative_to(path).as_posix()
        file.unlink()
        report = verify(str(path))
        assert key in report.missing or (key == "zarr.json" and report.problems), key
        file.write_bytes(good[: len(good) // 2])
        report = verify(str(path))
        assert key in report.torn or (key == "zarr.json" and report.problems), key
        file.write_bytes(good)
    assert verify(str(path), "full").ok


def test_objects_in_each_others_place(tmp_path: Path) -> None:
    path = tmp_path / "o"
    write_result(path, make_layout((64, 64), codec="none"))
    a, b = path / "0/c/0/0/0", path / "0/c/0/1/1"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    assert len(a_bytes) == len(b_bytes)
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    assert verify(str(path)).ok
    assert verify(str(path), "full").damaged == ("0/c/0/0/0", "0/c/0/1/1")


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_damaged_manifest_is_told_and_not_relied_on(tmp_path: Path, version: str) -> None:
    write_result(tmp_path / "o", make_layout((60, 40), ome_zarr=version))
    manifest = tmp_path / "o.manifest"
    manifest.write_bytes(manifest.read_bytes().replace(b"a", b"b", 1))
    report = verify(str(tmp_path / "o"))
    assert report.problems == ("o.manifest is damaged or belongs to another run",)
    assert report.decoded == report.objects


def test_no_result(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/zarr.json").write_bytes(b"[1]")
    for name in ("foreign", "broken", "absent"):
        with pytest.raises(BadInputError, match="no result of tiledblend"):
            verify(str(tmp_path / name))
    with pytest.raises(UsageError, match="use fast or full"):
        verify(str(tmp_path), "slow")  # type: ignore[arg-type]


def test_unfinished_run(tmp_path: Path) -> None:
    layout = make_layout((60, 40))
    output = begin(str(tmp_path / "o"), layout, job=JOB)
    output.close()
    with pytest.raises(VerificationError, match="not finished; run it again with --resume"):
        verify(str(tmp_path / "o"))


def test_manifest_that_outlived_its_result_protects_nothing_foreign(tmp_path: Path) -> None:
    write_result(tmp_path / "o", make_layout((60, 40)))
    os.rename(tmp_path / "o", tmp_path / "away")
    (tmp_path / "o/0").mkdir(parents=True)
    (tmp_path / "o/0/zarr.json").write_text("{}")
    with pytest.raises(BadInputError, match="no result of tiledblend"):
        verify(str(tmp_path / "o"))


@pytest.mark.parametrize("kind", [{}, {"ome_zarr": "0.4"}])
def test_manifests_of_before_have_sha256(tmp_path: Path, kind: dict[str, Any]) -> None:
    """As earlier releases wrote them: verified as they are, and a repair makes a new one."""
    layout, out = make_layout((70, 50), **kind), tmp_path / "o"
    write_result(out, layout)
    header, *lines = (tmp_path / "o.manifest").read_text().splitlines()
    document = json.loads(header)
    assert document.pop("digest") == "blake3"
    receipts = []
    for key, size, told in map(json.loads, lines):
        assert told == blake3((out / key).read_bytes()).hexdigest()
        receipts.append([key, size, hashlib.sha256((out / key).read_bytes()).hexdigest()])
    old = "".join(f"{json.dumps(line)}\n" for line in [document, *receipts]).encode()
    (tmp_path / "o.manifest").write_bytes(old)
    root = out / ("zarr.json" if layout.sharded else ".zattrs")
    attributes = json.loads(root.read_text())
    own = attributes["attributes"]["tiledblend"] if layout.sharded else attributes["tiledblend"]
    own["manifest_sha256"] = hashlib.sha256(old).hexdigest()
    root.write_text(json.dumps(attributes, indent=2, ensure_ascii=False) + "\n")
    assert verify(str(out), "full").ok
    assert begin(str(out), layout, job=JOB, resume=True).complete
    victim = out / receipts[0][0]
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    assert verify(str(out), "full").damaged == (receipts[0][0],)
    resumed = begin(str(out), layout, job=JOB, resume=True)
    assert len(list(resumed.missing_tiles())) == 1
    resumed.close()
