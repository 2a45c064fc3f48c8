"""A cluster on several hosts over TLS: one is cut off for good, the client's link is down for a while, strangers come.

The hosts are network namespaces of this machine, which takes root. What waits for lost links takes minutes, so it runs
only when it is asked for, as often as the number says:

    TILEDBLEND_HOSTS=1 python -m pytest -q -m netns -rs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from platforms import objects_below

from tiledblend.demo.tissue import Slides

pytestmark = [pytest.mark.netns, pytest.mark.timeout(420)]
RIGS = ROOT.parent / "shared" / "rigs"
ROUNDS = range(int(os.environ.get("TILEDBLEND_HOSTS", "0")))
SCHEDULER = "tls://10.77.0.1:8786"
ADDRESSES = {"tbh1": "10.77.0.11", "tbh2": "10.77.0.12"}
TILES = ("--chunk", "32", "--shard", "32", "--codec", "zstd:1", "--feather", "8px")
"""Tiles by the hundred, so that a run takes long enough to be disturbed in the middle."""

asked = pytest.mark.skipif(not ROUNDS, reason="takes minutes: TILEDBLEND_HOSTS=1 python -m pytest -q -m netns")


@dataclass(frozen=True)
class Hosts:
    """Three hosts: this one, with the scheduler, and tbh1 and tbh2. certificates: where the PEM files are."""

    certificates: Path

    def start(self, host: str | None, log: Path, *arguments: object, **variables: str) -> subprocess.Popen[bytes]:
        """A Python module with its arguments, as a process of a host (None: this one)."""
        inside = ["ip", "netns", "exec", host] if host else []
        with log.open("ab") as file:
            return subprocess.Popen(
                [*inside, sys.executable, "-m", *map(str, arguments)],
                env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
                cwd=log.parent, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    def tls(self, name: str = "node") -> list[str]:
        """dask's flags and ours."""
        own = {"ca-file": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
        return [text for flag, file in own.items() for text in (f"--tls-{flag}", str(self.certificates / file))]

    def blend(self, host: str, log: Path, *arguments: object, **variables: str) -> subprocess.Popen[bytes]:
        """The command on a host, on the cluster."""
        return self.start(host, log, "tiledblend", "blend", *arguments, "--scheduler", SCHEDULER, **variables)

    @contextmanager
    def cluster(self, folder: Path, *workers: str, **variables: str) -> Iterator[None]:
        """A scheduler here and a worker of one thread on each named host."""
        with ExitStack() as stack:
            command: list[object] = ["dask", "scheduler", "--protocol", "tls", "--host", "10.77.0.1", "--port", "8786"]
            started = [self.start(None, folder / "scheduler.log", *command, "--no-dashboard", *self.tls(), **variables)]
            for name in workers:
                place = ["--host", ADDRESSES[name], "--nthreads", "1", "--no-nanny", "--local-directory", folder / name]
                common = ["dask", "worker", SCHEDULER, "--no-dashboard", *self.tls()]
                started.append(self.start(name, folder / f"{name}.log", *common, *place, **variables))
            for process in started:
                stack.callback(process.wait)
                stack.callback(process.kill)
            yield

    def link(self, host: str, state: str) -> None:
        """Pull a host's cable, or put it back."""
        subprocess.run(["ip", "-n", host, "link", "set", "eth0", state], check=True, timeout=10)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    if not (RIGS / "tls-certs.sh").exists() or shutil.which("openssl") is None:
        pytest.skip("test certificates need openssl and the rig's script")
    subprocess.run(["bash", RIGS / "tls-certs.sh", folder], check=True, capture_output=True, timeout=30)
    return folder


@pytest.fixture
def hosts(certificates: Path) -> Iterator[Hosts]:
    """Namespaces are made anew for each test, so that none begins with a link that is down."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    up = subprocess.run(["bash", RIGS / "netns-up.sh"], capture_output=True, text=True, timeout=30, check=False)
    if "File exists" in up.stderr:
        pytest.skip("the test's hosts are there already: another run has them, or `ip netns del tbh1` is due")
    try:
        if up.returncode:
            pytest.skip(f"network namespaces cannot be made here: {up.stderr.strip()}")
        yield Hosts(certificates)
    finally:
        subprocess.run(["bash", RIGS / "netns-down.sh"], capture_output=True, timeout=30, check=False)


@pytest.fixture
def inputs(slides: Slides, tmp_path: Path) -> list[str]:
    return [str(slides.base), str(slides.overlay), "--mask", str(slides.mask), *TILES]


def local_objects(inputs: list[str], folder: Path) -> dict[str, bytes | None]:
    """The objects of a run on this host alone."""
    command = [sys.executable, "-m", "tiledblend", "blend", *inputs, "-o", str(folder / "local.ome.zarr")]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=variables, check=True, timeout=240, capture_output=True)
    return objects_below(folder / "local.ome.zarr")


def wait_until(true: Callable[[], object], what: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what.read_text()[-600:]
        time.sleep(0.05)


def receipts(out: Path) -> int:
    """Tiles that the driver has noted as stored."""
    return sum(file.read_bytes().count(b"\n") for file in out.parent.glob(f"{out.name}.ledger/receipts.*"))


def test_strangers_are_refused(hosts: Hosts, inputs: list[str], tmp_path: Path) -> None:
    """Without a certificate, and with one that another authority has signed: one line each, and nothing is written."""
    out, short = tmp_path / "out.ome.zarr", {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    with hosts.cluster(tmp_path, "tbh2"):
        log = tmp_path / "known.log"
        with running(hosts.blend("tbh1", log, *inputs[:4], "-o", tmp_path / "known.ome.zarr", *hosts.tls())) as known:
            assert known.wait(60) == 0, log.read_text()
        cases = {"none": ([], 2, "wants certificates"), "rogue": (hosts.tls("rogue"), 6, "no dask scheduler answers")}
        for name, (flags, code, words) in cases.items():
            log = tmp_path / f"{name}.log"
            with running(hosts.blend("tbh1", log, *inputs, "-o", out, *flags, **short)) as stranger:
                assert stranger.wait(60) == code, log.read_text()
            errors = [line for line in log.read_text().splitlines() if "scaled by" not in line]
            assert len(errors) == 1
            assert words in errors[0]
    assert not out.exists()


@pytest.mark.slow
@asked
@pytest.mark.parametrize("_round", ROUNDS)
def test_a_host_is_cut_off_for_good(hosts: Hosts, inputs: list[str], tmp_path: Path, _round: int) -> None:
    """The tiles of the host that is gone are made by the other, without anybody's help."""
    out, log, expected = tmp_path / "out.ome.zarr", tmp_path / "client.log", local_objects(inputs, tmp_path)
    patience = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
    with hosts.cluster(tmp_path, "tbh1", "tbh2", **patience):
        client = hosts.start(
            None, log, "tiledblend", "blend", *inputs, "-o", out, "--scheduler", SCHEDULER, *hosts.tls()
        )
        with running(client):
            wait_until(lambda: receipts(out) >= 200, log)
            hosts.link("tbh2", "down")
            at = receipts(out)
            assert client.wait(180) == 0, log.read_text()
    assert at < len(expected) * 0.8
    assert objects_below(out) == expected


@pytest.mark.slow
@asked
@pytest.mark.parametrize("_round", ROUNDS)
@pytest.mark.parametrize("patience", ["12s", "30s"])
def test_the_clients_link_is_down_for_a_minute(
    hosts: Hosts, inputs: list[str], tmp_path: Path, patience: str, _round: int
) -> None:
    """It finds its scheduler again, or says that it can be resumed; the result is the undisturbed one either way."""
    out, log, expected = tmp_path / "out.ome.zarr", tmp_path / "client.log", local_objects(inputs, tmp_path)
    variables = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": patience}
    with hosts.cluster(tmp_path, "tbh2", **variables):
        with running(hosts.blend("tbh1", log, *inputs, "-o", out, *hosts.tls(), **variables)) as client:
            wait_until(lambda: receipts(out) >= 200, log)
            hosts.link("tbh1", "down")
            at, cut = receipts(out), time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                client.wait(60)
            hosts.link("tbh1", "up")
            code = client.wait(240)
        print(f"{patience}: exit {code} after {time.monotonic() - cut:.0f} s, {at} tiles before: {log.read_text()!r}")
        assert at < len(expected) * 0.8
        assert code in (0, 75), log.read_text()
        if code == 75:
            assert not (out / "zarr.json").exists()
            assert "--resume" in log.read_text().splitlines()[-1]
            again = hosts.blend("tbh1", log, *inputs, "-o", out, *hosts.tls(), "--resume")
            with running(again):
                assert again.wait(120) == 0, log.read_text()
    assert objects_below(out) == expected


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which has ended afterwards."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
