"""Nothing is visible before everything is there; nothing of the user's is touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from store_pixels import JOB, make_layout, random_pyramid, write_missing, write_result, write_tile

from tiledblend.bytes import exchange as exchanges
from tiledblend.bytes.objects import TEMPORARY_PREFIX
from tiledblend.containers import lock as locks
from tiledblend.containers.commit import clean, commit
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ledger import Ledger, Part
from tiledblend.containers.omezarr.place import ZarrPlace
from tiledblend.containers.omezarr.writer import TileWriter
from tiledblend.containers.output import begin
from tiledblend.containers.receipts import Receipt
from tiledblend.containers.verify import verify
from tiledblend.errors import RefusedError, StorageError, VerificationError
from tiledblend.geometry import Tile

IMAGE = ImageMetadata("test", (0.5, 0.25))
LAYOUT = make_layout((100, 70))
LEVELS = random_pyramid(LAYOUT)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_result(folder / "o", LAYOUT, LEVELS)
    return tree(folder)


def test_metadata_come_last(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS)
    assert not [name for name in tree(tmp_path / "o") if name.endswith("zarr.json")]
    commit(output, IMAGE)
    assert tree(tmp_path) == undisturbed
    assert output.complete


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_every_interruption_of_a_commit_ends_hidden_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    layout = make_layout((40, 40), ome_zarr=version)
    levels = write_result(tmp_path / "whole" / "o", layout)
    expected = tree(tmp_path / "whole")
    for limit in range(60):
        path = tmp_path / f"{limit}" / "o"
        output = begin(str(path), layout, job=JOB)
        write_missing(output, levels)
        done = dying_after(monkeypatch, limit, lambda output=output: commit(output, IMAGE))
        visible = (path / "zarr.json").exists() or (path / ".zgroup").exists()
        if visible:
            assert tree(path) == tree(tmp_path / "whole" / "o")
        if output.ledger:
            # What a death leaves: no release of the lock, no further flush.
            output.ledger.lock.forget()
        resumed = begin(str(path), layout, job=JOB, resume=True)
        if not resumed.complete:
            assert write_missing(resumed, levels) == 0
            commit(resumed, IMAGE)
        assert tree(path.parent) == expected
        if done:
            return
    pytest.fail("the commit never came through")


def dying_after(monkeypatch: pytest.MonkeyPatch, limit: int, action: Any) -> bool:
    """Run with the (limit+1)th rename, link, unlink or rmdir raising, and all after; True if it came through."""

    class Death(BaseException):
        pass

    count = 0

    def wrap(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > limit:
                raise Death
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "link", "unlink", "rmdir"):
            patched.setattr(os, name, wrap(getattr(os, name)))
        patched.setattr(exchanges, "_renameat2", wrap(exchanges._renameat2))
        try:
            action()
        except Death:
            return False
    return True


@pytest.mark.parametrize("atomic", [True, False])
def test_every_interruption_of_a_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    new, old = make_layout((40, 40)), make_layout((60, 20), is_rgb=False)
    new_levels = random_pyramid(new, 1)
    write_result(tmp_path / "new" / "o", new, new_levels)
    write_result(tmp_path / "old" / "o", old)
    expected, before = tree(tmp_path / "new"), tree(tmp_path / "old" / "o")
    if not atomic:
        monkeypatch.setattr(exchanges, "_renameat2", lambda *_: False)
    for limit in range(200):
        path = tmp_path / f"{limit}" / "o"
        shutil.copytree(tmp_path / "old", path.parent)
        output = begin(str(path), new, job=JOB, replace=True)
        write_missing(output, new_levels)
        assert tree(path) == before
        done = dying_after(monkeypatch, limit, lambda output=output: commit(output, IMAGE))
        if output.ledger:
            output.ledger.lock.forget()
        if atomic:
            assert tree(path) in (before, tree(tmp_path / "new" / "o"))
        resumed = begin(str(path), new, job=JOB, resume=True)
        if not resumed.complete:
            assert write_missing(resumed, new_levels) == 0
            commit(resumed, IMAGE)
        assert tree(path.parent) == expected
        assert sorted(os.listdir(path.parent)) == ["o", "o.manifest"]
        if done:
            return
    pytest.fail("the replace never came through")


def test_resume_computes_only_what_is_missing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS, stop_after=5)
    output.close()
    (tmp_path / "o/0/c/0/0/0").unlink()
    (tmp_path / "o/0/c/0/0/1").write_bytes(b"short")
    drafts = tmp_path / "o.ledger/drafts.000001"
    drafts.mkdir()
    (drafts / f"{TEMPORARY_PREFIX}dead").write_bytes(b"half")
    resumed = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    assert not drafts.exists()
    tiles = sum(1 for stage in range(LAYOUT.grid.stages) for _ in LAYOUT.grid.tiles(stage))
    assert write_missing(resumed, LEVELS) == tiles - 5 + 2
    commit(resumed, IMAGE)
    assert tree(tmp_path) == undisturbed


def test_a_driver_that_was_taken_over_leaves_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A worker that was thought dead and wakes up in the middle of a tile, or before one, writes nothing any more."""
    slept = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(slept, LEVELS, stop_after=3)
    tile, side = Tile(0, 1, 0), LAYOUT.grid.chunk
    writer, late = TileWriter(LAYOUT, slept.store, tile), list[tuple[int, int, Any]]()
    for level in LAYOUT.grid.stage_levels(0):
        pixels = LEVELS[level][LAYOUT.grid.tile_region(tile, level).slices]
        rows = [pixels[row * side : (row + 1) * side] for row in range(LAYOUT.tile_chunks(tile, level)[0])]
        writer.add_chunk_row(level, 0, rows[0])
        late += [(level, row, rows[row]) for row in range(1, len(rows))]
    assert late
    assert list((tmp_path / "o.ledger/drafts.000001").iterdir())
    assert slept.ledger is not None
    slept.ledger.lock.forget()
    resumed = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    for level, row, part in late:
        writer.add_chunk_row(level, row, part)
    with pytest.raises(StorageError, match="cannot write"):
        write_tile(slept.store, LAYOUT, tile, LEVELS)
    write_missing(resumed, LEVELS)
    commit(resumed, IMAGE)
    assert tree(tmp_path) == undisturbed
    with pytest.raises(StorageError, match="cannot write"):
        writer.finish()
    with pytest.raises(StorageError, match="cannot write"):
        write_tile(slept.store, LAYOUT, tile, LEVELS)
    assert tree(tmp_path) == undisturbed


def test_resume_of_an_unfinished_run_reads_what_is_there(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS, stop_after=5)
    output.close()
    file = tmp_path / "o/0/c/0/0/1"
    flip(file)
    resumed = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    assert next(iter(resumed.missing_tiles())) == Tile(0, 0, 1)
    write_missing(resumed, LEVELS)
    commit(resumed, IMAGE)
    assert tree(tmp_path) == undisturbed


@pytest.mark.parametrize("dies_in", ["record", "flush", "hide"])
def test_a_death_at_the_start_of_a_repair(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS)
    flip(tmp_path / "o/0/c/0/0/1")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((ZarrPlace, dies_in) if dies_in == "hide" else (Ledger, dies_in)), die)
        patched.setattr(Ledger, "close", die)
        with pytest.raises(KeyboardInterrupt):
            begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    locks._held_here.clear()
    resumed = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    assert list(resumed.missing_tiles()) == [Tile(0, 0, 1)]
    write_missing(resumed, LEVELS)
    commit(resumed, IMAGE)
    assert tree(tmp_path) == undisturbed


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_resume_with_nothing_there_begins(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS, resume=True)
    assert tree(tmp_path) == undisturbed
    assert begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True).complete


def test_resume_of_another_job_is_refused(tmp_path: Path) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    output.close()
    before = tree(tmp_path)
    with pytest.raises(RefusedError, match=r"job.feather.sigma was 16, is now 8"):
        begin(str(tmp_path / "o"), LAYOUT, job={**JOB, "feather": {"sigma": 8}}, resume=True)
    with pytest.raises(RefusedError, match=r"layout\.output\.codec"):
        begin(str(tmp_path / "o"), make_layout((100, 70), codec="zstd:2"), job=JOB, resume=True)
    with pytest.raises(RefusedError, match="continue it with --resume"):
        begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    assert tree(tmp_path) == before
    write_result(tmp_path / "p", LAYOUT, LEVELS)
    with pytest.raises(RefusedError, match="result there is of another job"):
        begin(str(tmp_path / "p"), LAYOUT, job={}, resume=True)


@pytest.mark.parametrize("victim", ["0/c/0/1/1", "2/c/0/0/0", "zarr.json", "1/zarr.json", "../o.manifest"])
@pytest.mark.parametrize("how", ["delete", "tear", "flip"])
def test_resume_repairs_only_the_damage(tmp_path: Path, undisturbed: dict[str, bytes], victim: str, how: str) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS)
    file = tmp_path / "o" / victim
    data = file.read_bytes()
    if how == "delete":
        file.unlink()
    else:
        torn = data[: len(data) // 2]
        file.write_bytes(torn if how == "tear" else torn + bytes([data[len(data) // 2] ^ 1]) + data[len(torn) + 1 :])
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    assert not (tmp_path / "o/zarr.json").exists()
    assert write_missing(output, LEVELS) == ("/c/" in victim)
    commit(output, IMAGE)
    assert tree(tmp_path) == undisturbed


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"null"])
def test_a_damaged_job_is_not_sent_round_in_circles(tmp_path: Path, damaged: bytes) -> None:
    """`clean` cannot know which objects are the run's own, so no line says that it would help."""
    out = str(tmp_path / "o.ome.zarr")
    begin(out, LAYOUT, job=JOB).close()
    (tmp_path / "o.ome.zarr.ledger/job.json").write_bytes(damaged)
    before = tree(tmp_path)
    for what in (
        lambda: clean(out),
        lambda: begin(out, LAYOUT, job=JOB),
        lambda: begin(out, LAYOUT, job=JOB, resume=True),
    ):
        with pytest.raises(StorageError, match=r"job\.json is damaged: remove"):
            what()
    assert tree(tmp_path) == before


def test_existing_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    write_result(tmp_path / "ours", LAYOUT, LEVELS)
    (tmp_path / "x.manifest").write_text("mine")
    before = tree(tmp_path)
    for name in ("empty", "file", "dangling", "foreign", "ours"):
        with pytest.raises(RefusedError, match="output exists; use another path, --resume or --replace"):
            begin(str(tmp_path / name), LAYOUT, job=JOB)
    for name in ("empty", "file", "dangling", "foreign"):
        with pytest.raises(RefusedError, match="is no result of tiledblend"):
            begin(str(tmp_path / name), LAYOUT, job=JOB, replace=True)
        with pytest.raises(RefusedError, match=r"neither a result of tiledblend nor an unfinished run .* by hand"):
            begin(str(tmp_path / name), LAYOUT, job=JOB, resume=True)
    with pytest.raises(RefusedError, match="no manifest of tiledblend"):
        begin(str(tmp_path / "x"), LAYOUT, job=JOB)
    assert tree(tmp_path) == before
    assert not list(tmp_path.glob("*.ledger"))


def test_replace_spares_foreign_files(tmp_path: Path) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS)
    (tmp_path / "o/labels").mkdir()
    (tmp_path / "o/labels/zarr.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"1 files there are not of the run that made it \(first: labels/zarr.json"):
        begin(str(tmp_path / "o"), LAYOUT, job=JOB, replace=True)


def test_foreign_file_added_during_replace_survives(tmp_path: Path) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS)
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB, replace=True)
    write_missing(output, random_pyramid(LAYOUT, 3))
    (tmp_path / "o/0/mine.txt").write_text("precious")
    commit(output, IMAGE)
    assert (tmp_path / "o.tiledblend-new/0/mine.txt").read_text() == "precious"
    assert "1 files of the older result" in output.warnings[0]


@pytest.mark.parametrize(
    ("output", "given"),
    [("a", "a"), ("a/out", "a"), ("a", "a/0"), ("a/../a/out", "a"), ("link/out", "a"), ("a/out", "file://{}/a")],
)
def test_outputs_and_inputs_do_not_overlap(tmp_path: Path, output: str, given: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    given = given.format(tmp_path) if "{}" in given else str(tmp_path / given)
    with pytest.raises(RefusedError, match="input"):
        begin(str(tmp_path / output), LAYOUT, job=JOB, inputs=["https://example.org/x", given])
    assert list((tmp_path / "a").iterdir()) == []


def test_neighbours_do_not_overlap(tmp_path: Path) -> None:
    begin(str(tmp_path / "ab"), LAYOUT, job=JOB, inputs=[str(tmp_path / "a"), str(tmp_path / "abc")]).close()


def test_commit_wants_every_object(tmp_path: Path) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS)
    file = tmp_path / "o/1/c/0/0/1"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(StorageError, match=r"1 of \d+ objects are missing or torn .first: 1/c/0/0/1"):
        commit(output, IMAGE)
    assert not list((tmp_path / "o").rglob("zarr.json"))
    file.write_bytes(data)
    commit(output, IMAGE)


def test_commit_stops_at_unlike_attempts(tmp_path: Path) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS)
    tile = Tile(0, 0, 0)
    first, *rest = output.open_ledger().receipts[tile]
    output.open_ledger().record(tile, [Receipt(first.key, first.size, "0" * 64), *rest])
    with pytest.raises(VerificationError, match="two attempts at tile 0/0/0 stored different bytes in 0/c/0/0/0"):
        commit(output, IMAGE)
    output.close()
    assert not list((tmp_path / "o").rglob("zarr.json"))
    resumed = begin(str(tmp_path / "o"), LAYOUT, job=JOB, resume=True)
    assert list(resumed.missing_tiles()) == [tile]
    write_missing(resumed, LEVELS)
    commit(resumed, IMAGE)
    assert verify(str(tmp_path / "o"), "full").ok


def test_clean_removes_only_its_own(tmp_path: Path) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS, stop_after=3)
    with pytest.raises(RefusedError, match="is writing this output"):
        clean(str(tmp_path / "o"))
    output.close()
    (tmp_path / "o.ledger/drafts.000001").mkdir()
    (tmp_path / f"o.ledger/drafts.000001/{TEMPORARY_PREFIX}dead").write_bytes(b"half")
    (tmp_path / "o/0/c/0/0/99").write_text("not planned")
    (tmp_path / "o.txt").write_text("neighbour")
    report = clean(str(tmp_path / "o"))
    assert report.kept == ("0/c/0/0/99",)
    assert tree(tmp_path) == {"o/0/c/0/0/99": b"not planned", "o.txt": b"neighbour"}
    with pytest.raises(RefusedError, match="no unfinished run"):
        clean(str(tmp_path / "o"))


def test_clean_of_a_replace_keeps_the_older_result(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    write_result(tmp_path / "o", LAYOUT, LEVELS)
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB, replace=True)
    write_missing(output, random_pyramid(LAYOUT, 3), stop_after=2)
    output.close()
    assert clean(str(tmp_path / "o")).removed > 0
    assert tree(tmp_path) == undisturbed
    assert sorted(os.listdir(tmp_path)) == ["o", "o.manifest"]


def test_clean_keeps_a_complete_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = begin(str(tmp_path / "o"), LAYOUT, job=JOB)
    write_missing(output, LEVELS)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "remove", Ledger.close)
        commit(output, IMAGE)
    output.close()
    assert clean(str(tmp_path / "o")).finished
    assert verify(str(tmp_path / "o"), "full").ok
    assert not (tmp_path / "o.ledger").exists()


def test_parts_then_finish(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    path = str(tmp_path / "o")
    parts = [begin(path, LAYOUT, job=JOB, part=Part(index, 2)) for index in (1, 2)]
    for index, output in enumerate(parts):
        for tile in list(output.missing_tiles())[index::2]:
            output.open_ledger().record(tile, write_tile(output.store, LAYOUT, tile, LEVELS))
    with pytest.raises(RefusedError, match="is writing this output"):
        begin(path, LAYOUT, job=JOB, resume=True)
    for output in parts:
        output.close()
    finish = begin(path, LAYOUT, job=JOB, resume=True)
    assert list(finish.missing_tiles()) == []
    commit(finish, IMAGE)
    assert tree(tmp_path) == undisturbed


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a part of this path is a file"):
        begin(str(tmp_path / "file/out"), LAYOUT, job=JOB)
    assert json.dumps(sorted(os.listdir(tmp_path))) == '["file"]'
