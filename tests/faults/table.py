"""The long form: `python tests/faults/table.py --count 300 [NAME...]` breaks things and prints a table.

--count: cases of each random experiment; those at every system call take every call when there are fewer.
--seed. --seconds: begin no further cases after so long. --jobs: cases at a time. --folder: where they lie.
--log: add each case's outcome to this file (JSON lines);
--from: print the table of such files instead of running. Without names: all experiments.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import reusing  # noqa: F401 - registers its experiments
from experiments import EXPERIMENTS, Experiment, close_clusters, missing_need
from harness import Lab


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--skip", type=int, default=0, help="Leave out so many of the drawn cases: to go on.")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--from", dest="logs", type=Path, nargs="*")
    given = parser.parse_args()
    if given.logs:
        outcomes = [json.loads(line) for path in given.logs for line in path.read_text().splitlines()]
    else:
        outcomes = list(run(given))
    print(table(outcomes))
    return any(outcome["problem"] for outcome in outcomes)


def run(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One outcome per case, `--jobs` cases at a time."""
    end = time.monotonic() + given.seconds
    folder = Path(tempfile.mkdtemp(prefix="tiledblend-faults-", dir=given.folder))
    folder.chmod(0o755)
    lab = Lab(folder)
    try:
        with ThreadPoolExecutor(given.jobs) as pool:
            for name in given.names or EXPERIMENTS:
                found = EXPERIMENTS[name]
                if why := missing_need(found.needs):
                    print(f"{name}: not done: {why}", file=sys.stderr)
                    continue
                drawn = found.draw(lab, random.Random(f"{name} {given.seed}"), given.count)[given.skip :]
                cases = [pool.submit(outcome, lab, found, parameters, end) for parameters in drawn]
                made = 0
                for case in cases:
                    if (one := case.result()) is None:
                        continue
                    made += 1
                    if given.log:
                        with given.log.open("a") as log:
                            log.write(json.dumps(one | {"seed": given.seed}) + "\n")
                    yield one
                if made < len(drawn):
                    print(f"{name}: time is up after {given.skip + made} of {given.skip + len(drawn)}", file=sys.stderr)
    finally:
        close_clusters()
        lab.close()
        for left in folder.iterdir():
            # cases that broke a promise stay for a look
            if not left.name.startswith("case-"):
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()


def outcome(lab: Lab, found: Experiment, parameters: list[Any], end: float) -> dict[str, Any] | None:
    """Of one case; None when the time is up."""
    if time.monotonic() > end:
        return None
    went = problem = ""
    try:
        went = found.run(lab, *parameters)
    except Exception as error:
        problem = f"{type(error).__name__}: {error} {' '.join(getattr(error, '__notes__', []))}"[:9000]
        print(f"{found.name} {json.dumps(parameters)}: {problem}", file=sys.stderr)
    return {"name": found.name, "parameters": parameters, "went": went, "problem": problem}


def table(outcomes: Iterable[dict[str, Any]]) -> str:
    """Markdown: experiment, cases, how they went, broken promises."""
    by_name = defaultdict(list)
    for outcome in outcomes:
        by_name[outcome["name"]].append(outcome)
    lines = ["| experiment | cases | how they went | promises broken |", "|---|---|---|---|"]
    for name, found in EXPERIMENTS.items():
        if cases := by_name.get(name):
            went = Counter(case["went"] for case in cases if not case["problem"])
            how = ", ".join(f"{count} {what}" for what, count in went.most_common())
            broken = sum(bool(case["problem"]) for case in cases)
            lines.append(f"| {found.title} | {len(cases)} | {how} | {broken} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
