"""Receipts outlive their driver; one driver at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers import ledger as ledgers
from tiledblend.containers import receipt_log
from tiledblend.containers.ledger import Ledger, Part, differences
from tiledblend.containers.lock import Holder, Lock
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.receipt_log import BatchLog
from tiledblend.containers.receipts import Receipt
from tiledblend.errors import RefusedError, StorageError
from tiledblend.geometry import Tile

SPEC = OutputSpec(16, 16, levels=1)
LAYOUT = ArrayLayout(SPEC.grid((16, 8 * 16)), 3, "uint8", True, SPEC)
JOB = {"layout": LAYOUT.as_dict(), "sigma": 16, "inputs": [{"uri": "a", "size": 3}]}


def receipt(number: int, digest: str = "ab") -> tuple[Receipt, ...]:
    return (Receipt(f"0/c/0/0/{number}", 10 + number, digest * 32),)


def tile(number: int) -> Tile:
    return Tile(0, 0, number)


@pytest.fixture
def output(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "out")


def test_receipts_come_back(output: DirectoryStore) -> None:
    with Ledger.create(output, JOB) as first:
        for number in range(5):
            first.record(tile(number), receipt(number))
    with Ledger.resume(output, JOB) as second:
        assert second.receipts == {tile(number): receipt(number) for number in range(5)}
        second.record(tile(5), receipt(5))
    with Ledger.resume(output) as third:
        assert len(third.receipts) == 6
        assert (third.lock.generation, third.job, third.conflicts) == (3, JOB, [])
        third.remove()
    assert not Path(output.uri + ".ledger").exists()
    assert not ledgers.exists(output)


def test_a_receipt_outlives_its_driver_at_once_and_a_power_cut_after_a_flush(
    output: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(output, JOB)
    file, synced, fsync = Path(output.uri + ".ledger/receipts.000001"), list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    ledger.record(tile(0), receipt(0))
    assert (file.read_bytes().count(b"\n"), synced) == (1, [])
    ledger.flush()
    ledger.flush()
    assert synced == [file.stat().st_ino]
    ledger.close()
    ledger.close()


@pytest.mark.parametrize("part", [None, Part(1, 2)])
def test_a_discard_outlives_its_driver(output: DirectoryStore, part: Part | None) -> None:
    """Else two attempts that differed would be told at every resume, and a part could never settle them."""
    with Ledger.create(output, JOB, part) as first:
        first.record(tile(0), receipt(0))
        first.record(tile(0), receipt(0, "cd"))
        first.record(tile(1), receipt(1))
    with Ledger.resume(output, JOB, part) as second:
        assert len(second.conflicts) == 1
        second.discard([tile(0)])
        assert (second.conflicts, set(second.receipts)) == ([], {tile(1)})
    with Ledger.resume(output, JOB, part) as third:
        assert (third.conflicts, set(third.receipts)) == ([], {tile(1)})
        third.record(tile(0), receipt(0, "cd"))
    with Ledger.resume(output, JOB) as last:
        assert (last.conflicts, last.receipts[tile(0)]) == ([], receipt(0, "cd"))
        last.record(tile(0), receipt(0, "ef"))
        assert len(last.conflicts) == 1


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_torn_last_line_loses_one_tile_only(output: DirectoryStore, cut: int) -> None:
    with Ledger.create(output, JOB) as ledger:
        for number in range(3):
            ledger.record(tile(number), receipt(number))
    file = Path(output.uri + ".ledger/receipts.000001")
    file.write_bytes(file.read_bytes()[:-cut])
    with Ledger.resume(output) as resumed:
        # Without its newline alone the last line is whole.
        assert set(resumed.receipts) == {tile(number) for number in range(2 + (cut == 1))}
        resumed.record(tile(2), receipt(2))
    with Ledger.resume(output) as again:
        assert len(again.receipts) == 3


def test_flipped_bits_never_make_a_wrong_receipt(output: DirectoryStore) -> None:
    with Ledger.create(output, JOB) as ledger:
        for number in range(3):
            ledger.record(tile(number), receipt(number))
    file = Path(output.uri + ".ledger/receipts.000001")
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[position] ^= 4
        file.write_bytes(damaged)
        with Ledger.resume(output) as resumed:
            assert all(resumed.receipts[key] == receipt(key.column) for key in resumed.receipts)
            assert len(resumed.receipts) >= 1


def test_failed_append_does_not_spoil_the_next(output: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.create(output, JOB)

    def half(descriptor: int, parts: list[bytes]) -> None:
        os.write(descriptor, parts[-1][:20])
        raise OSError(28, "full")

    with monkeypatch.context() as patched:
        patched.setattr(receipt_log, "write_fully", half)
        with pytest.raises(StorageError, match="no space left"):
            ledger.record(tile(0), receipt(0))
    ledger.close()
    with Ledger.resume(output) as resumed:
        assert (set(resumed.receipts), resumed.damaged_lines) == ({tile(0)}, 1)


def test_conflicts_are_kept(output: DirectoryStore) -> None:
    with Ledger.create(output, JOB) as ledger:
        ledger.record(tile(0), receipt(0))
        ledger.record(tile(0), receipt(0))
        assert ledger.conflicts == []
        ledger.record(tile(0), receipt(0, "cd"))
        assert ledger.conflicts[0].keys == ("0/c/0/0/0",)
        assert ledger.receipts[tile(0)] == receipt(0)


@pytest.mark.parametrize(
    "line",
    [
        '[[0,0,8],[["0/c/0/0/8",1,"HASH"]],0]',
        '[[0,0,1],[["0/c/0/0/2",1,"HASH"]],0]',
        '[[0,0,1],[["0/c/0/0/1",1,"HASH"],["1/c/0/0/1",1,"HASH"]],0]',
        '[[0,0,1],[["0/c/0/0/1",-1,"HASH"]],0]',
        '[[0,0,1],[["0/c/0/0/1",1,"not a hash"]],0]',
    ],
)
def test_receipts_of_what_is_not_planned_are_damage(output: DirectoryStore, line: str) -> None:
    text = line.replace("HASH", "ab" * 32).encode()
    with Ledger.create(output, JOB) as ledger:
        ledger.record(tile(0), receipt(0))
    with open(output.uri + ".ledger/receipts.000001", "ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(text), text))
    with Ledger.resume(output) as resumed:
        assert (set(resumed.receipts), resumed.damaged_lines) == ({tile(0)}, 1)


def test_only_the_same_job_resumes(output: DirectoryStore) -> None:
    Ledger.create(output, JOB).close()
    with pytest.raises(RefusedError, match="sigma was 16, is now 8"):
        Ledger.resume(output, {**JOB, "sigma": 8})
    with pytest.raises(RefusedError, match=r"inputs\[0\].size was 3, is now 4"):
        Ledger.resume(output, {**JOB, "inputs": [{"uri": "a", "size": 4}]})
    with pytest.raises(RefusedError, match="continue with --resume"):
        Ledger.create(output, JOB)
    with pytest.raises(RefusedError, match="no run to resume"):
        Ledger.resume(DirectoryStore(output.uri + "2"), JOB)


@pytest.mark.parametrize("damaged", [b"{", b'{"layout": {"shape": [1]}}', b"[]"])
def test_damaged_job_is_told(output: DirectoryStore, damaged: bytes) -> None:
    Ledger.create(output, JOB).close()
    Path(output.uri + ".ledger/job.json").write_bytes(damaged)
    with pytest.raises(StorageError, match=r"is damaged: remove .*out .*unless --replace .* and .*out\.ledger"):
        Ledger.resume(output)


def test_differences_name_new_and_gone_keys() -> None:
    assert differences({"a": 1}, {"b": 1}) == ["a was 1, is now null", "b was null, is now 1"]
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a was [1, 2], is now [1]"]
    assert differences(JOB, json.loads(json.dumps(JOB))) == []


def test_living_driver_is_refused_here(output: DirectoryStore) -> None:
    with Ledger.create(output, JOB), pytest.raises(RefusedError, match=f"process {os.getpid()} on"):
        Ledger.resume(output, JOB)
    Ledger.resume(output, JOB).close()


def test_killed_driver_is_not_waited_for(output: DirectoryStore) -> None:
    code = (
        "import json, os, sys\nfrom tiledblend.containers.ledger import Ledger\n"
        "from tiledblend.bytes.objects import DirectoryStore\n"
        "ledger = Ledger.create(DirectoryStore(sys.argv[1]), json.loads(sys.argv[2]))\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nos._exit(1)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, output.uri, json.dumps(JOB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(RefusedError, match=f"process {child.pid} on"):
            Ledger.resume(output)
    finally:
        child.communicate("\n")
    Ledger.resume(output).close()


def test_another_machine_is_the_users_word(output: DirectoryStore) -> None:
    ledger = Ledger.create(output, JOB)
    file = Path(output.uri + ".ledger/lock.000001")
    file.write_text(json.dumps({**json.loads(file.read_text()), "machine": "elsewhere"}))
    newer = Ledger.resume(output, JOB)
    ledger.record(tile(0), receipt(0))
    with pytest.raises(RefusedError, match=f"taken over by process {os.getpid()}"):
        ledger.flush()
    ledger.close()
    assert newer.receipts == {}
    newer.flush()
    newer.close()


@pytest.mark.parametrize("at", range(1, 5))
def test_a_resume_that_failed_can_be_tried_again_in_the_same_process(
    output: DirectoryStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever sync of lock and receipts fails: the lock is not a living driver's."""
    Ledger.create(output, JOB).close()
    calls, fsync = iter(range(1, 100)), os.fsync

    def failing(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(errno.EIO, "made to fail")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StorageError, match="input/output error"):
            Ledger.resume(output, JOB)
    Ledger.resume(output, JOB).close()


def test_reused_process_number_is_another_process() -> None:
    mine = Holder.this_process()
    assert mine.alive is False  # not entered as held
    other = dataclasses.replace(mine, started="1")
    assert other.alive is False
    assert dataclasses.replace(mine, machine="elsewhere").alive is None


def test_lock_notices_that_the_ledger_is_gone(output: DirectoryStore) -> None:
    lock = Lock.acquire(output)
    output.delete("lock.000001")
    with pytest.raises(RefusedError, match="ledger is gone"):
        lock.check()
    lock.forget()


def test_parts_share_a_ledger(output: DirectoryStore) -> None:
    parts = [Ledger.create(output, JOB, Part(index, 2)) for index in (1, 2)]
    for number, ledger in enumerate(parts):
        ledger.record(tile(number), receipt(number))
        ledger.flush()
    with pytest.raises(RefusedError, match="is writing this output"):
        Ledger.resume(output, JOB)
    with pytest.raises(RefusedError, match="sigma"):
        Ledger.create(output, {**JOB, "sigma": 1}, Part(2, 2))
    for ledger in parts:
        ledger.close()
    with Ledger.resume(output, JOB) as finish:
        assert set(finish.receipts) == {tile(0), tile(1)}
        with pytest.raises(RefusedError, match="is writing this output"):
            Ledger.create(output, JOB, Part(1, 2))
        finish.remove()
    assert not Path(output.uri + ".ledger").exists()


def test_batches_where_nothing_can_be_appended(output: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "open_log", BatchLog)
    with Ledger.create(output, JOB) as ledger:
        for number in range(4):
            ledger.record(tile(number), receipt(number))
            ledger.flush()
    assert len(list(Path(output.uri + ".ledger").glob("receipts.000001.*"))) == 4
    with Ledger.resume(output) as resumed:
        assert len(resumed.receipts) == 4


def test_remove_keeps_foreign_files(output: DirectoryStore) -> None:
    ledger = Ledger.create(output, JOB)
    foreign = Path(output.uri + ".ledger/notes.txt")
    foreign.write_text("mine")
    ledger.remove()
    assert list(foreign.parent.iterdir()) == [foreign]
