"""From what a stored result was made: the job that its root attributes keep, if its inputs are still there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tiledblend.bytes.archive_objects import open_result
from tiledblend.bytes.buckets import path_of_file_url, scheme_of
from tiledblend.containers.omezarr.documents import read_attributes, result_layout
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import input_fingerprints
from tiledblend.describe.job import build
from tiledblend.describe.schema import check
from tiledblend.errors import TiledblendError


@dataclass(frozen=True)
class Origin:
    """composite: what the result was made from, None when that cannot be opened any more. note: one line for people
    about what is missing or has changed, None when all is as it was. withheld: inputs elsewhere, for which nobody was
    asked yet."""

    composite: Composite | None
    note: str | None
    withheld: tuple[str, ...] = ()


def origin_of(uri: str, *, inputs: bool = False) -> Origin | None:
    """The origin of the result at `uri`; None when nothing that tiledblend made and finished is there.

    inputs: open its inputs wherever they lie. Else those below the folder that the result lies in: a result may be a
    stranger's, and name what is not for him to choose.
    """
    if uri.lower().startswith(("http://", "https://")):
        return None  # results are not written there
    attributes = read_attributes(open_result(uri))
    layout = result_layout(attributes)
    if attributes is None or layout is None:
        return None
    own = attributes["tiledblend"]
    if not own.get("description"):
        return Origin(None, "the result does not say from what it was made: it was not written by the command line")
    try:
        check(own["description"], where=uri)
        if not inputs and (elsewhere := inputs_elsewhere(uri, own["description"])):
            return Origin(None, f"it names inputs elsewhere: {listed(elsewhere)}; open them with --inputs", elsewhere)
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


MOST_LISTED = 6


def listed(paths: tuple[str, ...]) -> str:
    """The first few of them."""
    more = len(paths) - MOST_LISTED
    return ", ".join(paths[:MOST_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def inputs_named(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths and addresses that a description, of the schema's shape, would have opened, each once."""
    return tuple(dict.fromkeys(_named(description)))


def inputs_elsewhere(uri: str, description: Mapping[str, Any]) -> tuple[str, ...]:
    """Those inputs that do not lie below the folder in which the result at `uri` lies."""
    return tuple(path for path in inputs_named(description) if not _is_beside(path, uri))


def _named(description: Mapping[str, Any]) -> Iterator[str]:
    canvas = description.get("canvas") or {}
    keys = ("image", "mask", "affine")
    for source in [layer.get(key) for layer in description["layers"] for key in keys] + [canvas.get("like")]:
        path = source.get("path", source.get("matrix")) if isinstance(source, Mapping) else source
        if isinstance(path, str) and path != "alpha":
            yield path


def _is_beside(path: str, uri: str) -> bool:
    folder = os.path.dirname(_plain(uri).rstrip("/"))
    if scheme_of(_plain(path)) or scheme_of(folder):
        return _plain(path).startswith(f"{folder}/") and bool(scheme_of(folder))
    return os.path.commonpath([os.path.realpath(_plain(path)), os.path.realpath(folder)]) == os.path.realpath(folder)


def _plain(path: str) -> str:
    """A file's path for its URL."""
    return path_of_file_url(path) if scheme_of(path) == "file" else path
