"""Evenly spaced levels: the baselines that INT8 hardware would use."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.table import (
    codebook_from_levels,
    level_count,
    value_range,
)
from qvd_trt.export.plan.quant_plan import Codebook


def build_uniform(features: TemporalFeatures, bits: int) -> Codebook:
    """Build the symmetric min-max integer grid: codes times ``max|x| / (2^(bits-1) - 1)``.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    half = level_count(bits) // 2
    largest = max(map(abs, value_range(features)))
    return codebook_from_levels(np.arange(-half, half) * (largest / max(half - 1, 1)))


def build_uniform_asymmetric(features: TemporalFeatures, bits: int) -> Codebook:
    """``2^bits`` levels spread evenly from the least to the greatest value.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    return codebook_from_levels(np.linspace(*value_range(features), level_count(bits)))
