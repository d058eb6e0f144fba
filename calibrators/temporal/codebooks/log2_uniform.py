"""Octaves (log2) cut into evenly spaced steps (uniform), like a tiny floating-point type."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.table import codebook_from_levels, level_count
from qvd_trt.calibrators.temporal.codebooks.weighted_values import collect
from qvd_trt.export.arrays import Float64Array
from qvd_trt.export.plan.quant_plan import Codebook

_MAX_OCTAVES = 16


def build_log2_uniform(features: TemporalFeatures, bits: int) -> Codebook:
    """Log2 steps for the magnitude and uniform steps inside, split by squared error.

    ``|x|`` is cut at ``max|x| 2^-k`` for ``k = 0 .. octaves``; every octave, and the rest below the
    last cut, holds the same number of evenly spaced levels, so that the step halves with every
    octave towards the dense part (the segments of ITU-T G.711). Levels beyond the least and
    greatest value move onto them. Of all octave counts 0 to 16, each with as many steps as the bits
    allow, the one of least squared error is taken; 0 octaves is the uniform grid.

    The formula of QVD is not public: this is one reading of "log2 and uniform", for a baseline.
    Powers of two alone near zero with a uniform grid outside, another reading, errs far more.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    count = level_count(bits)
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
    return codebook_from_levels(min(grids, key=data.grid_error))


def _octave_grid(low: float, high: float, octaves: int, steps: int) -> Float64Array:
    cuts = np.concatenate([[0.0], np.exp2(-np.arange(octaves, -1, -1, dtype=np.float64))])
    positions = np.arange((octaves + 1) * steps + 1) / steps
    magnitudes = max(-low, high) * np.interp(positions, np.arange(octaves + 2), cuts)
    return np.unique(np.clip(np.concatenate([-magnitudes, magnitudes]), low, high))
