"""The seam of least difference between two images: a minimum cut of the pixels of a band around an edge.

Pixels are nodes; a seam between two neighbours costs what the images differ by in both (Kwatra et al. 2003, graph cut
textures). scipy's maximum flow finds the least sum, and with it closed seams however the band lies. Whole numbers in
one order: the same seam each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COSTS = 1000
"""The cost of the differences' 99th percentile."""
MOST_COST = 20_000


def whole_costs(difference: NDArray[np.float32], band: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Differences (y, x) as whole numbers from 1 on; a shorter seam is the better one where all differ alike."""
    high = float(np.percentile(difference[band], 99)) if band.any() else 0.0
    scaled = difference * np.float32(COSTS / high if high > 0 else 0)
    return np.clip(np.rint(np.nan_to_num(scaled, nan=MOST_COST, posinf=MOST_COST)), 0, MOST_COST).astype(np.int32) + 1


def least_cut(cost: NDArray[np.int32], inside: NDArray[np.bool_], band: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True inside the seam. Pixels out of the band stay as `inside` says; in the band they are decided.

    All (y, x). Parts of the band that do not touch are decided one after the other.

    >>> cost = np.array([[9, 9, 1, 9, 9]], np.int32)
    >>> band = np.array([[False, True, True, True, False]])
    >>> least_cut(cost, np.array([[True, False, False, False, False]]), band).astype(int).tolist()
    [[1, 1, 0, 0, 0]]
    """
    from scipy import ndimage

    out = inside.copy()
    parts, _ = ndimage.label(band)
    for number, window in enumerate(ndimage.find_objects(parts), 1):
        rows, columns = (slice(max(0, s.start - 1), s.stop + 1) for s in window)
        part = parts[rows, columns] == number
        decided = _cut_window(cost[rows, columns], out[rows, columns], part)
        out[rows, columns][part] = decided
    return out


def _cut_window(cost: NDArray[np.int32], inside: NDArray[np.bool_], part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For the pixels of the part, in row order: True where they are inside the seam."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    count = int(np.count_nonzero(part))
    source, sink = count, count + 1
    node = np.where(inside, source, sink)
    node[part] = np.arange(count)
    starts: list[NDArray[Any]] = []
    stops: list[NDArray[Any]] = []
    costs: list[NDArray[Any]] = []
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        a, b = node[first].ravel(), node[second].ravel()
        joined = (a != b) & (part[first] | part[second]).ravel()
        between = (cost[first] + cost[second]).ravel()[joined]
        starts += [a[joined], b[joined]]
        stops += [b[joined], a[joined]]
        costs += [between, between]
    capacity = csr_array(
        (np.concatenate(costs), (np.concatenate(starts), np.concatenate(stops))), shape=(count + 2, count + 2)
    ).astype(np.int32)
    if not capacity[[source]].nnz or not capacity[[sink]].nnz:
        return np.full(count, bool(capacity[[source]].nnz))
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    decided = np.zeros(count + 2, np.bool_)
    decided[reached] = True
    return decided[:count]
