"""Google Cloud Storage's XML API before an S3 store: what differs between the two is translated, the rest passes.

Of https://cloud.google.com/storage/docs/xml-api/reference-headers: the bearer token, the precondition that an object is
not there yet, users' metadata and generations; and 404, not 204, for deleting what is not there.
"""

from __future__ import annotations

import hashlib
import http.client
from dataclasses import dataclass
from urllib.parse import quote

from object_stores import Headers, Proxy

_META = ("x-goog-meta-", "x-amz-meta-")


@dataclass
class GoogleDialect(Proxy):
    """Before a store that wants no signature. token: the only one that is let in."""

    token: str = ""

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """As Google answers; 400 for what is not translated, so that nothing passes unnoticed."""
        given = {name.lower(): value for name, value in headers}
        if "authorization" not in given:
            return 403, "AccessDenied"
        if given["authorization"] != f"Bearer {self.token}":
            return 401, "AuthenticationRequired"
        known = {"x-goog-if-generation-match": "0"}
        unknown = [name for name, value in given.items() if _is_google(name) and known.get(name) != value]
        if unknown or method == "POST":
            return 400, "NotImplemented"
        return (404, "NoSuchKey") if method == "DELETE" and not self._exists(path) else None

    def sent(self, headers: Headers) -> Headers:
        """In S3's words, without the token."""
        return [_to_s3(name.lower(), value) for name, value in headers if name.lower() != "authorization"]

    def answered(self, headers: Headers) -> Headers:
        """In Google's words. A generation is made of the ETag: the store behind has none."""
        told = [(name.lower().replace(*reversed(_META)), value) for name, value in headers]
        tags = [value for name, value in told if name == "etag"]
        generations = [int.from_bytes(hashlib.sha256(tag.encode()).digest()[:6]) for tag in tags]
        plain = [(name, value) for name, value in told if not name.startswith("x-amz-")]
        return plain + [("x-goog-generation", str(number)) for number in generations]

    def _exists(self, path: str) -> bool:
        connection = http.client.HTTPConnection(self.upstream.removeprefix("http://"), timeout=30)
        try:
            connection.request("HEAD", quote(path))
            return connection.getresponse().status == 200
        finally:
            connection.close()


def _is_google(name: str) -> bool:
    return name.startswith("x-goog-") and not name.startswith(_META[0])


def _to_s3(name: str, value: str) -> tuple[str, str]:
    return ("if-none-match", "*") if name == "x-goog-if-generation-match" else (name.replace(*_META), value)
