"""From a set of levels to a valid `Codebook`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.plan.quant_plan import Codebook


class CodebookBuilder(Protocol):
    """A construction of codebooks, as registered in ``CODEBOOKS``."""

    def __call__(self, features: TemporalFeatures, bits: int) -> Codebook:
        """Build at most ``2^bits`` levels for ``features.values``, ``[S, C]`` float32.

        Raises:
            ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
        """
        ...


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


def level_count(bits: int) -> int:
    """``2^bits``, the sign included.

    Raises:
        ValueError: ``bits`` is not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"a codebook has 1 to 8 bits, not {bits}")
    return 1 << bits


def value_range(features: TemporalFeatures) -> tuple[float, float]:
    """Least and greatest value.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    values = features.values
    if not values.size or not np.isfinite(values).all():
        raise ValueError("temporal features must be finite and not empty")
    return float(values.min()), float(values.max())


def _with_neighbour(level: float) -> Float32Array:
    # A wide gap: it must survive a later conversion to a 16-bit type.
    gap = max(1.0, abs(level))
    above = level + gap <= float(np.finfo(np.float32).max)
    return np.sort(np.array([level, level + gap if above else level - gap], np.float32))


def _midpoints(levels: Float32Array) -> Float32Array:
    low, high = levels[:-1].astype(np.float64), levels[1:].astype(np.float64)
    middle = (0.5 * (low + high)).astype(np.float32)
    return np.where(middle < levels[1:], middle, levels[:-1])
