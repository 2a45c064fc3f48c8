"""The report of a run as one self-contained HTML file: what a methods section needs, and what a reader would ask."""

from __future__ import annotations

import base64
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tiledblend import __version__
from tiledblend.bytes.buckets import redacted
from tiledblend.bytes.new_file import refuse_existing, write_new
from tiledblend.compose.composed import canvas_views
from tiledblend.compose.scene import Scene, decide
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import LIBRARIES, fingerprint, sources_of, stored_paths
from tiledblend.describe.job import Job, with_matches
from tiledblend.describe.publishing import text_without_folders
from tiledblend.errors import StorageError, TiledblendError, UsageError
from tiledblend.look.lines import amount, four_digits
from tiledblend.look.methods import Made, file_name, methods_text
from tiledblend.look.preview import picture_png
from tiledblend.look.seams import Seam, Step, measure_seams
from tiledblend.run.origin import inputs_named
from tiledblend.sources import open_source
from tiledblend.sources.base import RasterSource

PICTURE_PX = 300
MOST_LAYERS_DRAWN = 6
_DEFAULTS: dict[str, Any] = {
    "mask": None,
    "mask_values": "auto",
    "invert": False,
    "grow": None,
    "opacity": 1.0,
    "offset": [0, 0],
    "fit": None,
    "affine": None,
    "pixel_size_um": None,
    "series": None,
    "level": 0,
    "channels": None,
    "plane": [],
    "allow_sparse": False,
}


_MODES = {
    "over": "From the bottom: out = w · layer + (1 − w) · out.",
    "average": "Σ w · layer / Σ w.",
    "stack": "The channels of all layers, each layer alone: w · layer + (1 − w) · background.",
}


def check_report_path(path: str | os.PathLike[str]) -> None:
    """Raises UsageError for another ending than .html, RefusedError when something is there, StorageError when its
    folder is missing: before the run, which may take hours."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: a report is a web page; name it .html")
    refuse_existing(path)


def write_report(
    path: str | os.PathLike[str],
    job: Job,
    made: Made,
    *,
    threads: int = 2,
    no_paths: bool = False,
    scene: Scene | None = None,
) -> int:
    """Write the report of a finished run as a new file; returns its bytes. no_paths: files without their folders.
    scene: of the job, where it is decided already.

    Reads the inputs' and the result's coarsest levels and, for the seams, a bounded sample of their pixels. Raises
    RefusedError, StorageError; the result is complete then.
    """
    page = _rendered(job, scene or decide(job.composite), made, threads)
    if no_paths:
        from markupsafe import escape

        named = [*stored_paths(job.composite), made.uri, *inputs_named(job.mapping)]
        page = text_without_folders(page, [form for name in named for form in (name, str(escape(name)))])
    try:
        return write_new(path, page.encode(errors="replace"))
    except StorageError as error:
        raise StorageError(f"{error}; the result {made.uri} is complete, only its report is missing") from error


def _rendered(job: Job, scene: Scene, made: Made, threads: int) -> str:
    from jinja2 import Environment

    composite = scene.composite
    known = fingerprint(composite)
    template = files("tiledblend.look").joinpath("record.html").read_text("utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(template)
    return page.render(
        title=made.uri.rstrip("/").rpartition("/")[2],
        version=__version__,
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        methods=without_secrets(methods_text(scene, made)),
        pictures=list(_pictures(scene, made)),
        inputs=[_input(s, f) for s, f in zip(sources_of(composite), known["inputs"], strict=True)],
        mode=_MODES[composite.mode],
        layers=[_layer(layer) for layer in known["layers"]],
        seams=[_seam(seam) for seam in measure_seams(scene, threads=threads) if seam.pairs],
        tables=[
            ("Result", list(_result_rows(composite, made))),
            ("Run", list(_run_rows(made))),
            ("Software", list(_software_rows())),
        ],
        job=without_secrets(_yaml(with_matches(job.mapping, composite))),
    )


def _yaml(mapping: dict[str, Any]) -> str:
    """One line a value, however long."""
    return str(yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, width=math.inf))


def without_secrets(text: str) -> str:
    """The text without user names and passwords in addresses, their queries (signatures), and secrets of the
    environment.

    >>> without_secrets("read s3://key:secret@bucket/a.tif and https://h/a.tif?X-Signature=1 again")
    'read s3://***@bucket/a.tif and https://h/a.tif?*** again'
    """
    text = re.sub(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", r"\1***@", text, flags=re.IGNORECASE)
    text = re.sub(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"]+\?)[^\s'\"]+", r"\1***", text, flags=re.IGNORECASE)
    return redacted(text)


# --- tables


def _input(source: RasterSource, known: dict[str, Any]) -> dict[str, str]:
    size = "" if source.pixel_size_um is None else f", {source.pixel_size_um[1]:.4g} µm/px"
    height, width = source.shape
    stored = [amount(known["size"])] if isinstance(known.get("size"), int) else []
    when = known.get("modified")
    if isinstance(when, dict):
        when = when["documents"]
    if isinstance(when, int | float) and when:
        stored.append(
            "changed " + time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when / 1e9 if when > 1e12 else when))
        )
    elif when or known.get("etag"):
        stored.append(str(when or known["etag"]))
    return {
        "name": without_secrets(source.name),
        "image": f"{height:,} × {width:,} px (y × x), {source.channels} of {source.dtype.name}{size}; "
        f"{source.info.format}, {source.info.compression}",
        "stored": ", ".join(stored) or "in memory",
        "digest": str(known.get("structure", "")),
    }


def _layer(keys: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of a layer as its fingerprint has them, those left at their defaults left out."""
    rows = []
    for key, value in keys.items():
        if key == "feather":
            if (shown := _feather(value)) is not None:
                rows.append((key, shown))
        elif key in ("image", "mask") and isinstance(value, dict):
            chosen = [f"{k} {v}" for k, v in value.items() if k not in ("path", "input") and v != _DEFAULTS.get(k)]
            rows.append((key, without_secrets(value["path"]) + (f" ({', '.join(chosen)})" if chosen else "")))
        elif value != _DEFAULTS.get(key) and _counts(key, keys):
            rows.append((key, str(value)))
    return rows


def _feather(value: dict[str, Any]) -> str | None:
    """As a flag says it; None for a hard edge."""
    if "bands" in value:
        return f"bands:{value['bands']}"
    if value["ksize"]:
        return f"ksize:{value['ksize']}"
    return f"{value['sigma']:g}{value['unit']}" if value["sigma"] else None


def _counts(key: str, keys: dict[str, Any]) -> bool:
    """False for a parameter of something that the layer does not have."""
    feathered = _feather(keys["feather"]) is not None
    return {"mask_frame": bool(keys["mask"]), "feather_side": feathered}.get(key, True)


def _seam(seam: Seam) -> dict[str, Any]:
    def told(step: Step | None) -> str:
        return "" if step is None else f"{four_digits(step.mean)} / {four_digits(step.p99)}"

    pairs = f"{seam.pairs:,}{' (sample)' if seam.sampled else ''}"
    return {"layer": seam.layer, "cells": [pairs, told(seam.before), told(seam.after), told(seam.images)]}


def _result_rows(composite: Composite, made: Made) -> Iterator[tuple[str, str]]:
    height, width = composite.shape
    yield "where", without_secrets(made.uri)
    yield "stored as", made.kind
    yield "size", f"{height:,} × {width:,} px (y × x), {composite.channels} channels of {composite.dtype.name}"
    size = composite.grid.pixel_size_um
    yield "pixel size", "not known" if size is None else f"{size[0]:.6g} × {size[1]:.6g} µm (y × x)"
    names = composite.grid.channel_names
    if names:
        yield "channels", ", ".join(names)
    if "objects" in made.facts:
        yield "objects", f"{made.facts['objects']:,}"
    yield "bytes", f"{made.facts['bytes_written']:,}"


def _run_rows(made: Made) -> Iterator[tuple[str, str]]:
    facts = made.facts
    seconds, pixels = facts["seconds"], facts["pixels"]
    resumed = facts.get("resumed_tiles", 0)
    idle = facts.get("tiles") == 0
    rate = "" if resumed or idle else f", {pixels / 1e6 / max(seconds, 1e-9):,.0f} Mpx/s"
    yield "time", f"{seconds:,.1f} s{rate}" + (", all tiles were complete already, nothing computed" if idle else "")
    if "tiles" in facts:
        yield "tiles", f"{facts['tiles']:,} made" + (f", {resumed:,} by earlier drivers" if resumed else "")
    if "chunks" in facts and not idle:
        told = {"copied": "copied from one layer", "blended": "blended", "empty": "empty"}
        yield "chunks", ", ".join(f"{facts['chunks'][key]:,} {words}" for key, words in told.items())
        yield "background", f"{facts['background_pixels']:,} px where no layer had weight"
    for warning in facts.get("warnings", ()):
        yield "note", without_secrets(warning)


def _software_rows() -> Iterator[tuple[str, str]]:
    yield "tiledblend", __version__
    yield "Python", platform.python_version()
    for library in (*LIBRARIES, "dask", "distributed"):
        yield library, version(library)
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


# --- pictures


def _pictures(scene: Scene, made: Made) -> Iterator[dict[str, Any]]:
    views, composite = canvas_views(scene), scene.composite
    drawn: list[tuple[str, RasterSource]] = []
    for index, layer in list(enumerate(composite.layers))[:MOST_LAYERS_DRAWN]:
        drawn.append((f"layer {index}: {file_name(layer.image)}", views.images[index]))
        weight = views.weights[index]
        if weight is not None:
            drawn.append((f"weight of layer {index}", weight))
    try:
        drawn.append(("result", open_source(made.uri)))
    except TiledblendError:
        drawn.append(("result", views.result))
    for caption, source in drawn:
        edges_of = views if caption == "result" else None
        png, (height, width) = picture_png(source, PICTURE_PX, edges_of, composite.grid.pixel_size_um)
        data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        yield {"caption": without_secrets(caption), "data": data, "width": width, "height": height}
