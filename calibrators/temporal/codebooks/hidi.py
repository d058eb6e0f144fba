"""HiDi-TQ: the codebook that keeps timesteps apart."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.lloyd_max import weighted_lloyd
from qvd_trt.calibrators.temporal.codebooks.table import level_count, value_range
from qvd_trt.calibrators.temporal.codebooks.weighted_values import collect
from qvd_trt.calibrators.temporal.td_score import separation
from qvd_trt.export.arrays import Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

_FLOOR = 0.01
"""Least separation that counts, as a share of the median."""


def build_hidi(features: TemporalFeatures, bits: int) -> Codebook:
    """Lloyd-Max with rows weighted by ``1 / d_t^2``, ``d_t`` their separation (METHOD.md).

    By the triangle inequality the margin of TDScore is at least ``1 - 2 ||q_t - f_t|| / d_t``, so
    the weighted squared error bounds its loss. ``d_t`` is floored at 1 % of its median: one pair of
    rows that are equal but for rounding must not take the whole codebook. Rows without a rival get
    the least weight, as no error can confuse them.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    count = level_count(bits)
    value_range(features)
    return weighted_lloyd(collect(features, row_weights(features)), count)


def row_weights(features: TemporalFeatures) -> Float64Array:
    """``[S]`` float64: ``(median d / max(d_t, 0.01 median d))^2``; ones if nothing has a rival."""
    distance = separation(features.values, features.timesteps)
    told = np.isfinite(distance)
    if not told.any():
        return np.ones(len(distance))
    median = float(np.median(distance[told]))
    weights = np.square(median / np.maximum(distance, _FLOOR * median))
    return np.where(told, weights, weights[told].min())
