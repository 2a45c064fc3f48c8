"""Flags become the mapping that a job file holds, and the mapping a job."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.buckets import checked_url, scheme_of
from tiledblend.cli.options import CLUSTER_KEYS, LAYER_KEYS, OUTPUT_KEYS, RESOLUTION_KEYS, flag_of
from tiledblend.cli.values import (
    parse_affine,
    parse_canvas,
    parse_color,
    parse_levels,
    parse_mask_values,
    parse_match,
    parse_numbers,
    parse_offset,
)
from tiledblend.errors import UsageError

if TYPE_CHECKING:
    from tiledblend.describe.job import Job
    from tiledblend.run.ometiff import Storing
    from tiledblend.run.options import ClusterOptions
    from tiledblend.run.origin import Origin

NOT_OUTPUTS = re.compile(
    r"\.(svs|ndpi|scn|mrxs|bif|qptiff|czi|vms|dcm|isyntax|lif|nd2|vsi|btf|tf8"
    r"|webp|bmp|gif|jp2|jxl|avif|heic|pdf|h5|hdf5|npy|npz|zip|ya?ml|json|geojson|xml|html?)$",
    re.IGNORECASE,
)


def job_mapping(flags: dict[str, Any]) -> dict[str, Any]:
    """The job's mapping that these flags say, every path absolute. Raises UsageError."""
    from tiledblend.describe import job as jobs

    if flags["job_path"]:
        others = (
            "classes",
            "fill",
            "series",
            "channels",
            "base",
            "layers",
            "mode",
            "icc",
            "canvas",
            "background",
            "pixel_size_um",
        )
        given = [name for name in (*LAYER_KEYS, *others) if flags[name]]
        if given:
            raise UsageError(f"--job says the layers already; leave out {', '.join(flag_of(name) for name in given)}")
        mapping = jobs.load_job(flags["job_path"])
    else:
        mapping = jobs.with_absolute_paths(_mapping_of_layer_flags(flags), Path.cwd())
    if flags["allow_sparse"]:
        mapping = jobs.with_sparse_allowed(mapping)
    if flags["rgb"]:
        mapping = jobs.with_rgb_said(mapping)
    mapping = _at_resolution(mapping, flags)
    output = dict(mapping.get("output", {}))
    output |= {key: flags[key] for key in OUTPUT_KEYS if flags.get(key) is not None}
    if flags.get("levels") is not None:
        output["levels"] = parse_levels(flags["levels"])
    if flags.get("output") is not None:
        output["path"] = absolute(checked_output(flags["output"] or None))
    return mapping | ({"output": output} if output else {})


def _at_resolution(mapping: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The mapping with --level or --mpp, which win over the job's own."""
    given = {key: flags[key] for key in RESOLUTION_KEYS if flags[key] is not None}
    return {key: value for key, value in mapping.items() if not given or key not in RESOLUTION_KEYS} | given


def absolute(path: str) -> str:
    """The path as a job holds it: a checked address, or from the root."""
    return checked_url(path) if scheme_of(path) else os.path.abspath(os.path.expanduser(path))


def _mapping_of_layer_flags(flags: dict[str, Any]) -> dict[str, Any]:
    from tiledblend.describe.schema import check_layer
    from tiledblend.describe.text import parse_mapping

    images = [path for path in (flags["base"], flags["overlay"]) if path]
    layers: list[dict[str, Any]] = [{"image": path} for path in images]
    if flags["fill"] is not None:
        if len(images) != 1:
            raise UsageError("--fill is laid over BASE in place of OVERLAY; give BASE alone")
        layers.append({"color": parse_color(flags["fill"])})
    top = {key: flags[flag] for flag, key in LAYER_KEYS.items() if flags[flag] is not None}
    if top and not layers:
        raise UsageError(
            f"{flag_of(next(f for f in LAYER_KEYS if flags[f] is not None))} belongs to an image; give BASE"
        )
    if "offset" in top:
        top["offset"] = parse_offset(top["offset"])
    if "affine" in top:
        top["affine"] = parse_affine(top["affine"])
    if "match" in top or "match_ring" in top:
        top["match"] = parse_match(top.get("match"), top.pop("match_ring", None))
    if "mask_values" in top:
        top["mask_values"] = parse_mask_values(top["mask_values"])
    if flags["classes"]:
        if top.get("mask", "alpha") == "alpha":
            raise UsageError("--class picks outlines of a mask; give --mask FILE.geojson")
        top["mask"] = {"path": top["mask"], "classes": list(flags["classes"])}
    if layers:
        layers[-1] |= top
    if flags["fit"] not in (None, "scene") and flags["canvas"] and len(layers) > 1:
        layers[0]["fit"] = flags["fit"]
    _select(layers, flags)
    if flags["pixel_size_um"] is not None:
        _state_pixel_sizes(layers, flags["pixel_size_um"])
    for number, text in enumerate(flags["layers"], 1):
        layer = parse_mapping(text, where=f"--layer {number}")
        check_layer(layer, where=f"--layer {number}")
        layers.append(layer)
    if not layers:
        raise UsageError("nothing to blend; give BASE and OVERLAY, --layer, or --job FILE")
    mapping: dict[str, Any] = {"layers": layers}
    for key in ("mode", "icc"):
        if flags[key]:
            mapping[key] = flags[key]
    if flags["canvas"]:
        mapping["canvas"] = parse_canvas(flags["canvas"])
    if flags["background"] is not None:
        values = parse_numbers(flags["background"], "--background", float, None)
        mapping["background"] = values[0] if len(values) == 1 else values
    return mapping


def _select(layers: list[dict[str, Any]], flags: dict[str, Any]) -> None:
    """--series (of BASE, of OVERLAY; one number is both's) and --channels (of both)."""
    images = [layer for layer in layers if "image" in layer]
    for name in ("series", "channels"):
        if flags[name] is not None and not images:
            raise UsageError(f"{flag_of(name)} belongs to an image; give BASE")
    if flags["series"] is not None:
        numbers = parse_numbers(flags["series"], "--series", int, None)
        if len(numbers) > len(images):
            raise UsageError(f"--series {flags['series']!r} has {len(numbers)} numbers for {len(images)} images")
        for number, layer in enumerate(images):
            layer["image"] = {"path": layer["image"], "series": numbers[min(number, len(numbers) - 1)]}
    if flags["channels"] is not None:
        kept = parse_numbers(flags["channels"], "--channels", int, None)
        for layer in images:
            image = layer["image"]
            layer["image"] = {**(image if isinstance(image, dict) else {"path": image}), "channels": kept}


def _state_pixel_sizes(layers: list[dict[str, Any]], text: str) -> None:
    """Of BASE and OVERLAY; one number is both's."""
    sizes = parse_numbers(text, "--pixel-size-um", float, None)
    if len(sizes) > max(1, len(layers)) or not layers:
        raise UsageError(f"--pixel-size-um {text!r} has {len(sizes)} numbers for {len(layers)} images")
    for number, layer in enumerate(layer for layer in layers if "image" in layer):
        layer["pixel_size_um"] = sizes[min(number, len(sizes) - 1)]


def built(flags: dict[str, Any]) -> Job:
    """The job that these flags say."""
    from tiledblend.describe import job as jobs

    mapping, where = job_mapping(flags), flags["job_path"] or "flags"
    if any(layer.get("color") == "auto" for layer in mapping["layers"]):
        from tiledblend.compose.glass import with_colours_settled

        mapping = with_colours_settled(mapping, where=where)
    return jobs.build(mapping, where=where)


def looked_at(flags: dict[str, Any], *, inputs: bool) -> tuple[str | None, Origin]:
    """A result that BASE alone names, with what it was made from; or (None, a planned composite)."""
    from tiledblend.run.origin import Origin, origin_of

    only_base = flags["base"] and not any(value for name, value in flags.items() if name != "base")
    path = absolute(flags["base"]) if only_base else None
    origin = origin_of(path, inputs=inputs) if path else None
    if origin is not None:
        return path, origin
    return None, Origin(built(flags).composite, None)


def cluster_of(flags: dict[str, Any]) -> ClusterOptions:
    """Where these flags say that it runs."""
    from tiledblend.run.options import ClusterOptions

    return ClusterOptions(**{key: flags[key] for key in CLUSTER_KEYS})


def checked_output(path: str | None) -> str:
    """An output that is given and that something can be written to; else UsageError."""
    if path is None:
        raise UsageError("no output; give -o OUT.ome.zarr")
    if NOT_OUTPUTS.search(path):
        raise UsageError(
            f"{path}: cannot be written in this format; use .ome.tif (QuPath and other slide viewers open it) or "
            ".ome.zarr, or .png, .jpg, .tif for small results"
        )
    return path


def is_image(path: str) -> bool:
    """True where the output is one small picture."""
    from tiledblend.look.pictures import is_image_path

    return is_image_path(path)


def storing_of(job: Job) -> Storing:
    """How the job's OME-TIFF is to be stored."""
    from tiledblend.run.ometiff import Storing

    said = job.mapping.get("output", {})
    return Storing(job.compression, job.keep_levels, said.get("chunk"), said.get("shard"))
