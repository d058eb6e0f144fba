"""Codebooks of temporal features by the name that ``--temporal`` takes, and their constructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from qvd_trt.calibrators.statistics.activation_stats import TemporalFeatures
from qvd_trt.calibrators.temporal.hidi import hidi_row_weights, lloyd_max
from qvd_trt.calibrators.temporal.weighted_values import WeightedValues, collect
from qvd_trt.export.arrays import AnyArray, Float32Array, Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

_LAST_EXPONENT = 100
"""``log2``: smaller powers would leave the normal numbers of float32 for small features."""

_MAX_OCTAVES = 16
"""``log2-uniform``: octave counts up to this one are tried."""

_MUS = np.geomspace(0.25, 2.0**18, 41)
"""``mu-law``: candidates for mu, half an octave apart; telephony's mu is 255."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75)
"""``mu-law``: candidates for the centre beside zero: SiLU piles its values up below zero."""


@dataclass(frozen=True, slots=True)
class CodebookBuilder:
    """A construction of codebooks.

    Attributes:
        choose_levels: Gives at most the given number of levels, in any order, for features that
            are finite and not empty.
    """

    choose_levels: Callable[[TemporalFeatures, int], AnyArray]

    def __call__(self, features: TemporalFeatures, bits: int) -> Codebook:
        """Build at most ``2^bits`` levels for ``features.values``, ``[S, C]`` float32.

        Raises:
            ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
        """
        if not 1 <= bits <= 8:
            raise ValueError(f"a codebook has 1 to 8 bits, not {bits}")
        if not features.values.size or not np.isfinite(features.values).all():
            raise ValueError("temporal features must be finite and not empty")
        return codebook_from_levels(self.choose_levels(features, 1 << bits))


def codebook_from_levels(levels: AnyArray) -> Codebook:
    """Make the nearest-level table of ``levels``: any order, repeats allowed, at least one.

    Levels are rounded to float32 and those that coincide then are merged. A single level gets a
    neighbour above (or below, at the end of float32), so that the table has two. Thresholds are the
    midpoints in float32, moved down by one value where rounding would reach the upper level: every
    level maps to itself.

    Raises:
        ValueError: there is no level, or one is not finite in float32.
    """
    with np.errstate(over="ignore"):
        rounded = np.asarray(levels, np.float64).astype(np.float32)
    distinct = np.unique(rounded + np.float32(0.0))
    if not distinct.size or not np.isfinite(distinct).all():
        raise ValueError("a codebook needs at least one level, and all of them finite in float32")
    if distinct.size == 1:
        distinct = _with_neighbour(float(distinct[0]))
    return Codebook(levels=distinct, thresholds=_midpoints(distinct))


def uniform_levels(features: TemporalFeatures, count: int) -> AnyArray:
    """The symmetric min-max integer grid: codes times ``max|x| / (2^(bits-1) - 1)``."""
    half = count // 2
    step = _largest(features) / max(half - 1, 1)
    return np.arange(-half, half, dtype=np.float64) * step


def uniform_asymmetric_levels(features: TemporalFeatures, count: int) -> Float64Array:
    """``2^bits`` levels spread evenly from the least to the greatest value."""
    return np.linspace(float(features.values.min()), float(features.values.max()), count)


def log2_levels(features: TemporalFeatures, count: int) -> Float64Array:
    """Signed powers of two: ``+-max|x| 2^-k`` for ``k = 0 .. 2^(bits-1) - 1``.

    One bit is the sign and there is no zero, as in log2 quantizers of activations. Powers below
    ``2^-100`` are left out. Coarse at the large values, so a poor choice for temporal features:
    a baseline.
    """
    exponents = np.arange(min(count // 2, _LAST_EXPONENT + 1), dtype=np.float64)
    powers = _largest(features) * np.exp2(-exponents)
    return np.concatenate([-powers, powers])


def log2_uniform_levels(features: TemporalFeatures, count: int) -> Float64Array:
    """Log2 steps for the magnitude and uniform steps inside, split by squared error.

    ``|x|`` is cut at ``max|x| 2^-k`` for ``k = 0 .. octaves``; every octave, and the rest below the
    last cut, holds the same number of evenly spaced levels, so that the step halves with every
    octave towards the dense part (the segments of ITU-T G.711). Levels beyond the least and
    greatest value move onto them. Of all octave counts 0 to 16, each with as many steps as the bits
    allow, the one of least squared error is taken; 0 octaves is the uniform grid.

    The formula of QVD is not public: this is one reading of "log2 and uniform", for a baseline.
    Powers of two alone near zero with a uniform grid outside, another reading, errs far more.
    """
    data = collect(features)
    low, high = float(data.values[0]), float(data.values[-1])
    grids = [np.linspace(low, high, count)]
    for octaves in range(_MAX_OCTAVES + 1):
        fitting = [
            grid
            for steps in range(1, count + 1)
            if (grid := _octave_grid(low, high, octaves, steps)).size <= count
        ]
        grids.extend(fitting[-1:])
    return min(grids, key=data.grid_error)


def mu_law_levels(features: TemporalFeatures, count: int) -> Float64Array:
    """Levels evenly spaced after mu-law companding: dense around a centre, wide in the tails."""
    return best_mu_law(collect(features), count)


def lloyd_max_levels(features: TemporalFeatures, count: int) -> AnyArray:
    """Lloyd's algorithm, every value of weight one, from the best mu-law grid."""
    return least_error_levels(collect(features), count)


def hidi_levels(features: TemporalFeatures, count: int) -> AnyArray:
    """HiDi-TQ, which keeps timesteps apart: Lloyd-Max with rows weighted by their closeness."""
    return least_error_levels(collect(features, hidi_row_weights(features)), count)


def least_error_levels(data: WeightedValues, count: int) -> AnyArray:
    """At most ``count`` levels by Lloyd's algorithm from the best mu-law grid.

    Their weighted error is never above that of this grid, and nothing when there are at most
    ``count`` distinct values.
    """
    if len(data.values) <= count:
        return data.values
    start = best_mu_law(data, count)
    # Rounding to float32 may turn the order round, so it comes before the choice.
    return min(
        (lloyd_max(data, start), start),
        key=lambda levels: data.error(codebook_from_levels(levels)),
    )


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


CODEBOOKS: Mapping[str, CodebookBuilder] = MappingProxyType(
    {
        "uniform": CodebookBuilder(uniform_levels),
        "uniform-asymmetric": CodebookBuilder(uniform_asymmetric_levels),
        "log2": CodebookBuilder(log2_levels),
        "log2-uniform": CodebookBuilder(log2_uniform_levels),
        "mu-law": CodebookBuilder(mu_law_levels),
        "lloyd-max": CodebookBuilder(lloyd_max_levels),
        "hidi": CodebookBuilder(hidi_levels),
    }
)
"""The constructions of ``--temporal``, by name."""


def _largest(features: TemporalFeatures) -> float:
    return max(abs(float(features.values.min())), abs(float(features.values.max())))


def _octave_grid(low: float, high: float, octaves: int, steps: int) -> Float64Array:
    cuts = np.concatenate([[0.0], np.exp2(-np.arange(octaves, -1, -1, dtype=np.float64))])
    positions = np.arange((octaves + 1) * steps + 1) / steps
    magnitudes = max(-low, high) * np.interp(positions, np.arange(octaves + 2), cuts)
    return np.unique(np.clip(np.concatenate([-magnitudes, magnitudes]), low, high))


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


def _with_neighbour(level: float) -> Float32Array:
    # A wide gap: it must survive a later conversion to a 16-bit type.
    gap = max(1.0, abs(level))
    above = level + gap <= float(np.finfo(np.float32).max)
    return np.sort(np.array([level, level + gap if above else level - gap], np.float32))


def _midpoints(levels: Float32Array) -> Float32Array:
    low, high = levels[:-1].astype(np.float64), levels[1:].astype(np.float64)
    middle = (0.5 * (low + high)).astype(np.float32)
    return np.where(middle < levels[1:], middle, levels[:-1])
