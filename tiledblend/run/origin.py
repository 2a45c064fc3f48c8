"""From what a stored result was made: the job that its root attributes keep, if its inputs are still there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiledblend.bytes.objects import open_store
from tiledblend.containers.omezarr.documents import read_attributes, result_layout
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import input_fingerprints
from tiledblend.describe.job import build
from tiledblend.errors import TiledblendError


@dataclass(frozen=True)
class Origin:
    """composite: what the result was made from, None when that cannot be opened any more. note: one line for people
    about what is missing or has changed, None when all is as it was."""

    composite: Composite | None
    note: str | None


def origin_of(uri: str) -> Origin | None:
    """The origin of the result at `uri`; None when nothing that tiledblend made and finished is there."""
    if uri.lower().startswith(("http://", "https://")):
        return None  # results are not written there
    attributes = read_attributes(open_store(uri))
    layout = result_layout(attributes)
    if attributes is None or layout is None:
        return None
    own = attributes["tiledblend"]
    if not own.get("description"):
        return Origin(None, "the result does not say from what it was made: it was not written by the command line")
    try:
        composite = build(own["description"]).composite
        now = input_fingerprints(composite)
    except TiledblendError as error:
        return Origin(None, f"only the result can be shown: {error}")
    made = (layout.grid.shape, layout.channels, layout.dtype)
    if (composite.shape, composite.channels, composite.dtype.name) != made:
        return Origin(None, "only the result can be shown: its inputs are not those that it was made from")
    return Origin(composite, _changed(composite, own, now))


def _changed(composite: Composite, own: dict[str, Any], now: list[dict[str, Any]]) -> str | None:
    job = own.get("job")
    before = job.get("inputs") if isinstance(job, dict) else None
    if isinstance(job, dict) and job.get("fingerprint") == "deep" and isinstance(before, list):
        # Its content was hashed once; what is cheap to compare is the structure.
        now = [{"structure": entry["structure"]} for entry in now]
        before = [{"structure": entry.get("structure")} for entry in before]
    return None if before == now else "an input has changed since the result was made: layers and result may differ"
