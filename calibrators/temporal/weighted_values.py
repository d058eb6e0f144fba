"""Sorted, weighted values: the error of any set of levels without a pass over the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.statistics.activation_stats import TemporalFeatures
from qvd_trt.export.arrays import Float32Array, Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

SAMPLE_LIMIT = 4_000_000
"""Above this many values a fixed pseudo-random sample of so many stands for all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightedValues:
    """The distinct values of a temporal feature with the sums that a codebook search needs.

    Attributes:
        values: ``[N]`` float32, strictly ascending; least and greatest are always those of the
            feature.
        weights: ``[N]`` float64, not negative, positive in total.
        origin: The weighted mean. The sums are of ``values - origin``, against cancellation.
        sums: ``[3, N + 1]`` float64, running sums of ``w``, ``w x`` and ``w x^2``.
    """

    values: Float32Array
    weights: Float64Array
    origin: float
    sums: Float64Array

    def cells(self, levels: Float64Array) -> npt.NDArray[np.intp]:
        """``[L + 1]`` borders in ``values`` of the nearest-level cells of ascending ``levels``."""
        borders = np.searchsorted(self.values, 0.5 * (levels[:-1] + levels[1:]), side="right")
        return np.concatenate([[0], borders, [len(self.values)]])

    def cell_sums(self, borders: npt.NDArray[np.intp]) -> Float64Array:
        """``[3, L]``: weight, first and second moment (about ``origin``) of every cell."""
        return np.diff(self.sums[:, borders], axis=1)

    def grid_error(self, levels: Float64Array) -> float:
        """Weighted squared error of rounding every value to the nearest of ascending ``levels``."""
        weight, first, second = self.cell_sums(self.cells(levels))
        offset = levels - self.origin
        return float((second - 2.0 * offset * first + np.square(offset) * weight).sum())

    def error(self, codebook: Codebook) -> float:
        """Weighted squared error of a codebook, value by value."""
        difference = codebook(self.values).astype(np.float64) - self.values
        return float(self.weights @ np.square(difference))


def collect(features: TemporalFeatures, row_weights: Float64Array | None = None) -> WeightedValues:
    """Sort and merge the values of ``features``, ``[S, C]``; O(N log N) once.

    Args:
        features: The temporal feature; finite and not empty.
        row_weights: ``[S]``, not negative, one weight for all values of a row; ones by default, and
            also when they are all zero.
    """
    low, high = features.values.min(), features.values.max()
    rows, channels = features.values.shape
    weights = np.ones(rows) if row_weights is None or not row_weights.any() else row_weights
    flat = features.values.reshape(-1)
    if flat.size > SAMPLE_LIMIT:
        chosen = np.random.default_rng(0).integers(0, flat.size, SAMPLE_LIMIT)
        flat, repeated = flat[chosen], weights[chosen // channels]
    else:
        repeated = np.repeat(weights, channels)
    # Zero weight: the ends only mark the range.
    flat = np.concatenate([flat, np.array([low, high], np.float32)])
    values, place = np.unique(flat, return_inverse=True)
    merged: Float64Array = np.bincount(
        place.reshape(-1), np.append(repeated, [0.0, 0.0]), len(values)
    ).astype(np.float64, copy=False)
    return _with_sums(values, merged)


def _with_sums(values: Float32Array, weights: Float64Array) -> WeightedValues:
    exact = values.astype(np.float64)
    origin = float(weights @ exact / weights.sum())
    centred = exact - origin
    sums = np.zeros((3, len(values) + 1))
    np.cumsum(weights * centred ** np.arange(3)[:, None], axis=1, out=sums[:, 1:])
    return WeightedValues(values=values, weights=weights, origin=origin, sums=sums)
