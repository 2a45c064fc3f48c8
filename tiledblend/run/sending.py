"""A job as bytes for other processes, or why it cannot be sent."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from tiledblend.errors import one_line
from tiledblend.sources.base import RasterSource


class NotSendable(Exception):  # noqa: N818 - an event that the run deals with
    """Something of the job lives in this process only. source: the name of the layer's array."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source} cannot be sent to another process ({reason})")


def pickled(job: Any, sources: Iterable[RasterSource] = ()) -> bytes:
    """The job, to be opened by `pickle.loads`; functions of a script, a notebook or a closure go along as code.

    sources: its images and masks. Raises NotSendable naming one that cannot go.
    """
    known = list(sources)
    if all(source.is_opened_by_name for source in known):
        return pickle.dumps(job)
    # As dask does it: plain pickle would send a function of `__main__` by a name that no worker has.
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(job)
    except Exception as error:
        raise NotSendable(_culprit(known), one_line(str(error)) or type(error).__name__) from error
    return data


def _culprit(sources: Iterable[RasterSource]) -> str:
    import cloudpickle

    for source in sources:
        try:
            cloudpickle.dumps(source)
        except Exception:
            return source.name
    return "the job"
