"""Levels evenly spaced after mu-law companding: dense around a centre, wide in the tails."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.table import codebook_from_levels, level_count
from qvd_trt.calibrators.temporal.codebooks.weighted_values import WeightedValues, collect
from qvd_trt.export.arrays import Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

_MUS = np.geomspace(0.25, 2.0**18, 41)
"""Candidates for mu, half an octave apart; telephony's mu is 255."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75)
"""Candidates for the centre beside zero: SiLU piles its values up below zero."""


def build_mu_law(features: TemporalFeatures, bits: int) -> Codebook:
    """Take the mu-law grid of least squared error.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    return codebook_from_levels(best_mu_law(collect(features), level_count(bits)))


def best_mu_law(data: WeightedValues, count: int) -> Float64Array:
    """``[count]`` float64 ascending levels: the (mu, centre) of least weighted error.

    The levels are ``centre + sign(u) M ((1 + mu)^|u| - 1) / mu`` for ``u`` evenly spaced over the
    companded range of the values (ITU-T G.711's continuous law, on an asymmetric range), ``M`` the
    farthest value's distance from the centre. They coincide when all values are equal.
    """
    low, high = float(data.values[0]), float(data.values[-1])
    grids = [
        _mu_law_grid(low, high, centre, float(mu), count)
        for centre in _centres(data, low, high)
        for mu in _MUS
    ]
    return min(grids, key=data.grid_error)


def _centres(data: WeightedValues, low: float, high: float) -> list[float]:
    running = data.sums[0, 1:]
    at = np.searchsorted(running, np.array(_QUANTILES) * running[-1])
    quantiles = data.values[np.minimum(at, len(data.values) - 1)].astype(np.float64)
    return sorted({float(np.clip(0.0, low, high)), *map(float, quantiles)})


def _mu_law_grid(low: float, high: float, centre: float, mu: float, count: int) -> Float64Array:
    reach = max(high - centre, centre - low)
    if reach == 0.0:
        return np.full(count, centre)
    ends = np.array([low - centre, high - centre]) / reach
    first, last = np.sign(ends) * np.log1p(mu * np.abs(ends)) / np.log1p(mu)
    u = np.linspace(first, last, count)
    levels = centre + np.sign(u) * reach * np.expm1(np.abs(u) * np.log1p(mu)) / mu
    # Rounding of the companding must not move the ends past the values.
    return np.maximum.accumulate(np.clip(levels, low, high))
