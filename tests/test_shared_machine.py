"""A machine that several people use: what other accounts have laid out is not run, and nobody is let in by a port."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, Command
from PIL import Image

from tiledblend.cli.verify import recomputed
from tiledblend.containers.ledger import SUFFIX
from tiledblend.demo.tissue import Slides
from tiledblend.errors import RefusedError
from tiledblend.run.cluster import open_client
from tiledblend.run.options import ClusterOptions
from tiledblend.run.origin import origin_of
from tiledblend.run.scratch import private_folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
TILES = ("--chunk", "128", "--shard", "256", "--feather", "8px")
LOOKED_FOR = ("pandas", "pyarrow", "cupy", "cudf", "bokeh", "lz4", "snappy", "numba", "sparse", "rmm", "h5py", "zict")
"""Modules that dask, or a library of it, imports in the middle of its work where they are."""
STANDARD = ("queue", "signal", "selectors", "json", "struct", "random", "multiprocessing", "pickle", "tempfile", "ssl")


def traps(folder: Path, names: Sequence[str], marker: Path) -> None:
    """Harmless modules that say that they were run."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name + chr(10)!r})\nraise ImportError\n")


@contextmanager
def running(folder: Path, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command as its installed script starts it: without the current folder on its own import path."""
    script = folder.parent / "launcher" / "tiledblend"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from tiledblend.__main__ import main\nif __name__ == '__main__':\n    main()\n")
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def run(folder: Path, *arguments: object, **variables: str) -> str:
    with running(folder, *arguments, **variables) as process:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return str(said)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["embedded", "workers"])
@pytest.mark.parametrize("place", ["temporary", "given"])
def test_dasks_shared_folder_is_not_used(slides: Slides, tmp_path: Path, workers: tuple[str, ...], place: str) -> None:
    """Another account may have made /tmp/dask-scratch-space first."""
    data, scratch, marker = tmp_path / "data", tmp_path / "tmp", tmp_path / "marker"
    data.mkdir()
    scratch.mkdir()
    traps(scratch / "dask-scratch-space", LOOKED_FOR, marker)
    where = ("--local-directory", str(scratch)) if place == "given" else ()
    variables = {} if where else {"TMPDIR": str(scratch)}
    flags = ("--mask", slides.mask, *TILES, "-o", data / "out.ome.zarr")
    run(data, "blend", slides.base, slides.overlay, *flags, *workers, *where, **variables)
    assert not marker.exists(), marker.read_text()
    assert [path.name for path in scratch.iterdir()] == ["dask-scratch-space"]


def test_the_current_folder_is_not_imported_from(slides: Slides, tmp_path: Path) -> None:
    data, marker = tmp_path / "data", tmp_path / "marker"
    traps(data, STANDARD, marker)
    flags = ("--mask", slides.mask, *TILES, "-o", data / "out.ome.zarr")
    run(data, "blend", slides.base, slides.overlay, *flags, "--workers", "1")
    assert not marker.exists(), marker.read_text()


def test_a_private_folder_is_ours_alone(tmp_path: Path) -> None:
    before = list(sys.path)
    with private_folder(str(tmp_path)) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        sys.path.insert(0, str(folder / "dask-scratch-space"))
        with private_folder(str(tmp_path)) as other:
            # Nobody takes a folder for abandoned whose process lives.
            assert folder.exists()
            assert other != folder
    assert sys.path == before
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    code = "import os, sys; from tiledblend.run.scratch import private_folder as made\n"
    code += "with made(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    strange = tmp_path / "tiledblend-mine"
    strange.mkdir(mode=0o755)
    with private_folder(str(tmp_path)):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [strange]


def test_a_folder_that_others_may_exchange_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(RefusedError, match=r"--local-directory .*open: others may write in it"):
        open_client(ClusterOptions(threads_per_worker=1, local_directory=str(open_to_all))).__enter__()
    open_to_all.chmod(0o1777)
    with private_folder(str(open_to_all)) as folder:
        assert folder.parent == open_to_all
    if os.geteuid() == 0:
        os.chown(open_to_all, 12345, 12345)
        open_to_all.chmod(0o755)
        with pytest.raises(RefusedError, match="it belongs to another account"), private_folder(str(open_to_all)):
            pass


# --- a stranger's result


def described(out: Path, image: str) -> Path:
    """A result whose description names `image`, as whoever makes one may write into it."""
    document = json.loads((out / "zarr.json").read_text())
    document["attributes"]["tiledblend"]["description"]["layers"][0]["image"] = image
    (out / "zarr.json").write_text(json.dumps(document))
    return out


@pytest.fixture
def stranger(tmp_path: Path, command: Command) -> Path:
    """A result in a folder with the image that it was made from."""
    folder = tmp_path / "from"
    folder.mkdir()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(folder / "own.png")
    out = folder / "out.ome.zarr"
    assert command("blend", folder / "own.png", "-o", out, "--chunk", 64, "--shard", 64).code == 0
    return out


@pytest.mark.parametrize("form", ["{0}/own.png", "file://{0}/own.png", "{0}/../private/own.png"])
def test_inputs_that_a_result_names_elsewhere_are_not_opened(
    tmp_path: Path, stranger: Path, command: Command, form: str
) -> None:
    assert command("seams", stranger).code == 0  # beside the result
    assert command("preview", stranger, "beside.png", "--seams").code == 0
    private = tmp_path / "private"
    private.mkdir()
    (tmp_path / "from" / "own.png").rename(private / "own.png")
    image = form.format(private)
    out = described(stranger, image)
    for verb in (("seams", out), ("preview", out, "a.png", "--seams"), ("preview", out, "a.png", "--weights")):
        ran = command(*verb)
        assert ran.code == 3
        assert f"it names inputs elsewhere: {image}; open them with --inputs" in ran.error
        assert command(*verb, "--inputs").code == 0
        (tmp_path / "a.png").unlink(missing_ok=True)
    origin = origin_of(str(out))
    assert origin is not None
    assert (origin.composite, origin.withheld) == (None, (image,))  # what `view` is given


def test_verify_says_what_it_opens(tmp_path: Path, command: Command) -> None:
    (tmp_path / "elsewhere").mkdir()
    image, out = tmp_path / "elsewhere" / "a.png", tmp_path / "there" / "out.ome.zarr"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(image)
    out.parent.mkdir()
    assert command("blend", image, "-o", out, "--chunk", 64, "--shard", 64).code == 0
    ran = command("verify", out, "--against-inputs", "all")
    assert ran.code == 0
    assert f"opening what {out} was made from: {image}" in ran.err


def test_a_link_beside_a_result_leads_nowhere(tmp_path: Path, stranger: Path, command: Command) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "from" / "own.png").rename(tmp_path / "private" / "own.png")
    (tmp_path / "from" / "link").symlink_to(tmp_path / "private")
    assert command("seams", described(stranger, str(tmp_path / "from" / "link" / "own.png"))).code == 3


def test_a_matrix_is_an_input_too(tmp_path: Path, stranger: Path, command: Command) -> None:
    document = json.loads((stranger / "zarr.json").read_text())
    document["attributes"]["tiledblend"]["description"]["layers"][0]["affine"] = str(tmp_path / "passwords")
    (stranger / "zarr.json").write_text(json.dumps(document))
    assert "names inputs elsewhere" in command("seams", stranger).error


def test_web_servers_are_asked_for_nothing(stranger: Path, command: Command) -> None:
    asked = list[str]()

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/seen.tif"
        out = described(stranger, address)
        for verb in (("seams", out), ("preview", out, "a.png", "--seams")):
            ran = command(*verb)
            assert ran.code == 3
            assert address in ran.error
            assert "--inputs" in ran.error
        with pytest.raises(RefusedError, match=f"{address}; open them with --inputs"):
            recomputed(str(out), 1, inputs=False)
        assert asked == []
        assert command("seams", out, "--inputs").code == 4
        assert asked != []
        server.shutdown()


def test_a_redirect_to_another_host_is_not_followed(stranger: Path, command: Command) -> None:
    asked, image = list[str](), (stranger.parent / "own.png").read_bytes()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.server.server_port}{self.path}")
            if self.path.startswith(("/away", "/moved")):
                there = f"http://127.0.0.1:{second.server_port}/a.png" if self.path.startswith("/away") else "/own.png"
                self.send_response(302)
                self.send_header("Location", there)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, _, end = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            data = image[int(start) : int(end or len(image)) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{len(image)}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Server) as first,
        ThreadingHTTPServer(("127.0.0.1", 0), Server) as second,
    ):
        for server in (first, second):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{first.server_port}"
        assert command("info", f"{base}/own.png").code == 0
        assert command("info", f"{base}/moved.png").code == 0
        for line in (
            ("info", f"{base}/away.png"),
            ("plan", f"{base}/away.png"),
            ("plan", "--job", f"{base}/away.yaml"),
            ("info", f"{base}/away.ome.zarr"),
            ("seams", described(stranger, f"{base}/away.png"), "--inputs"),
        ):
            ran = command(*line)
            assert ran.code in (3, 4), (line, ran.err)
            assert f"its server sends on to another host, 127.0.0.1:{second.server_port}" in ran.err, line
        assert not [one for one in asked if one.startswith(f"{second.server_port}/")]
        for server in (first, second):
            server.shutdown()


# --- a ledger


@pytest.mark.parametrize("how", ["mode", "owner", "link"])
def test_a_ledger_that_may_be_anothers_is_refused(tmp_path: Path, stranger: Path, command: Command, how: str) -> None:
    if how == "owner" and os.geteuid() != 0:
        pytest.skip("gives a folder to another account")
    job = (stranger.parent / "own.png", "--chunk", 32, "--shard", 32, "-o", tmp_path / "new.ome.zarr")
    ledger = tmp_path / f"new.ome.zarr{SUFFIX}"
    (tmp_path / "there").mkdir()
    ledger.symlink_to(tmp_path / "there") if how == "link" else ledger.mkdir()
    if how == "mode":
        ledger.chmod(0o777)
    elif how == "owner":
        os.chown(ledger, 12345, 12345)
        ledger.chmod(0o777)
    ran = command("blend", *job)
    assert ran.code == 3, ran.err
    assert str(ledger) in ran.error
    assert not (tmp_path / "new.ome.zarr" / "zarr.json").exists()
    assert not list(ledger.glob("job.json"))
    # a run of ours whose ledger was opened to all since, or given away
    ledger.unlink() if how == "link" else shutil.rmtree(ledger)
    assert command("blend", *job, "--part", "1/2").code == 0
    ledger.rename(tmp_path / "there" / "kept") if how == "link" else None
    if how == "link":
        ledger.symlink_to(tmp_path / "there" / "kept")
    else:
        ledger.chmod(0o777)
    if how == "owner":
        os.chown(ledger, 12345, 12345)
    for rest in (("--part", "2/2"), ("--resume",), ("--finish",)):
        ran = command("blend", *job, *rest)
        assert ran.code == 3, (rest, ran.err)
        assert "ledger" in ran.error


# --- ports


def listening(root: int) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which a process or a descendant of it listens."""
    inodes = set[str]()
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        for process in family:
            for link in Path(f"/proc/{process.pid}/fd").glob("*"):
                with suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                plain = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add((plain, int(port, 16)))
    return found


def test_an_embedded_run_opens_no_port(slides: Slides, tmp_path: Path) -> None:
    for number, flags in enumerate(((), ("--part", "1/1"))):
        seen = set[tuple[str, int]]()
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        job = ("--mask", slides.mask, *TILES, "-o", folder / "out.ome.zarr", *flags)
        with running(folder, "blend", slides.base, slides.overlay, *job) as process:
            looks = 0
            while process.poll() is None:
                seen |= listening(process.pid)
                looks += 1
                time.sleep(0.02)
            assert process.returncode == 0, process.communicate()[0]
        assert looks > 10
        assert seen == set()


def test_ports_of_worker_processes_take_nobody_without_the_runs_certificate(slides: Slides, tmp_path: Path) -> None:
    data, seen, answers = tmp_path / "data", set[tuple[str, int]](), []
    data.mkdir()
    job = ("--mask", slides.mask, *TILES, "-o", data / "out.ome.zarr", "--workers", "2")
    with running(data, "blend", slides.base, slides.overlay, *job) as process:
        while process.poll() is None:
            for place in listening(process.pid) - seen:
                seen.add(place)
                answers += [plain_answer(place), tls_answer(place)]
            time.sleep(0.05)
        assert process.returncode == 0, process.communicate()[0]
    assert {address for address, _ in seen} == {"127.0.0.1"}
    assert len(seen) == 5  # the scheduler, and two workers with a nanny each
    assert set(answers) == {b""}


def plain_answer(place: tuple[str, int]) -> bytes:
    """What a stranger hears that asks by HTTP."""
    with suppress(OSError), socket.create_connection(place, timeout=5) as link:
        link.sendall(b"GET /info/main/workers.html HTTP/1.1\r\nHost: x\r\n\r\n")
        return link.recv(100)
    return b""


def tls_answer(place: tuple[str, int]) -> bytes:
    """What a stranger hears that encrypts, but has no certificate of the run."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), socket.create_connection(place, timeout=5) as link, context.wrap_socket(link) as secure:
        secure.sendall(b"x" * 64)
        return secure.recv(100)
    return b""


def test_the_dashboard_answers_to_this_machines_name_only() -> None:
    """A page elsewhere whose name somebody's DNS leads here reads nothing."""
    pytest.importorskip("bokeh")
    with open_client(ClusterOptions(threads_per_worker=1, dashboard=True)) as client:
        port = int(client.dashboard_link.rsplit(":", 1)[1].partition("/")[0])
        assert listening(os.getpid()) == {("127.0.0.1", port)}
        for host, code in (
            (f"127.0.0.1:{port}", b"200"),
            (f"localhost:{port}", b"200"),
            (f"evil.example:{port}", b"403"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
                link.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                assert link.recv(100).split()[1] == code
