"""Weights in one layout, whatever the operator: ``[N, C / groups, taps]``."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.arrays import AnyArray, Float32Array
from qvd_trt.calibrators.sites import Layer, LayerOp


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
