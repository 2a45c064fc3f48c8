"""The files that one slide consists of: the one that is opened, and those beside it that hold its pixels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tiledblend.errors import BadInputError
from tiledblend.sources.slides.vendors import dicom_files, series_of

_MOST_FILES = 4096
_MAX_INI = 1 << 20


@dataclass(frozen=True, slots=True)
class SlideFiles:
    """main: what OpenSlide opens. others: what else holds pixels, by name. Paths are absolute."""

    main: str
    others: tuple[str, ...] = ()

    def named(self) -> list[tuple[str, str]]:
        """(name, path) of each; names are relative, and the main file's is empty: a renamed slide is the same."""
        folder, stem = os.path.dirname(self.main), os.path.splitext(os.path.basename(self.main))[0]
        return [("", self.main)] + [
            (os.path.relpath(path, folder).removeprefix(stem + os.sep), path) for path in self.others
        ]

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """(path, size, time of change in ns) of each; what is gone is left out."""
        found = []
        for path in (self.main, *self.others):
            try:
                stat = os.stat(path)
            except OSError:
                continue
            found.append((path, stat.st_size, stat.st_mtime_ns))
        return tuple(found)


def files_of(path: str, vendor: str) -> SlideFiles:
    """The files of the slide at `path`: a file, or a folder of DICOM files.

    Raises BadInputError for a folder with the files of several slides.
    """
    if vendor == "dicom":
        return _dicom(path)
    if vendor == "mirax":
        return SlideFiles(path, _inside(os.path.splitext(path)[0]))
    if vendor == "hamamatsu":
        return SlideFiles(path, _in_key_file(path))
    return SlideFiles(path)


def _dicom(path: str) -> SlideFiles:
    if not os.path.isdir(path):
        own, _ = series_of(path)
        beside = [other for other in dicom_files(os.path.dirname(path)) if other != path]
        return SlideFiles(path, tuple(other for other in beside if own and series_of(other)[0] == own))
    files = dicom_files(path)
    found = {file: series_of(file) for file in files}
    slides = dict.fromkeys(uid for uid, is_level in found.values() if is_level) or dict.fromkeys(
        uid for uid, _ in found.values()
    )
    firsts = [next(file for file in files if found[file][0] == uid) for uid in slides]
    if len(slides) > 1:
        some = ", ".join(os.path.basename(file) for file in firsts[:4])
        raise BadInputError(f"{path}: DICOM files of {len(slides)} slides; give one file of the slide ({some}, …)")
    return SlideFiles(firsts[0], tuple(file for file in files if found[file][0] in slides and file != firsts[0]))


def _inside(folder: str) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return ()
    return tuple(os.path.join(folder, name) for name in names[:_MOST_FILES])


def _in_key_file(path: str) -> tuple[str, ...]:
    """The values of a VMS or VMU file that name files beside it."""
    with open(path, "rb") as file:
        text = file.read(_MAX_INI).decode("latin-1")
    names = {value.strip() for value in re.findall(r"^[^=\n]*=(.+)$", text, re.MULTILINE)}
    beside = (os.path.join(os.path.dirname(path), name) for name in sorted(names) if os.path.basename(name) == name)
    return tuple(file for file in beside if os.path.isfile(file))
