"""What SCRI does to a layer's constants, in one layout for all operators.

Weights are ``[N, C / groups, taps]``. Formulas: docs/method.md#scri.
"""

from __future__ import annotations

import numpy as np

from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.plan.quant_plan import ActivationQuant
from qvd_trt.export.plan.site_types import Layer, LayerOp


def canonical_weight(layer: Layer, weight: AnyArray) -> Float32Array:
    """The weight as ``[N, C / groups, taps]`` float32."""
    array = np.asarray(weight, np.float32)
    if layer.op is LayerOp.CONV:
        return array.reshape(array.shape[0], array.shape[1], -1)
    return np.moveaxis(array, layer.out_axis, 0)[:, :, None]


def restored_weight(layer: Layer, canonical: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """The inverse of :func:`canonical_weight`; keeps the dtype."""
    if layer.op is LayerOp.CONV:
        return canonical.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(canonical[:, :, 0], 0, layer.out_axis))


def per_input_channel(layer: Layer, values: Float32Array) -> Float32Array:
    """A vector over the activation's channels, arranged to multiply a canonical weight.

    Args:
        layer: The layer.
        values: ``[C]``.

    Returns:
        ``[1, C, 1]``, or ``[N, C / groups, 1]`` for a grouped convolution.
    """
    if layer.groups == 1:
        return values[None, :, None]
    per_group = values.reshape(layer.groups, -1)
    return np.repeat(per_group, layer.out_channels // layer.groups, axis=0)[:, :, None]


def reciprocal(smooth: Float32Array) -> Float32Array:
    """``1 / s`` in float32, the factor that the graph multiplies by."""
    inverse: Float32Array = np.float32(1) / smooth
    return inverse


def folded_weight(
    layer: Layer, weight: Float32Array, activation: ActivationQuant | None
) -> Float32Array:
    """``W' = W diag(smooth)``, ``[N, C / groups, taps]``."""
    if activation is None or activation.smooth is None:
        return weight
    return weight * per_input_channel(layer, activation.smooth)


def shift_bias(
    layer: Layer, weight: Float32Array, activation: ActivationQuant | None
) -> Float32Array | None:
    """``W z``, ``[N]``: what the folded bias gains; ``weight`` is the original one."""
    if activation is None or activation.shift is None:
        return None
    gained: Float32Array = (
        (weight * per_input_channel(layer, activation.shift))
        .sum(axis=(1, 2), dtype=np.float64)
        .astype(np.float32)
    )
    return gained
