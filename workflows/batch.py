#!/usr/bin/env python3
"""Blend many slides, one row of a CSV table each: python workflows/batch.py slides.csv results/

The table has the columns `id`, `base`, `overlay`, `mask` (an empty overlay goes with `fill`), and may have others that
are named like flags of `tiledblend blend` (`feather`, `opacity`, …): they hold for their row, flags after `--` for all.
`{id}` in any of them is the row's id. A column that is no flag (`patient`, `stain`) is carried into the results' table:

    python workflows/batch.py slides.csv results/ --jobs 2 -- --shard 2048 --report 'results/{id}.html'

Several classes stand in one cell with `;` between: `Tumor;Stroma`. Each slide becomes results/ID.ome.zarr, or what the
column `output` says, relative to the results' folder (`{id}.ome.tif` is an OME-TIFF). results/results.csv has one row
per slide (done, or the reason of the failure, and the notes), results/failed.csv the rows of the table that failed, to
be mended and run by themselves; results/logs/ID.log what was said. Run again: what is done is left alone, what was
interrupted continues, what failed is tried again, and of an OME-Zarr whose row or files changed (a corrected mask,
another feather) only the regions that differ are made, in its place. Paths in the table are relative to the table.
Exit code: 0 all done, 1 some failed, 2 the table or the call is wrong, 75 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

REQUIRED = ("id", "base", "overlay", "mask")
PATHS = ("base", "overlay", "mask")
SEVERAL = ("class",)
DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"


@dataclass(frozen=True)
class Outcome:
    """A row of results.csv. code: exit code of the command. seconds: of this try; pixels and bytes: of the result.
    notes: what the command said besides."""

    id: str
    status: str
    code: int | str
    seconds: float | str
    pixels: int | str
    bytes: int | str
    output: str
    error: str
    notes: str = ""


def main() -> int:
    own, common = _split(sys.argv[1:])
    given = _parser().parse_args(own)
    try:
        rows = read_table(given.table)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        print(f"batch: {given.table}: {error}", file=sys.stderr)
        return 2
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "logs").mkdir(exist_ok=True)
    try:
        batch = Batch(given.table.parent, given.results, common, known_flags())
    except OSError as error:
        print(f"batch: tiledblend cannot be started: {error}", file=sys.stderr)
        return 2
    batch.listen()
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = list(pool.map(batch.blend, rows))
    own_columns = [f.name for f in fields(Outcome)]
    carried = [name for name in rows[0] if name not in batch.flags and name not in (*REQUIRED, *own_columns)]
    told = [asdict(one) | {name: row[name] for name in carried} for row, one in zip(rows, outcomes, strict=True)]
    write_table(given.results / "results.csv", told, [*own_columns, *carried])
    failed = [row for row, one in zip(rows, outcomes, strict=True) if one.status == FAILED]
    write_table(given.results / "failed.csv", failed, list(rows[0]))
    count = {status: sum(one.status == status for one in outcomes) for status in (DONE, FAILED, INTERRUPTED)}
    numbers = ", ".join(f"{number} {status}" for status, number in count.items())
    print(f"{numbers}: {given.results / 'results.csv'}")
    return 75 if count[INTERRUPTED] else 1 if count[FAILED] else 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and after the first `--`."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV with the columns id, base, overlay, mask")
    parser.add_argument("results", type=Path, help="folder for the results")
    parser.add_argument("--jobs", type=positive, default=1, help="slides at once; each uses a whole cluster [1]")
    return parser


def positive(text: str) -> int:
    """A number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1")
    return int(text)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows. Raises ValueError for missing columns, empty cells, ids that are no file names or come twice."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [name for name in REQUIRED if name not in columns]:
            raise ValueError(f"has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)}")
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num}: more cells than columns")
            rows.append({name: (value or "").strip() for name, value in row.items()})
            if empty := [name for name in ("id", "base") if not rows[-1][name]]:
                raise ValueError(f"line {reader.line_num}: no {', '.join(empty)}")
            if not re.fullmatch(r"[\w][\w.+-]*", rows[-1]["id"]):
                raise ValueError(f"line {reader.line_num}: id {rows[-1]['id']!r} cannot be a file name")
    names = [row["id"].lower() for row in rows]
    if not names:
        raise ValueError("has no rows")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"id {twice[0]!r} comes twice")
    return rows


def write_table(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Replace a table of ours in one step."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)


def previous(path: Path) -> dict[str, Any]:
    """Rows of the results' table of an earlier call, by id."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def program() -> list[str]:
    """The command, as words."""
    return [os.environ["TILEDBLEND"]] if "TILEDBLEND" in os.environ else [sys.executable, "-m", "tiledblend"]


def known_flags() -> frozenset[str]:
    """Names of blend's flags as columns have them: from the command's own help."""
    said = subprocess.run([*program(), "blend", "--help"], capture_output=True, text=True, check=False)
    if said.returncode:
        raise OSError(said.stderr.strip() or f"exit code {said.returncode}")
    return frozenset(name.replace("-", "_") for name in re.findall(r"(?<![\w-])--([a-z][a-z-]*)", said.stdout))


def own_flags(row: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """The flags of a table's row: its columns that are named like one. `{id}` in a cell is the row's id.

    >>> own_flags({"id": "a", "feather": "8px", "class": "Tumor;Stroma", "patient": "7"}, {"feather", "class"})
    ['--feather=8px', '--class=Tumor', '--class=Stroma']
    """
    flags = []
    for name, value in row.items():
        if value and name not in (*REQUIRED, "output") and name.replace("-", "_") in set(known):
            values = value.split(";") if name in SEVERAL else [value]
            flags += [f"--{name.replace('_', '-')}={with_id(part.strip(), row['id'])}" for part in values]
    return flags


def with_id(text: str, name: str) -> str:
    """The text with `{id}` filled in; other braces are YAML's."""
    return text.replace("{id}", name)


def without_old_report(words: list[str]) -> list[str]:
    """The flags without a --report that is there already: it belongs to what is done."""
    for i, word in enumerate(words):
        flag, equals, path = word.partition("=")
        path = path if equals else "".join(words[i + 1 : i + 2])
        if flag == "--report" and os.path.exists(path):
            return words[:i] + words[i + (1 if equals else 2) :]
    return words


def reusing(output: str) -> list[str]:
    """The flags by which a result that is there already, of an older job, is exchanged for this one's: what of it is
    right is taken over. A manifest beside it says that it is a finished OME-Zarr of tiledblend's."""
    is_there = "://" not in output and os.path.exists(f"{output.rstrip('/')}.manifest")
    return ["--replace", "--reuse", output] if is_there else []


class Batch:
    """Runs the command for each row; SIGINT and SIGTERM let the running ones stop cleanly and start no more."""

    def __init__(self, folder: Path, results: Path, common: Sequence[str], flags: frozenset[str] = frozenset()) -> None:
        self.folder, self.results, self.common, self.flags = folder, results, list(common), flags
        self.stopped = threading.Event()
        self.before = previous(results / "results.csv")
        self._running: set[subprocess.Popen[str]] = set()

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        self.stopped.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def blend(self, row: dict[str, str]) -> Outcome:
        output = self._output(row)
        if self.stopped.is_set():
            return Outcome(row["id"], INTERRUPTED, 75, 0, "", "", str(output), "not begun")
        started = time.monotonic()
        code, said, error, notes = self._run(self._command(row, output), self.results / "logs" / f"{row['id']}.log")
        seconds = round(time.monotonic() - started, 1)
        status = DONE if code == 0 else INTERRUPTED if code == 75 else FAILED
        report = json.loads(said) if code == 0 else {}
        print(f"{row['id']}: {status}{f', {error}' if error else ''}", flush=True)
        before = self.before.get(row["id"], {})
        if report and not report.get("tiles", 1) and before.get("status") == DONE:
            return Outcome(**{field.name: before.get(field.name, "") for field in fields(Outcome)})
        pixels, size = report.get("pixels", ""), (report.get("file") or report).get("bytes_written", "")
        return Outcome(row["id"], status, code, seconds, pixels, size, str(output), error, notes)

    def _output(self, row: dict[str, str]) -> str:
        """Where the row's result goes: its column, or a flag for all, or ID.ome.zarr."""
        words = [word.removeprefix("--output=") for word in self.common]
        given = [word for word, whole in zip(words, self.common, strict=True) if word != whole]
        given += [
            after for flag, after in zip(self.common, self.common[1:], strict=False) if flag in ("-o", "--output")
        ]
        if row.get("output") or not given:
            name = with_id(row.get("output") or "{id}.ome.zarr", row["id"])
            return name if "://" in name else str(self.results / name)
        return with_id(given[-1], row["id"])

    def _command(self, row: dict[str, str], output: str) -> list[str]:
        paths = {name: self._path(with_id(row[name], row["id"])) for name in PATHS if row[name]}
        mask = ["--mask", paths["mask"]] if "mask" in paths else []
        images = [paths[name] for name in ("base", "overlay") if name in paths]
        fixed = ["blend", *images, *mask, "--resume", "--json"]
        fixed += reusing(output)
        common = [with_id(word, row["id"]) for word in self.common]
        return [*program(), *fixed, *without_old_report([*own_flags(row, self.flags), *common]), "-o", output]

    def _path(self, text: str) -> str:
        return text if "://" in text else str(self.folder / text)

    def _run(self, command: list[str], log: Path) -> tuple[int, str, str, str]:
        """(exit code, what was printed, the error's line, the notes)."""
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            # A group of its own: Ctrl-C comes to us, and we tell the command once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            said, told = process.communicate()
            self._running.discard(process)
            file.write(told)
        errors = [line for line in told.splitlines() if line.startswith("tiledblend: error: ")]
        reason = errors[-1].removeprefix("tiledblend: error: ") if errors else ""
        if process.returncode and not reason:
            reason = f"exit code {process.returncode}"
        notes = [line.removeprefix("tiledblend: note: ") for line in told.splitlines() if ": note: " in line]
        return process.returncode, said, reason, "; ".join(dict.fromkeys(notes))


if __name__ == "__main__":
    sys.exit(main())
