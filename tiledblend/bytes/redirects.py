"""Where a web server sends who asks it. Its own places are followed by the client; another host is not ours to ask."""

from __future__ import annotations

import http.client
import ssl
from contextlib import suppress
from functools import lru_cache
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies

from tiledblend.bytes.waiting import heard
from tiledblend.errors import BadInputError

SECONDS = 5.0
REDIRECTS = (301, 302, 303, 307, 308)
USUAL_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def refuse_redirect(uri: str) -> None:
    """Raise BadInputError if the server of an `http` or `https` address answers it with another host's.

    Asked once per process and address, without following: the client that reads follows wherever it is sent. What else
    goes wrong is for that one to tell. Not asked where a proxy stands between, which decides for itself.
    """
    parts = urlsplit(uri)
    if not parts.hostname or getproxies().get(parts.scheme.lower()):
        return
    target = heard(lambda: _target_of(uri))
    if target is not None and not _is_same_server(uri, target):
        host = urlsplit(target).netloc.rpartition("@")[2]
        raise BadInputError(
            f"{uri}: its server sends on to another host, {host}; give the address there if you trust it"
        )


def _target_of(uri: str) -> str | None:
    parts = urlsplit(uri)
    assert parts.hostname is not None
    # A malformed answer, no answer, a certificate that is not believed: the client that reads says so.
    with suppress(OSError, ValueError, http.client.HTTPException):
        if parts.scheme.lower() == "https":
            context = ssl.create_default_context()
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=SECONDS, context=context
            )
        else:
            link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)
        try:
            link.request("GET", quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._"), headers={"Range": "bytes=0-0"})
            answer = link.getresponse()
            location = answer.getheader("Location")
            if answer.status in REDIRECTS and location:
                return urljoin(uri, location)
        finally:
            link.close()
    return None


def _is_same_server(one: str, other: str) -> bool:
    """The same host at the same port, or at the usual ports of http and https."""
    first, second = urlsplit(one), urlsplit(other)
    if (first.hostname or "").lower() != (second.hostname or "").lower():
        return False
    ports = [part.port or USUAL_PORTS.get(part.scheme.lower()) for part in (first, second)]
    return ports[0] == ports[1] or (ports == [80, 443])
