"""A directory as an object store: whole objects, safe keys, told errors."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiledblend.bytes import objects
from tiledblend.bytes.objects import TEMPORARY_PREFIX, DirectoryStore, ObjectStore, beside, open_store, split_parent
from tiledblend.errors import ResourceError, StorageError, UsageError


def test_round_trip(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "a" / "b")
    assert isinstance(store, ObjectStore)
    assert (store.get("x/y"), store.size("x/y"), list(store.list())) == (None, None, [])
    store.put("x/y", b"one")
    store.put("x/y", [b"two", b"", b"three"])
    store.put_many([("x/z", bytearray(b"z")), ("w", memoryview(b"abc"))])
    assert store.get("x/y") == b"twothree"
    assert sorted(store.list()) == [("w", 3), ("x/y", 8), ("x/z", 1)]
    assert sorted(store.list("x/")) == [("x/y", 8), ("x/z", 1)]
    assert list(store.list("x/z")) == [("x/z", 1)]
    store.delete("x/y")
    store.delete("x/y")
    assert (store.size("x/y"), store.size("x"), store.get("x")) == (None, None, None)
    assert pickle.loads(pickle.dumps(store)).get("w") == b"abc"


def test_put_new_creates_once_among_threads(tmp_path: Path) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        store = DirectoryStore(tmp_path / "s")
        barrier.wait()
        if store.put_new("lock", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "s/lock").read_text() == str(won[0])
    assert os.listdir(tmp_path / "s") == ["lock"]


def test_put_new_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    store = DirectoryStore(tmp_path)
    assert store.put_new("a", b"1") is True
    assert store.put_new("a", b"2") is False
    assert store.get("a") == b"1"
    assert [key for key, _ in store.list()] == ["a"]


def test_put_new_without_hard_links_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free again: half an object under it would be what everybody finds from then on."""
    store, write = DirectoryStore(tmp_path), objects.write_fully

    def no_links(*_: object) -> None:
        def full(descriptor: int, parts: Any) -> None:
            write(descriptor, [part[:1] for part in parts])
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(objects, "write_fully", full)
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageError, match="no space left"):
        store.put_new("a", b"12")
    assert list(store.list()) == []
    monkeypatch.undo()
    assert store.put_new("a", b"12") is True


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "..", "a//b", "a/", "./a", "a\\b", "a\0b"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="not a plain relative path"):
        DirectoryStore(tmp_path).put(key, b"")


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.ENOSPC, StorageError, "no space left; free some"),
        (errno.EDQUOT, StorageError, "quota"),
        (errno.EACCES, StorageError, "no permission"),
        (errno.EROFS, StorageError, "read-only"),
        (errno.EIO, StorageError, "input/output"),
        (errno.EMFILE, ResourceError, "ulimit -n"),
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_failures_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], remedy: str, call: str
) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/old", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(objects.os, call, fail)
        with pytest.raises(kind, match=remedy) as caught:
            store.put("a/old", b"new")
    assert str(tmp_path / "a/old") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(store.list()) == [("a/old", 3)]
    assert store.get("a/old") == b"old"


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(objects.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    store = DirectoryStore(tmp_path)
    store.put("a", b"0123456789")
    assert store.get("a") == b"0123456789"


def test_every_object_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else "?"
        done.append("file" if TEMPORARY_PREFIX in target else f"folder {os.path.relpath(target, tmp_path)}")
        fsync(descriptor)

    def noting_rename(source: object, target: object) -> None:
        done.append("rename")
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(objects.os, "fsync", noting_fsync)
    monkeypatch.setattr(objects.os, "rename", noting_rename)
    DirectoryStore(tmp_path / "s").put_many([("a/1", b"1"), ("a/2", b"2")])
    if "folder ?" not in done:
        assert done == ["folder s", "folder .", "file", "rename", "file", "rename", "folder s/a"]


def test_temporary_leftovers_are_listed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}1").write_bytes(b"x")
    assert list(DirectoryStore(tmp_path).list()) == [(f"{TEMPORARY_PREFIX}1", 1)]


def test_open_store(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a%20b").uri == f"{tmp_path}/a b"
    assert open_store(tmp_path / "x/").uri == str(tmp_path / "x")
    assert beside(open_store(tmp_path / "x"), ".ledger").uri == f"{tmp_path}/x.ledger"
    parent, name = split_parent(open_store(tmp_path / "x"))
    assert (parent.uri, name) == (str(tmp_path), "x")
    with pytest.raises(UsageError, match="give a local path"):
        open_store("ftp://host/out")


def test_drafts_are_seen_when_they_are_put(tmp_path: Path) -> None:
    """By nobody before, and nothing is left of one that was given up."""
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    store = DirectoryStore(tmp_path / "s", drafts)
    first, second = store.draft("a/1"), store.draft("a/2")
    for part in (b"one ", bytearray(b"two "), memoryview(b"three")):
        first.append(part)
    second.append(b"never")
    assert list(store.list()) == []
    assert len(list(drafts.iterdir())) == 2
    store.put_drafts([first])
    second.discard()
    first.discard()
    assert list(store.list()) == [("a/1", 13)]
    assert store.get("a/1") == b"one two three"
    assert list(drafts.iterdir()) == []
    copy = pickle.loads(pickle.dumps(store))
    drafts.rmdir()
    for one in (store, copy):
        with pytest.raises(StorageError, match=r"cannot write .*s/b/3"):
            one.put("b/3", b"x")
    assert not (tmp_path / "s/b").exists()
    assert list(store.list()) == [("a/1", 13)]


def test_a_draft_that_cannot_be_written_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    draft = store.draft("a")
    draft.append(b"x")
    monkeypatch.setattr(os, "write", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match="no space left"):
        draft.append(b"y")
    assert list(tmp_path.iterdir()) == []


def fail(number: int) -> Callable[..., Any]:
    def failing(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return failing
