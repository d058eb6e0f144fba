"""Per-output-channel scales of a weight."""

from __future__ import annotations

import numpy as np

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.quant_plan import WeightQuant
from qvd_trt.export.plan.scale_math import fake_quantized, scale_for

_BLOCK_ELEMENTS = 1 << 16

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


def absmax_grid(weight: Float32Array, bits: int) -> WeightQuant:
    """Scales that clip nothing. ``weight`` is ``[N, C, taps]``."""
    return WeightQuant(bits, scale_for(np.abs(weight).max(axis=(1, 2)), bits))


def mse_grid(
    weight: Float32Array, bits: int, importance: Float32Array | None = None
) -> WeightQuant:
    """Scales that minimise the (weighted) squared error of each output channel.

    Args:
        weight: ``[N, C, taps]``.
        bits: Width of the codes.
        importance: ``[1 or N, C, taps or 1]``: mean square of the input that each element
            multiplies, so that the error is that of the layer's output for uncorrelated inputs.
    """
    # Blocks that stay in the cache: there are eight candidates and several arrays for each.
    count = max(1, _BLOCK_ELEMENTS // max(1, weight[0].size))
    scales = [
        _least_error_scales(
            weight[first : first + count],
            bits,
            importance
            if importance is None or len(importance) == 1
            else importance[first : first + count],
        )
        for first in range(0, len(weight), count)
    ]
    return WeightQuant(bits, np.concatenate(scales))


def _least_error_scales(
    weight: Float32Array, bits: int, importance: Float32Array | None
) -> Float32Array:
    absmax = np.abs(weight).max(axis=(1, 2))
    best_error = np.full(len(weight), np.inf)
    best_scale = scale_for(absmax, bits)
    for ratio in CLIP_RATIOS:
        scale = scale_for(absmax * np.float32(ratio), bits)
        error = np.square(fake_quantized(weight, WeightQuant(bits, scale)) - weight)
        if importance is not None:
            error *= importance
        total = error.sum(axis=(1, 2), dtype=np.float64)
        better = total < best_error
        best_error = np.where(better, total, best_error)
        best_scale = np.where(better, scale, best_scale)
    return best_scale
