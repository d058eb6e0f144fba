"""Lloyd-Max: the levels of least squared error, found by alternating cells and centroids."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.mu_law import best_mu_law
from qvd_trt.calibrators.temporal.codebooks.table import codebook_from_levels, level_count
from qvd_trt.calibrators.temporal.codebooks.weighted_values import WeightedValues, collect
from qvd_trt.export.arrays import Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

_ITERATIONS = 3000
_TOLERANCE = 1e-9
"""Stops when no level moved by more than this share of the range."""


def build_lloyd_max(features: TemporalFeatures, bits: int) -> Codebook:
    """Lloyd's algorithm, every value of weight one, from the best mu-law grid.

    Lossless when the values have at most ``2^bits`` distinct values.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    return weighted_lloyd(collect(features), level_count(bits))


def weighted_lloyd(data: WeightedValues, count: int) -> Codebook:
    """At most ``count`` levels; the weighted error is never above that of the best mu-law grid.

    An iteration costs O(L log N): cells are found by bisection and centroids from running sums. A
    level whose cell is empty moves into the cell of largest error.
    """
    if len(data.values) <= count:
        return codebook_from_levels(data.values)
    start = best_mu_law(data, count)
    # Levels are rounded to float32 only now: the better of both is chosen after it.
    found = (codebook_from_levels(_iterate(data, start)), codebook_from_levels(start))
    return min(found, key=data.error)


def _iterate(data: WeightedValues, start: Float64Array) -> Float64Array:
    levels = start
    tolerance = _TOLERANCE * (float(data.values[-1]) - float(data.values[0]))
    for _ in range(_ITERATIONS):
        moved = _step(data, levels)
        if np.abs(moved - levels).max() <= tolerance:
            return moved
        levels = moved
    return levels


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
    borders: np.ndarray[tuple[int], np.dtype[np.intp]],
    held: np.ndarray[tuple[int], np.dtype[np.bool_]],
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
