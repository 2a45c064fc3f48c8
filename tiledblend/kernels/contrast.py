"""Which range of values a display shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.1, 99.9)


def display_range(values: NDArray[Any]) -> tuple[float, float]:
    """(low, high): all but a thousandth of the values at each end, low below high; not finite ones do not count.

    >>> [round(value, 6) for value in display_range(np.arange(1001))]
    [1.0, 999.0]
    >>> display_range(np.zeros(4))
    (0.0, 1.0)
    """
    finite = values if values.dtype.kind in "biu" else values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    if high <= low:
        low, high = min(0.0, low), max(1.0, high)
    return low, high
