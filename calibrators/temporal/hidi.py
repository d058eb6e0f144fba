"""Lloyd-Max: the levels of least squared error, and the row weights that make it HiDi-TQ."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.statistics.activation_stats import TemporalFeatures
from qvd_trt.calibrators.temporal.td_score import separation
from qvd_trt.calibrators.temporal.weighted_values import WeightedValues
from qvd_trt.export.arrays import Float64Array

_ITERATIONS = 3000
_TOLERANCE = 1e-9
"""Stops when no level moved by more than this share of the range."""

_SEPARATION_FLOOR = 0.01
"""Least separation that counts, as a share of the median."""


def lloyd_max(data: WeightedValues, start: Float64Array) -> Float64Array:
    """Lloyd's algorithm: cells of nearest values and their weighted means, in turn.

    An iteration costs O(L log N): cells are found by bisection and centroids from running sums. A
    level whose cell is empty moves into the cell of largest error.

    Args:
        data: What the levels shall fit.
        start: ``[L]`` ascending levels.

    Returns:
        ``[L]`` float64 ascending levels.
    """
    levels = start
    tolerance = _TOLERANCE * (float(data.values[-1]) - float(data.values[0]))
    for _ in range(_ITERATIONS):
        moved = _step(data, levels)
        if np.abs(moved - levels).max() <= tolerance:
            return moved
        levels = moved
    return levels


def hidi_row_weights(features: TemporalFeatures) -> Float64Array:
    """``(median d / max(d_t, 0.01 median d))^2``, ``[S]``, with ``d_t`` the rows' separation.

    By the triangle inequality the margin of TDScore is at least ``1 - 2 ||q_t - f_t|| / d_t``, so
    the squared error weighted by ``1 / d_t^2`` bounds its loss (docs/method.md#htdq). ``d_t`` is
    floored at 1 % of its median: one pair of rows that are equal but for rounding must not take
    the whole codebook. Rows without a rival get the least weight, as no error can confuse them;
    when no row has one, all weights are 1.
    """
    distance = separation(features.values, features.timesteps)
    told = np.isfinite(distance)
    if not told.any():
        return np.ones(len(distance))
    median = float(np.median(distance[told]))
    weights = np.square(median / np.maximum(distance, _SEPARATION_FLOOR * median))
    return np.where(told, weights, weights[told].min())


def _step(data: WeightedValues, levels: Float64Array) -> Float64Array:
    """Move every level to the centroid of its cell."""
    borders = data.cells(levels)
    weight, first, second = data.cell_sums(borders)
    held = weight > 0.0
    mean = np.divide(first, weight, out=np.zeros_like(first), where=held)
    moved = np.where(held, data.origin + mean, levels)
    if held.all():
        return moved
    spread = np.where(held, second - first * mean, 0.0)
    return _refill(data, moved, borders, held, spread)


def _refill(
    data: WeightedValues,
    levels: Float64Array,
    borders: npt.NDArray[np.intp],
    held: npt.NDArray[np.bool_],
    spread: Float64Array,
) -> Float64Array:
    """Put the levels of empty cells at the far end of the cells of largest error."""
    empty = np.flatnonzero(~held)
    worst = np.argsort(-spread, kind="stable")[: len(empty)]
    worst = worst[spread[worst] > 0.0]
    moved = levels.copy()
    low = data.values[borders[worst]].astype(np.float64)
    high = data.values[borders[worst + 1] - 1].astype(np.float64)
    moved[empty[: len(worst)]] = np.where(levels[worst] - low > high - levels[worst], low, high)
    return np.sort(moved)
