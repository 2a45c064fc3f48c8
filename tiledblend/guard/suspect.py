"""`python -m tiledblend.guard.suspect`: does what may crash a decoder in a process of its own, and says how that ended.

Standard input is a pickle that the process which starts this one has made itself.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from tiledblend.guard.crash import Death, Note, tried

PROBE_SECONDS = 300.0
MOST_SUSPECTS = 16


def death_by_read(again: bytes) -> Death | None:
    """How a process ends that decodes one region (`crash.Note.again`); None if that cannot be told."""
    return _death(("read", again)) if again else None


def death_by_tile(job: Any, tiles: Iterable[Any]) -> tuple[Any, Death] | None:
    """The first of a few tiles whose rendering crashes a process, and how; None if none does. job: has `rehearse`,
    or is the pickle of one that has."""
    pickled = job if isinstance(job, bytes) else pickle.dumps(job)
    for tile, _ in zip(tiles, range(MOST_SUSPECTS), strict=False):
        death = _death(("tile", pickled, tile))
        if death is not None and death.is_crash:
            return tile, death
    return None


def _death(what: tuple[Any, ...]) -> Death | None:
    command = [sys.executable, "-P", "-m", "tiledblend.guard.suspect"]
    try:
        done = subprocess.run(
            command, input=pickle.dumps(what), capture_output=True, timeout=PROBE_SECONDS, check=False
        )
        code, notes = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return Death(code, tuple(Note(note, b"") for note in notes))


def _repeat(kind: str, pickled: bytes, *arguments: Any) -> None:
    if kind == "read":
        source, region, level = pickle.loads(pickled)
        pickle.loads(source).read(region, level)
    else:
        pickle.loads(pickled).rehearse(*arguments)


def main() -> None:
    """Print [exit code or minus signal, [what was being decoded]]."""
    what = pickle.loads(sys.stdin.buffer.read())
    death = tried(lambda: _repeat(*what))
    print(json.dumps([death.code, [note.what for note in death.notes]]))


if __name__ == "__main__":
    main()
