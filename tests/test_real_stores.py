"""Bucket to bucket on real stores, through the command line on two worker processes.

SeaweedFS runs by default, as itself and behind a translation of Google's XML API; azurite where it is installed, Ceph
when it is asked for:

    apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common bc curl
    npm install -g azurite
    python -m pytest -q tests/test_real_stores.py -m "ceph or not ceph" -rs
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Ran
from real_stores import KINDS, Store

import tiledblend as tb
from tiledblend.bytes.buckets import forget_clients
from tiledblend.bytes.objects import DirectoryStore, ObjectStore, open_store
from tiledblend.demo.tissue import Slides
from tiledblend.run.plan import plan
from tiledblend.run.tasks import TileJob
from tiledblend.sources.opening import forget_sources

pytestmark = [pytest.mark.cloud, pytest.mark.timeout(600)]
Run = Callable[..., Ran]
WRONG = "d3JvbmctU2VjcmV0LTkxYzI="
"""A wrong secret that is valid base64, as Azure's keys have to be."""
GRID = ("--chunk", "128", "--shard", "512")


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=pytest.mark.ceph if kind == "ceph" else ()) for kind in KINDS]
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    pytest.importorskip("obstore", reason="object stores need the cloud extra")
    start, why_not = KINDS[request.param]
    if reason := why_not():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
            patch.delenv(name)
        with start(tmp_path_factory.mktemp(request.param)) as running:
            for name, value in running.variables.items():
                patch.setenv(name, value)
            forget_clients()
            forget_sources()
            yield running
    forget_clients()
    forget_sources()


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Run:
    """The command in a folder of its own; everything that it says is kept there."""

    def run(*arguments: object, secret: str | None = None) -> Ran:
        variables = store.variables if secret is None else store.with_secret(secret)
        done = subprocess.run(
            [sys.executable, "-m", "tiledblend", *map(str, arguments)],
            env=os.environ | variables | {"PYTHONPATH": str(ROOT), "TILEDBLEND_RETRY_SECONDS": "20"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        with (tmp_path / "said.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def upload(slides: Slides, store: Store) -> list[str]:
    """Base, overlay and mask as arguments of `blend`."""
    bucket = open_store(store.url + "/in")
    for path in (slides.base, slides.overlay, slides.mask):
        bucket.put(path.name, path.read_bytes())
    base, overlay, mask = (f"{bucket.uri}/{path.name}" for path in (slides.base, slides.overlay, slides.mask))
    return [base, overlay, "--mask", mask, "--feather", "16px"]


def objects(result: ObjectStore) -> dict[str, bytes]:
    """All but the root document, which names the inputs."""
    return {key: result.get(key) or b"" for key, _ in result.list() if key != "zarr.json"}


def test_bucket_to_bucket(store: Store, run: Run, slides: Slides, tmp_path: Path) -> None:
    """Objects as a local run's, in one run and in parts; the credentials nowhere; a wrong one told without it."""
    layers = upload(slides, store)
    local = [str(slides.base), str(slides.overlay), "--mask", str(slides.mask), "--feather", "16px"]
    cluster = ("--workers", "2", "--threads-per-worker", "1", "--local-directory", str(tmp_path / "dask"))
    assert run("blend", *local, "-o", "local.ome.zarr", *GRID, *cluster).code == 0
    expected = objects(DirectoryStore(tmp_path / "local.ome.zarr"))

    out = f"{store.url}/out.ome.zarr"
    done = run("--debug", "blend", *layers, "-o", out, *GRID, *cluster)
    assert done.code == 0, done.err
    assert objects(open_store(out)) == expected
    assert run("verify", out, "--against-inputs", "3").code == 0
    assert run("blend", *layers, "-o", out, *GRID).code == 3
    assert run("blend", *layers, "-o", out, *GRID, "--resume").code == 0

    parts = f"{store.url}/parts.ome.zarr"
    for step in (("--part", "1/2"), ("--part", "2/2"), ("--finish",)):
        assert run("blend", *layers, "-o", parts, *GRID, *step).code == 0
    assert objects(open_store(parts)) == expected
    dead = f"{store.url}/dead.ome.zarr"
    assert run("blend", *layers, "-o", dead, *GRID, "--part", "1/2").code == 0
    assert run("clean", dead).code == 0
    assert not list(open_store(dead).list())

    denied = run("--debug", "blend", *layers, "-o", dead, *GRID, secret=WRONG)
    assert denied.code == 5
    assert store.url in denied.error
    assert re.search(r"access denied \(40[13].*check (AWS|AZURE|GOOGLE)_", denied.error)
    assert WRONG not in denied.out + denied.err

    said = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    stored = b"".join(open_store(store.url).get(key) or b"" for key, _ in open_store(store.url).list())
    secret = store.variables[store.secret].encode()
    assert secret not in said + stored + pickled_job(layers, out)


def test_killed_and_resumed(store: Store, run: Run, slides: Slides, tmp_path: Path) -> None:
    """SIGKILL of a driver that has stored some of its objects; the rest by `--resume`, as in an undisturbed run."""
    layers, whole, out = upload(slides, store), f"{store.url}/whole.ome.zarr", f"{store.url}/killed.ome.zarr"
    assert run("blend", *layers, "-o", whole, *GRID).code == 0
    command = [sys.executable, "-m", "tiledblend", "blend", *layers, "-o", out, *GRID]
    variables = os.environ | store.variables | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=variables, cwd=tmp_path, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not any(open_store(out).list("0/c/")):
            pass
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert open_store(out).get("zarr.json") is None
    assert run("verify", out).code != 0
    resumed = run("blend", *layers, "-o", out, *GRID, "--resume")
    assert resumed.code == 0, resumed.err
    assert objects(open_store(out)) == objects(open_store(whole))
    assert not list(open_store(out + ".ledger").list())


def pickled_job(layers: list[str], out: str) -> bytes:
    """What a run sends to its workers."""
    base, overlay, _, mask, *_ = layers
    composite = tb.Composite([tb.Layer(tb.open(base)), tb.Layer(tb.open(overlay), mask=tb.open(mask))])
    planned = plan(composite, samples=0)
    return pickle.dumps(TileJob(planned.scene, planned.layout, open_store(out), ()))


def test_creating_is_told_from_a_conflict(store: Store) -> None:
    """What locks and commits stand on, asked of each store."""
    bucket = open_store(store.url + "/verbs")
    assert [bucket.put_new("lock", b"same") for _ in range(3)] == [True, False, False]
    bucket.put_many((f"many/{number:03}", [b"a", b"b" * number]) for number in range(40))
    assert [size for _, size in sorted(bucket.list("many/"))] == list(range(1, 41))
    assert (bucket.get("none"), bucket.size("none")) == (None, None)
    bucket.delete("lock")
    bucket.delete("lock")
    assert bucket.put_new("lock", b"") is True
    assert bucket.get("lock") == b""
    absent = open_store(f"{store.url}-none/x")
    with pytest.raises(tb.errors.StorageError, match="no such bucket"):
        absent.get("a")
