"""docs/job.md, made from the schema: python tests/job_page.py >docs/job.md"""

from __future__ import annotations

import json
from typing import Any

from tiledblend.cli.options import LAYER_KEYS, OUTPUT_KEYS, RESOLUTION_KEYS
from tiledblend.describe.schema import schema

FLAGS = {
    **{key: f"--{flag.replace('_', '-')}" for flag, key in LAYER_KEYS.items()},
    **{key: f"--{key.replace('_', '-')}" for key in (*OUTPUT_KEYS, *RESOLUTION_KEYS, "mode", "canvas", "background")},
    "color": "--fill",
    "classes": "--class",
    "layers": "--layer",
    "series": "--series",
    "channels": "--channels",
    "allow_sparse": "--allow-sparse",
    "rgb": "--rgb",
    "image": "BASE OVERLAY",
    "pixel_size_um": "--pixel-size-um",
}

INTRODUCTION = """# The job file

A job says in YAML or JSON what flags say, and more: `tiledblend blend --job job.yaml -o out.ome.zarr` (also `plan`,
`preview`, `view`, `seams`). Every flag that decides pixels is a key here, and a result keeps its own job. Paths are
relative to the job file's folder. `tiledblend --schema` prints the JSON Schema that a job is held to; this page is made
from it.

```yaml
layers:                                  # bottom first
  - image: base.svs
  - image: overlay.ome.tif
    mask: {path: regions.geojson, classes: [Tumor]}
    grow: 4um
    feather: 8um
  - {image: detail.tif, offset: [12000, 30500], opacity: 0.6}
  - {color: auto, mask: pen.geojson}     # a colour in place of an image
output: {path: out.ome.tif, compression: "jpeg:85"}
```

## What a result tells of its inputs

An OME-Zarr keeps its job and, of every input, path or address, size, time of change and a digest of its structure, in
the root's attributes under `tiledblend` (with `--deep-fingerprint` a digest of its content); its `--report` tells them
too. An OME-TIFF keeps none of it. For data that will be published, `--no-paths` leaves the folders out: names and
digests stay. Such a result is looked at and verified as ever; what reads its inputs again (`verify --against-inputs`,
`--reuse`) then looks for their names in the folder that it runs in. No result and no message holds credentials.
"""


def job_page() -> str:
    """The page's text."""
    known = schema()
    top, definitions = known["properties"], known["$defs"]
    canvas: dict[str, Any] = {}
    for form in top["canvas"]["oneOf"]:
        canvas |= form["properties"]
    source = definitions["source"]["oneOf"][1]["properties"]
    sections = [
        ("Of the job", {key: value for key, value in top.items() if key != "output"}, ""),
        ("Of a layer", definitions["layer"]["properties"], "Keys of each entry of `layers`."),
        (
            "Of an image or mask",
            source,
            "`image: slide.svs` is short for `image: {path: slide.svs}`; the same of `mask`.",
        ),
        ("Of the canvas", canvas, ""),
        ("Of the output", top["output"]["properties"], ""),
    ]
    parts = [INTRODUCTION]
    for heading, keys, words in sections:
        rows = [_row(key, value, definitions, heading) for key, value in keys.items()]
        head = ["| key | meaning | values | default | example | flag |", "|---|---|---|---|---|---|"]
        parts.append("\n".join([f"## {heading}", "", *([words, ""] if words else []), *head, *rows, ""]))
    return "\n".join(parts)


def _row(key: str, value: dict[str, Any], definitions: dict[str, Any], heading: str) -> str:
    named = definitions[value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
    known = named | value
    example = known.get("examples", [None])[0]
    cells = [
        f"`{key}`",
        known["description"],
        _values(known),
        "" if known.get("default") is None else f"`{_yaml(known['default'])}`",
        f"`{key}: {_yaml(example)}`",
        "" if heading in ("Of the canvas",) or key not in FLAGS else f"`{FLAGS[key]}`",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(known: dict[str, Any]) -> str:
    if "x-forms" in known:
        return str(known["x-forms"])
    if "enum" in known:
        words = [value for value in known["enum"] if isinstance(value, str)]
        return ", ".join(words or map(str, known["enum"]))
    kind = {"integer": "a whole number", "number": "a number", "boolean": "true, false", "string": "text"}
    limits = [
        f"from {known['minimum']}" if "minimum" in known else "",
        f"to {known['maximum']}" if "maximum" in known else "",
    ]
    limits += ["above 0"] if known.get("exclusiveMinimum") == 0 else []
    said = kind.get(known.get("type", ""), {"array": "a list", "object": "a mapping"}.get(known.get("type", ""), ""))
    return " ".join([said, *filter(None, limits)])


def _yaml(value: Any) -> str:
    """As one writes it in YAML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        return (
            json.dumps(value) if value.startswith("#") or value.replace(".", "").isdigit() or ": " in value else value
        )
    return json.dumps(value)


if __name__ == "__main__":
    print(job_page(), end="")
