"""Is a stored result what its run said it was? Every object or part against its digest or checksum."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tiledblend.bytes.objects import open_store
from tiledblend.containers.ometiff.options import is_ometiff_path
from tiledblend.containers.ozx.name import is_ozx_path
from tiledblend.errors import UsageError, VerificationError

Mode = Literal["fast", "full"]


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. Keys of objects: missing; torn (wrong length); damaged (wrong hash, checksum or encoding);
    extra (not the run's). problems: lines about the result as a whole. decoded: objects whose chunks were decoded."""

    uri: str
    mode: str
    objects: int
    bytes: int
    decoded: int
    has_manifest: bool
    missing: tuple[str, ...]
    torn: tuple[str, ...]
    damaged: tuple[str, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every object is there, whole, and nothing else is."""
        return not (self.missing or self.torn or self.damaged or self.extra or self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """One line for people."""
        counts = (
            f"{len(keys)} {what} (first: {keys[0]})"
            for keys, what in ((self.missing, "missing"), (self.torn, "torn"), (self.damaged, "damaged"))
            if keys
        )
        foreign = (f"{len(self.extra)} not of this run (first: {self.extra[0]})",) if self.extra else ()
        found = "; ".join([*self.problems, *counts, *foreign]) or "all present and right"
        return f"{self.uri}: {self.objects} objects, {self.bytes} bytes: {found}"

    def require_ok(self) -> None:
        """Raise VerificationError with the summary unless `ok`."""
        if not self.ok:
            raise VerificationError(self.summary())


def verify(uri: str | os.PathLike[str], mode: Mode = "fast", *, threads: int | None = None) -> VerifyReport:
    """Check a result that tiledblend made: the report's `ok`, and what is missing, torn, damaged or extra.

    mode: "fast" looks at presence and length of what it consists of, "full" at every digest, checksum and encoding.
    Raises BadInputError if there is no such result, VerificationError if it cannot be told, UsageError.

    >>> import numpy as np, tempfile, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> report = tb.write(tb.Composite([tb.Layer(image)]), tempfile.mkdtemp() + "/out.ome.zarr")
    >>> tb.verify(report.uri, "full").ok
    True
    """
    uri = os.fspath(uri)
    if mode not in ("fast", "full"):
        raise UsageError(f"verify mode {mode!r} is not known; use fast or full")
    if is_ometiff_path(uri):
        from tiledblend.containers.ometiff.seal import verify_ometiff

        return verify_ometiff(uri, mode)
    if is_ozx_path(uri):
        from tiledblend.containers.ozx.verify import verify_ozx

        return verify_ozx(uri, mode)
    from tiledblend.containers.omezarr.verify import verify_zarr

    return verify_zarr(open_store(uri), uri, mode, threads=threads)
