"""Clients of object stores and web servers: one per process and bucket, by obstore.

Credentials come from the environment or from the platform's own chain (an instance's or a pod's role), and stay inside
the client: a URL is all that is pickled, logged or kept. Endpoints are the environment's too (`AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from tiledblend.errors import ResourceError, UsageError

BUCKET_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
WEB_SCHEMES = ("http", "https")
MAX_RETRIES = 8
RETRY_SECONDS = 180
REQUEST_SECONDS = 120
CONNECT_SECONDS = 10
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
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN",
}
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|CREDENTIAL|CONNECTION_STRING|SAS", re.IGNORECASE)
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed")


def scheme_of(uri: str) -> str:
    """The scheme of a URL in lower case; "" for a path.

    >>> scheme_of("S3://bucket/key"), scheme_of("/data/a.tif")
    ('s3', '')
    """
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) else ""


def split_url(uri: str) -> tuple[str, str]:
    """(bucket or server, key below it) of a URL. Raises UsageError for one that could carry credentials.

    >>> split_url("s3://slides/2026/a.svs")
    ('s3://slides', '2026/a.svs')
    """
    parts = urlsplit(uri)
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


def client_of(root: str) -> Any:
    """The obstore store of a bucket or server, such as "s3://slides"; made once per process.

    Raises UsageError when the scheme is unknown or obstore is not installed, ResourceError when its settings are bad.
    """
    return _client(root, os.getpid())


@lru_cache(maxsize=64)
def _client(root: str, process: int) -> Any:
    try:
        import obstore.store
    except ImportError:
        raise UsageError(
            f"{root}: object stores and web addresses need the cloud extra: pip install 'tiledblend[cloud]'"
        ) from None
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    }
    if _plain_http(root):
        options["allow_http"] = True
    retries = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        # obstore adds jitter to these.
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2},
    }
    # Its overloads are by scheme, which is known only here.
    make: Any = obstore.store.from_url
    try:
        return make(root, client_options=options, retry_config=retries)
    except Exception as error:
        raise ResourceError(f"{root}: cannot be set up: {redacted(_first_line(error))}") from None


def _plain_http(root: str) -> bool:
    """True where the address or the endpoint in the environment says http: whoever wrote that has asked for it."""
    emulator = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS]
    return root.startswith("http://") or emulator or any(value.lower().startswith("http://") for value in endpoints)


def is_missing(error: BaseException) -> bool:
    """True for an object that is not there, False for a bucket that is not there and for everything else."""
    return isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)


def is_final(error: BaseException) -> bool:
    """True for an answer that trying again will not change: denied, no such bucket."""
    return _status(error) in (400, 401, 403, 404) or isinstance(error, FileNotFoundError)


def reason_of(error: BaseException, uri: str) -> str:
    """What went wrong and what to do, on one line, without anything that the client knows and others must not."""
    text, status = str(error), _status(error)
    code = next(iter(re.findall(r"<Code>(\w+)</Code>", text)), "")
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
    if code == "NoSuchBucket" or "ContainerNotFound" in text:
        return f"there is no such bucket ({answer}); create it or check the name and the endpoint"
    if isinstance(error, FileNotFoundError):
        return "no such object"
    if status is not None and (status >= 500 or status == 429):
        return f"the store keeps answering {answer}; run again with --resume when it has recovered"
    if "kind: Connect" in text:
        return f"no connection to {_endpoint(text)}; check the endpoint and the network, then run again with --resume"
    if "kind: Timeout" in text:
        return f"{_endpoint(text)} did not answer in time; run again with --resume"
    return redacted(_first_line(error))


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the value of any environment variable that is named like a secret.

    >>> redacted("key abcdefgh refused", {"MY_SECRET": "abcdefgh"})
    'key *** refused'
    """
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) >= 6]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return " ".join(line.partition(": <?xml")[0].split())[:240]


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _endpoint(text: str) -> str:
    found = re.search(r"https?://[^/\s?]+", text)
    return found[0] if found else "the store"
