"""Levels at powers of two, alone and with evenly spaced levels between them."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.statistics.stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks.table import (
    codebook_from_levels,
    level_count,
    value_range,
)
from qvd_trt.export.plan.quant_plan import Codebook

_LAST_EXPONENT = 100
"""Smaller powers would leave the normal numbers of float32 for small features."""


def build_log2(features: TemporalFeatures, bits: int) -> Codebook:
    """Signed powers of two: ``+-max|x| 2^-k`` for ``k = 0 .. 2^(bits-1) - 1``.

    One bit is the sign and there is no zero, as in log2 quantizers of activations. Powers below
    ``2^-100`` are left out. Coarse at the large values, so a poor choice for temporal features:
    a baseline.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the features are empty or not finite.
    """
    half = level_count(bits) // 2
    largest = max(map(abs, value_range(features)))
    powers = largest * np.exp2(-np.arange(min(half, _LAST_EXPONENT + 1), dtype=np.float64))
    return codebook_from_levels(np.concatenate([-powers, powers]))
