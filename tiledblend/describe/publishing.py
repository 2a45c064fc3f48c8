"""What a result says of its inputs, without the folders that they lie in: for data that will be published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_PLACES = ("path", "uri", "image", "mask", "like", "affine", "matrix")
"""Keys of a job and of a fingerprint whose text is a path or an address."""
_LINES = ("changed",)
"""Keys of lists of lines in which paths may stand."""
_PATH = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z][A-Za-z0-9+.-]*://|/)\S*/(?=[^/\s])")


def without_folders(document: Any) -> Any:
    """The document (a job's mapping or a fingerprint) with file names in place of paths and addresses.

    >>> without_folders({"layers": [{"image": "/p/smith/a.svs", "mask": "alpha"}], "output": {"path": "s3://b/k/o.zarr"}})
    {'layers': [{'image': 'a.svs', 'mask': 'alpha'}], 'output': {'path': 'o.zarr'}}
    """
    if isinstance(document, Mapping):
        return {
            key: _name(value)
            if key in _PLACES and isinstance(value, str)
            else [_PATH.sub("", line) for line in value]
            if key in _LINES
            else without_folders(value)
            for key, value in document.items()
        }
    return [without_folders(value) for value in document] if isinstance(document, (list, tuple)) else document


def text_without_folders(text: str, paths: Iterable[str]) -> str:
    """A text in which the folder of each of these paths and addresses is left out, wherever it stands.

    >>> text_without_folders("mask /p/smith/m.tif: 2 levels", ["/p/smith/m.tif"])
    'mask m.tif: 2 levels'
    """
    folders = {path[: len(path) - len(_name(path))] for path in paths}
    for folder in sorted(folders - {"", "/"}, key=len, reverse=True):
        text = text.replace(folder, "")
    return text


def _name(path: str) -> str:
    """The last part of a path or address; what has none stays.

    >>> _name("https://host/a/b.zarr/"), _name("memory:array"), _name("alpha")
    ('b.zarr/', 'memory:array', 'alpha')
    """
    return re.sub(r"^.*/(?=[^/])", "", path)
