"""Clients of object stores and web servers: one per process and bucket, by obstore.

Credentials come from the environment or from the platform's own chain (an instance's or a pod's role), and stay inside
the client: a URL is all that is pickled, logged or kept. Endpoints are the environment's too (`AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from tiledblend.bytes.waiting import heard
from tiledblend.errors import ResourceError, StorageError, TiledblendError, UsageError

T = TypeVar("T")

BUCKET_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
WEB_SCHEMES = ("http", "https")
RETRY_SECONDS = 180.0
"""How long one request is tried again, unless TILEDBLEND_RETRY_SECONDS says otherwise."""
OUTAGE_SECONDS = 5.0
"""The same, while the store has just failed another request for good: a run that ends does not wait again."""
REQUEST_SECONDS = 120.0
"""How long one answer may take with its body, unless TILEDBLEND_REQUEST_SECONDS says otherwise."""
CONNECT_SECONDS = 10
METADATA_SECONDS = 3.0
"""How long Google's metadata service, which is beside the machine, may take to answer that it is there."""
CONNECTIONS = 8
_ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_BEARER_TOKEN",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN",
}
_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_", "abfss": "AZURE_"}
"""Of the variables that each scheme's client reads."""
_DOCUMENTS = ("GOOGLE_SERVICE_ACCOUNT_KEY",)
"""Of several lines, rightly."""
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|CREDENTIAL|CONNECTION_STRING|SAS", re.IGNORECASE)
_USER_INFO = re.compile(r"(\b(?!abfs)[A-Za-z][A-Za-z0-9+.-]+://)[^\s/@'\"]+@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]+://[^\s?'\"]+)\?[^\s:,;'\")]+")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed")


def scheme_of(uri: str) -> str:
    """The scheme of a URL in lower case; "" for a path.

    >>> scheme_of("S3://bucket/key"), scheme_of("/data/a.tif")
    ('s3', '')
    """
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) else ""


def path_of_file_url(url: str) -> str:
    """The path of a `file://` URL. Raises UsageError for one of another host: no path here is what it means.

    >>> path_of_file_url("file:///data/a%20b.tif"), path_of_file_url("file://localhost/data/a.tif")
    ('/data/a b.tif', '/data/a.tif')
    """
    parts = urlsplit(url)
    if parts.netloc.lower() not in ("", "localhost"):
        raise UsageError(f"{url}: names a file of the host {parts.netloc}; give the path as this machine has it")
    return unquote(parts.path)


def split_url(uri: str) -> tuple[str, str]:
    """(bucket or server, key below it) of a URL. Raises UsageError for one that could carry credentials.

    >>> split_url("s3://slides/2026/a.svs")
    ('s3://slides', '2026/a.svs')
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise UsageError(f"an address that starts with {scheme_of(uri)}:// is malformed") from None
    scheme = parts.scheme.lower()
    # The address itself is kept out of these lines: it may hold what must not be shown.
    if "@" in parts.netloc and scheme not in ("abfs", "abfss"):
        raise UsageError(f"a {scheme}:// address with a user name or password; give credentials by the environment")
    if parts.query or parts.fragment:
        raise UsageError(
            f"{scheme}://{parts.netloc}{parts.path}: an address with a query or fragment (a signed link?) would be kept"
            " in the result; give the plain address and credentials by the environment"
        )
    if not parts.netloc:
        raise UsageError(f"{uri}: names no bucket or server")
    key = parts.path.strip("/") if scheme in BUCKET_SCHEMES else unquote(parts.path).strip("/")
    if any(part in ("", ".", "..") for part in key.split("/")) and key:
        raise UsageError(f"{uri}: its path has an empty, '.' or '..' part")
    return f"{scheme}://{parts.netloc}", key


def checked_url(uri: str) -> str:
    """The URL itself. Raises UsageError for one that could carry credentials, without showing it."""
    if scheme_of(uri) == "file":
        path_of_file_url(uri)
    else:
        split_url(uri)
    return uri


def retry_seconds() -> float:
    """The budget of one request with all its repetitions. Raises UsageError for a bad TILEDBLEND_RETRY_SECONDS."""
    return _seconds("TILEDBLEND_RETRY_SECONDS", RETRY_SECONDS)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise UsageError(f"{name}={text!r} must be a number of seconds from 0 to 86400")
    return seconds


def client_of(root: str) -> Any:
    """The obstore store of a bucket or server, such as "s3://slides"; made once per process.

    Raises UsageError when the scheme is unknown or obstore is not installed, ResourceError when its settings are bad,
    StorageError when it would look for credentials where there are none.
    """
    budget = retry_seconds()
    if root in _OUTAGES:
        budget = min(budget, OUTAGE_SECONDS)
    with _MAKING:
        return _client(root, os.getpid(), budget)


class Repeating:
    """One request's budget, spent on what a client does not repeat by itself, such as an answer that broke off.

    >>> tries = Repeating()
    >>> tries.pause_after(FileNotFoundError("no such object"))  # final: nothing to wait for
    False
    """

    def __init__(self) -> None:
        self._deadline = time.monotonic() + retry_seconds()
        self._attempts = 0

    def pause_after(self, error: BaseException) -> bool:
        """Wait a little, by chance, longer each time; False when it was the last attempt."""
        if is_final(error) or time.monotonic() > self._deadline:
            return False
        time.sleep(random.uniform(0.1, 0.2) * 2 ** min(self._attempts, 6))
        self._attempts += 1
        return True


def repeated(action: Callable[[], T]) -> T:
    """The answer of a request that may be sent twice. Raises what the last attempt raised."""
    tries = Repeating()
    while True:
        try:
            return heard(action)
        except Exception as error:
            if not tries.pause_after(error):
                raise


def note_outcome(root: str, error: BaseException | None) -> None:
    """Tell how a request to a bucket or server ended, so that a lasting outage is not waited for twice."""
    if error is None or is_final(error):
        _OUTAGES.discard(root)
    else:
        _OUTAGES.add(root)


def forget_clients() -> None:
    """Make new clients from now on: the environment has changed."""
    _client.cache_clear()
    _OUTAGES.clear()


def connections() -> ThreadPoolExecutor:
    """This process's threads for requests that are under way together."""
    return _connections(os.getpid())


@lru_cache(maxsize=1)
def _connections(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="tiledblend-request")


_MAKING = threading.Lock()
_OUTAGES: set[str] = set()


def require_extra(root: str) -> None:
    """Raises UsageError where obstore is not installed."""
    if find_spec("obstore") is None:
        raise UsageError(
            f"{root}: object stores and web addresses need the cloud extra: pip install 'tiledblend[cloud]'"
        )


@lru_cache(maxsize=64)
def _client(root: str, process: int, budget: float) -> Any:
    require_extra(root)
    import obstore.store

    _require_plain_settings(root)
    _require_whole_endpoints(root)
    if root.startswith("gs://") and not (_names_google_credentials() or _on_google()):
        raise StorageError(f"{root}: no credentials were found; set {_CREDENTIALS['gs']} in the environment")
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=_seconds("TILEDBLEND_REQUEST_SECONDS", REQUEST_SECONDS)),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    }
    if _plain_http(root):
        options["allow_http"] = True
    retries = {
        # The time is what limits them.
        "max_retries": 100,
        "retry_timeout": timedelta(seconds=budget),
        # obstore adds jitter to these.
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2},
    }
    # Its overloads are by scheme, which is known only here. A web address is a plain GET: by the name of its server the
    # client would take it for a bucket, and bring the user's own endpoint and credentials.
    is_web = scheme_of(root) in WEB_SCHEMES
    make: Any = obstore.store.HTTPStore.from_url if is_web else obstore.store.from_url
    try:
        return make(root, client_options=options, retry_config=retries)
    except Exception as error:
        if "Account must be specified" in str(error):
            raise StorageError(f"{root}: no account is named; set {_CREDENTIALS['az']} in the environment") from None
        raise ResourceError(f"{root}: cannot be set up: {redacted(_first_line(error))}") from None


def _require_plain_settings(root: str) -> None:
    """Raises UsageError for a setting that cannot stand in a request: the client would end the process over it."""
    prefix = _PREFIXES.get(scheme_of(root))
    for name, value in os.environ.items():
        if prefix and name.startswith(prefix) and name not in _DOCUMENTS and not _is_plain(name, value):
            # Its value is kept out of this line.
            raise UsageError(
                f"{root}: {name} in the environment holds a line break or another character that no request may have; "
                "set it again without"
            )


def _is_plain(name: str, value: str) -> bool:
    is_of_a_request = name in _ENDPOINTS or any(name in names for names in _CREDENTIALS.values())
    return value.isprintable() and (value.isascii() or not is_of_a_request)


def _require_whole_endpoints(root: str) -> None:
    """Raises UsageError for an endpoint without http:// or https://: the client would end the process over it."""
    prefix = _PREFIXES.get(scheme_of(root))
    for name in _ENDPOINTS:
        value = os.environ.get(name)
        if prefix and name.startswith(prefix) and value is not None and scheme_of(value) not in ("http", "https"):
            # Its value is kept out of this line: it may hold what must not be shown.
            remedy = "must begin with https:// (or http://)" if value else "is empty: set it, or unset it"
            raise UsageError(f"{root}: {name} in the environment {remedy}")


def _plain_http(root: str) -> bool:
    """True where the address or the endpoint in the environment says http: whoever wrote that has asked for it."""
    if scheme_of(root) in WEB_SCHEMES:
        return scheme_of(root) == "http"
    emulator = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS] + [_service_account_endpoint()]
    return emulator or any(value.lower().startswith("http://") for value in endpoints)


def _names_google_credentials() -> bool:
    """True where the environment or the user's own file says what to send to Google, if only "nothing"."""
    names = ("SERVICE_ACCOUNT", "SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT_KEY", "APPLICATION_CREDENTIALS")
    own = Path(os.environ.get("HOME", ""), ".config", "gcloud", "application_default_credentials.json")
    return any(os.environ.get(f"GOOGLE_{name}") for name in (*names, "BEARER_TOKEN", "SKIP_SIGNATURE")) or own.exists()


def _on_google() -> bool:
    """True on a machine that has a role at Google. Asked first: the client itself would look for one for minutes."""
    name = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_ROOT") or "metadata.google.internal"
    address = os.environ.get("GCE_METADATA_IP") or "169.254.169.254"
    # The service of a machine or pod that has just started may need a moment.
    return any(_is_google_metadata(host) for host in (address, name, address, name))


def _is_google_metadata(host: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection(host, timeout=METADATA_SECONDS)
    try:
        connection.request("GET", "/", headers={"Metadata-Flavor": "Google"})
        return connection.getresponse().getheader("Metadata-Flavor") == "Google"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _service_account_endpoint() -> str:
    """What a Google service account's file or text names as its endpoint, as those of emulators do; "" for none."""
    path = os.environ.get("GOOGLE_SERVICE_ACCOUNT") or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
    try:
        account = json.loads(Path(path).read_bytes() if path else os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY", ""))
        return str(account["gcs_base_url"])
    except (OSError, ValueError, TypeError, KeyError):
        # The client says what is wrong with it.
        return ""


def is_missing(error: BaseException) -> bool:
    """True for an object that is not there, False for a bucket that is not there and for everything else."""
    return isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error))


def is_denied(error: BaseException) -> bool:
    """True for an object that may not be read; or that is not there, where nobody may list (S3 hides that, too)."""
    return _status(error) in (401, 403) and _code(str(error)) in ("", "AccessDenied")


def is_final(error: BaseException) -> bool:
    """True for an answer that trying again will not change: denied, no such bucket, no such range."""
    status = _status(error) or 0
    refused = 400 <= status < 500 and status not in (408, 409, 412, 429)
    unable = type(error).__name__ == "NotSupportedError"
    return refused or unable or isinstance(error, FileNotFoundError | NotImplementedError | TiledblendError)


def is_beyond(error: BaseException) -> bool:
    """True where the object ends before the range that was asked for (an empty one always does)."""
    return _status(error) == 416


def reason_of(error: BaseException, uri: str) -> str:
    """What went wrong and what to do, on one line, without anything that the client knows and others must not."""
    text, status = str(error), _status(error)
    if isinstance(error, TiledblendError):
        return text
    code = _code(text)
    answer = " ".join(str(part) for part in (status, code) if part)
    scheme = scheme_of(uri)
    names = _CREDENTIALS.get("az" if scheme.startswith("ab") else scheme)
    if "169.254." in text or "metadata.google" in text:
        return f"no credentials were found; set {names} in the environment"
    if code in _EXPIRED:
        return f"the credentials have expired ({answer}); renew them and run again with --resume"
    if status in (401, 403):
        hint = f"check {names} in the environment and the bucket's policy" if names else "the server wants credentials"
        return f"access denied ({answer}); {hint}"
    if _NO_BUCKET.search(text):
        return f"there is no such bucket ({answer}); create it or check the name and the endpoint"
    if isinstance(error, FileNotFoundError):
        return "no such object"
    if status is not None and (status >= 500 or status == 429):
        return f"the store keeps answering {answer}; run again with --resume when it has recovered"
    if "Range request not supported" in text:
        return (
            "the server does not serve parts of a file (HTTP ranges); copy it to this machine, or to a server that does"
        )
    if "kind: ConnectionReset" in text:
        return f"{_endpoint(text)} resets connections; run again with --resume"
    if "kind: Connect" in text:
        return f"no connection to {_endpoint(text)}; check the endpoint and the network, then run again with --resume"
    if "body error" in text:
        return f"the answers of {_endpoint(text)} break off; run again with --resume"
    if "kind: Timeout" in text:
        return f"{_endpoint(text)} did not answer in time; run again with --resume"
    return redacted(_first_line(error))


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the value of any environment variable that is named like a secret, and without what addresses
    carry besides server and path.

    >>> redacted("key abcdefgh refused", {"MY_SECRET": "abcdefgh"})
    'key *** refused'
    >>> redacted("https://me:pw@host/a.tif?sig=abc: refused", {})
    'https://***@host/a.tif?***: refused'
    >>> redacted("s3://slides/a.tif: key slides refused", {"MY_ACCESS_KEY": "slides"})
    's3://slides/a.tif: key *** refused'
    """
    text = _USER_INFO.sub(r"\1***@", text)
    text = _QUERY.sub(r"\1?***", text)
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) >= 6]
    for value in sorted(values, key=len, reverse=True):
        # Not where an address begins: a bucket may bear the name that is its key, and whoever named it knows it.
        text = re.sub(f"(?<!://){re.escape(value)}", "***", text)
    return text


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return " ".join(line.partition(": <?xml")[0].split())[:240]


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(text: str) -> str:
    """What S3 and those like it call an error."""
    return next(iter(re.findall(r"<Code>(\w+)</Code>", text)), "")


def _endpoint(text: str) -> str:
    found = re.search(r"https?://[^/\s?]+", text)
    return found[0] if found else "the store"
