#!/usr/bin/env python3
"""Blend many slides, one row of a CSV table each: python workflows/batch.py slides.csv results/

The table has the columns `id`, `base`, `overlay`, `mask`, and may have others that are named like flags of
`tiledblend blend` (`feather`, `opacity`, `offset`, …): they hold for their row, flags after `--` hold for all rows:

    python workflows/batch.py slides.csv results/ --jobs 2 -- --shard 2048 --scheduler tcp://host:8786

Each slide becomes results/ID.ome.zarr. results/results.csv has one row per slide (done, or the reason of the failure),
results/failed.csv the rows of the table that failed, to be mended and run by themselves; results/logs/ID.log what was
said. Run again: what is done is left alone, what was interrupted continues, what failed is tried again. Paths in the
table are relative to the table. Exit code: 0 all done, 1 some failed, 2 the table or the call is wrong, 75 interrupted.
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
DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"


@dataclass(frozen=True)
class Outcome:
    """A row of results.csv. code: exit code of the command. seconds: of this try; pixels and bytes: of the result."""

    id: str
    status: str
    code: int | str
    seconds: float | str
    pixels: int | str
    bytes: int | str
    output: str
    error: str


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
    batch = Batch(given.table.parent, given.results, common)
    batch.listen()
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = list(pool.map(batch.blend, rows))
    write_table(given.results / "results.csv", [asdict(one) for one in outcomes], [f.name for f in fields(Outcome)])
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
            if empty := [name for name in REQUIRED if not rows[-1][name]]:
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


class Batch:
    """Runs the command for each row; SIGINT and SIGTERM let the running ones stop cleanly and start no more."""

    def __init__(self, folder: Path, results: Path, common: Sequence[str]) -> None:
        self.folder, self.results, self.common = folder, results, list(common)
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
        output = self.results / f"{row['id']}.ome.zarr"
        if self.stopped.is_set():
            return Outcome(row["id"], INTERRUPTED, 75, 0, "", "", str(output), "not begun")
        started = time.monotonic()
        code, said, error = self._run(self._command(row, output), self.results / "logs" / f"{row['id']}.log")
        seconds = round(time.monotonic() - started, 1)
        status = DONE if code == 0 else INTERRUPTED if code == 75 else FAILED
        report = json.loads(said) if code == 0 else {}
        print(f"{row['id']}: {status}{f', {error}' if error else ''}", flush=True)
        before = self.before.get(row["id"], {})
        if report and not report["tiles"] and before.get("status") == DONE:
            return Outcome(**before)
        pixels, size = report.get("pixels", ""), report.get("bytes_written", "")
        return Outcome(row["id"], status, code, seconds, pixels, size, str(output), error)

    def _command(self, row: dict[str, str], output: Path) -> list[str]:
        paths = {name: self._path(row[name]) for name in PATHS}
        flags = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in row.items()
            if value and name not in REQUIRED
        ]  # fmt: skip
        program = [os.environ["TILEDBLEND"]] if "TILEDBLEND" in os.environ else [sys.executable, "-m", "tiledblend"]
        fixed = ["blend", paths["base"], paths["overlay"], "--mask", paths["mask"], "-o", str(output)]
        return [*program, *fixed, "--resume", "--json", *flags, *self.common]

    def _path(self, text: str) -> str:
        return text if "://" in text else str(self.folder / text)

    def _run(self, command: list[str], log: Path) -> tuple[int, str, str]:
        """(exit code, what was printed, the error's line)."""
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
        return process.returncode, said, reason


if __name__ == "__main__":
    sys.exit(main())
