"""The long form: `python tests/faults/table.py --count 300 [NAME...]` breaks things and prints a table.

--count: cases of each random experiment; those at every system call take every call when there are fewer.
--seed. --seconds: stop drawing further cases after so long. --log: add each case's outcome to this file (JSON lines);
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
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from experiments import EXPERIMENTS, close_clusters, missing_need
from harness import Lab


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--skip", type=int, default=0, help="Leave out so many of the drawn cases: to go on.")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--from", dest="logs", type=Path, nargs="*")
    given = parser.parse_args()
    if given.logs:
        outcomes = [json.loads(line) for path in given.logs for line in path.read_text().splitlines()]
    else:
        outcomes = list(run(given))
    print(table(outcomes))
    return any(outcome["problem"] for outcome in outcomes)


def run(given: argparse.Namespace) -> Iterable[dict[str, object]]:
    """One outcome per case."""
    end = time.monotonic() + given.seconds
    folder = Path(tempfile.mkdtemp(prefix="tiledblend-faults-"))
    folder.chmod(0o755)
    lab = Lab(folder)
    try:
        for name in given.names or EXPERIMENTS:
            found = EXPERIMENTS[name]
            if why := missing_need(found.needs):
                print(f"{name}: not done: {why}", file=sys.stderr)
                continue
            drawn = found.draw(lab, random.Random(f"{name} {given.seed}"), given.count)
            for number, parameters in enumerate(drawn):
                if number < given.skip:
                    continue
                if time.monotonic() > end:
                    print(f"{name}: time is up after {number} of {len(drawn)}", file=sys.stderr)
                    break
                outcome: dict[str, object] = {"name": name, "parameters": parameters, "went": "", "problem": ""}
                try:
                    outcome["went"] = found.run(lab, *parameters)
                except AssertionError as error:
                    outcome["problem"] = f"{error} {' '.join(getattr(error, '__notes__', []))}"[:1500]
                    print(f"{name} {json.dumps(parameters)}: {outcome['problem']}", file=sys.stderr)
                if given.log:
                    with given.log.open("a") as log:
                        log.write(json.dumps(outcome) + "\n")
                yield outcome
    finally:
        close_clusters()
        lab.close()
        for made in folder.iterdir():
            # cases that broke a promise stay for a look
            if not made.name.startswith("case-"):
                shutil.rmtree(made, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()


def table(outcomes: Iterable[dict[str, object]]) -> str:
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
