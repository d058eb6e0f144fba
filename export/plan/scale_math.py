"""The uniform grid as ONNX QuantizeLinear and TensorRT compute it, its scales, and fp16's range."""

from __future__ import annotations

import numpy as np

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.quant_plan import WeightQuant
from qvd_trt.export.targets import ScaleType

MIN_SCALE = np.float32(1e-12)
_SMALLEST_FP16_SCALE = np.float32(2.0**-20)
_LEAST_EXACT_FP16_SCALE = np.float32(2.0**-17)
"""From here on rounding to fp16 moves the highest code of 8 bits by half a step at most."""
_GREATEST_FP16_SCALE = np.float32(65504)

FP16_LIMIT = 65504.0 / 4
"""Largest measured magnitude that fp16 is trusted with: calls that calibration did not see may
reach a few times what it saw."""

FP16_FLOOR = 2.0**-17
"""A tensor whose largest magnitude is below this has at most 7 bits in fp16."""


def activation_levels(bits: int) -> tuple[int, int]:
    """Lowest and highest code of an activation: -128..127 for 8 bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def weight_levels(bits: int) -> tuple[int, int]:
    """Lowest and highest code of a weight, symmetric: -127..127 for 8 bits."""
    return 1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1


def scale_for(absmax: float | Float32Array, bits: int) -> Float32Array:
    """The scale at which ``absmax`` gets the highest code; never zero."""
    _, highest = weight_levels(bits)
    scale: Float32Array = np.maximum(np.asarray(absmax, np.float32) / highest, MIN_SCALE)
    return scale


def codes(values: Float32Array, scale: Float32Array, levels: tuple[int, int]) -> Float32Array:
    """Round to the nearest code (ties to even), saturate at ``levels``; integral float32."""
    rounded: Float32Array = np.rint(values / scale)
    return np.clip(rounded, *levels)


def quantize_dequantize(
    values: Float32Array, scale: Float32Array, levels: tuple[int, int]
) -> Float32Array:
    """What the values become on the grid; shapes broadcast, float32."""
    snapped: Float32Array = codes(values, scale, levels) * scale
    return snapped


def fake_quantized(weight: Float32Array, grid: WeightQuant) -> Float32Array:
    """Quantize-dequantize ``[N, C, taps]`` with one scale per output channel."""
    return quantize_dequantize(weight, grid.scales[:, None, None], weight_levels(grid.bits))


def holds_scale(scale: Float32Array | np.float32, scale_type: ScaleType) -> bool:
    """Whether a type holds all of these scales well enough that no code is lost.

    Scales of channels that are all zero do not count: any scale serves them.
    """
    if scale_type is ScaleType.FLOAT32:
        return True
    array = np.asarray(scale, np.float32)
    used = array[array > MIN_SCALE * np.float32(1.001)]
    if not used.size:
        return True
    return bool(used.min() >= _LEAST_EXACT_FP16_SCALE and used.max() <= _GREATEST_FP16_SCALE)


def representable_scale(scale: Float32Array | np.float32, scale_type: ScaleType) -> Float32Array:
    """The scale as a target's file will hold it, still float32; codes are rounded against it.

    Scales that fp16 does not hold (:func:`holds_scale`) stay as they are, which makes
    ``LowerPrecision`` leave their layers in float32. Those of channels that are all zero become
    the least that fp16 takes.
    """
    array = np.asarray(scale, np.float32)
    if scale_type is ScaleType.FLOAT16 and holds_scale(array, scale_type):
        array = np.maximum(array, _SMALLEST_FP16_SCALE).astype(np.float16).astype(np.float32)
    return array


def beyond_fp16(magnitude: float) -> bool:
    """Whether a tensor of this largest magnitude must not be stored in fp16; zero may."""
    return magnitude > FP16_LIMIT or 0.0 < magnitude < FP16_FLOOR
