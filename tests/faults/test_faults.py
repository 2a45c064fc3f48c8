"""The quick form of the experiments, and every case that once broke a promise.

`TILEDBLEND_FAULTS=300 python -m pytest tests/faults -m faults` draws 300 cases of each instead of a few; a table of
the same is printed by `python tests/faults/table.py --count 300`. `TILEDBLEND_FAULTS_SEED` draws others.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reusing  # noqa: F401 - registers its experiments
from experiments import EXPERIMENTS, close_clusters, missing_need
from harness import HERE, Lab

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and /proc of Linux"),
]
COUNT = int(os.environ.get("TILEDBLEND_FAULTS", "0"))
SEED = os.environ.get("TILEDBLEND_FAULTS_SEED", "0")
QUICK = {
    "driver-killed": 2,
    "killed-twice": 1,
    "stopped": 2,
    "killed-at-call-fresh": 2,
    "killed-at-call-repair": 1,
    "killed-at-call-replace": 1,
    "killed-at-call-finish": 1,
    "failed-call-fresh": 3,
    "torn-write": 1,
    "damaged": 3,
    "damaged-unfinished": 1,
    "inputs-changed": 2,
    "another-job": 2,
    "full-disk": 2,
    "read-only": 1,
    "no-permission": 1,
    "two-drivers": 1,
    "reuse-killed": 1,
    "reuse-replace-killed": 1,
    "reuse-damaged": 1,
}
"""Cases in the default suite; the others are of the long form only."""
REGRESSIONS = json.loads((HERE / "regressions.json").read_text())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("faults"))
    yield made
    close_clusters()
    made.close()


@pytest.mark.timeout(0 if COUNT else 120)
@pytest.mark.parametrize("name", list(EXPERIMENTS) if COUNT else list(QUICK))
def test_experiment(lab: Lab, name: str) -> None:
    found = EXPERIMENTS[name]
    if why := missing_need(found.needs):
        pytest.skip(why)
    problems = []
    for parameters in found.draw(lab, random.Random(f"{name} {SEED}"), COUNT or QUICK[name]):
        try:
            found.run(lab, *parameters)
        except AssertionError as error:
            problems.append(f"{name} {json.dumps(parameters)}: {error}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("kept", REGRESSIONS, ids=lambda kept: f"{kept['name']}-{kept['why']}")
def test_what_once_failed(lab: Lab, kept: dict[str, Any]) -> None:
    found = EXPERIMENTS[kept["name"]]
    if why := missing_need(found.needs):
        pytest.skip(why)
    found.run(lab, *kept["parameters"])


def test_a_broken_promise_is_seen(lab: Lab) -> None:
    """The laboratory itself: a wrong byte, a touched canary and a second error line are not let through."""
    from experiments import a_case, damage, finished_result
    from harness import SMALL, Ended

    with a_case(lab, SMALL) as case:
        finished_result(case)
        case.check_finished()
        case.check_hidden_or_right()
        damage(case.out / "0/c/0/0/0", "flip", random.Random(0))
        with pytest.raises(AssertionError, match="visible and wrong"):
            case.check_hidden_or_right()
        with pytest.raises(AssertionError, match="wrong \\['0/c/0/0/0'\\]"):
            case.check_finished()
        Path(case.folder / "canary" / "notes.txt").write_text("theirs")
        with pytest.raises(AssertionError, match="canary"):
            case.check_untouched()
        twice = "tiledblend: error: a\ntiledblend: error: b\n"
        with pytest.raises(AssertionError, match="2 error lines"):
            case.check_told(Ended(5, "", twice), 5)
        with pytest.raises(AssertionError, match="not ours"):
            case.check_told(Ended(5, "", "Traceback\ntiledblend: error: a\n"), 5)
