"""The per-channel affine map of SCRI: its shift, its scale, and the grid that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.quant_plan import ActivationQuant
from qvd_trt.export.plan.scale_math import scale_for
from qvd_trt.export.plan.site_types import Layer

_DEAD_CHANNEL = np.float32(1e-4)
"""Ranges and weights are floored at this fraction of the largest, so that no scale explodes."""


@dataclass(frozen=True, slots=True)
class MapRule:
    """How a map follows from ranges, so that it can be made again from other ones.

    Attributes:
        shifted: Whether channels are shifted to the middle of their range.
        alpha: Exponent of the scale, or None for no scale.
    """

    shifted: bool = False
    alpha: float | None = None

    def grid(self, problem: SiteProblem, reach: Float32Array) -> ActivationQuant:
        """The grid that clips nothing under the map of this problem's ranges.

        Args:
            problem: The site.
            reach: Its :func:`weight_reach`.
        """
        shift = mid_shift(problem) if self.shifted else None
        smooth = None
        if self.alpha is not None:
            smooth = smooth_scale(half_range(problem, shift), reach, self.alpha)
        return affine_grid(problem, shift, smooth)


def mid_shift(problem: SiteProblem) -> Float32Array:
    """``z_c = (max_c + min_c) / 2``, ``[C]`` (docs/method.md#scri)."""
    low, high = problem.channel_range()
    middle: Float32Array = (low + high) * np.float32(0.5)
    return middle


def half_range(problem: SiteProblem, shift: Float32Array | None) -> Float32Array:
    """``r_c = max |x_c - z_c|``, ``[C]``; half the channel's range under the mid shift."""
    low, high = problem.channel_range()
    if shift is not None:
        low, high = low - shift, high - shift
    return np.maximum(np.abs(low), np.abs(high))


def smooth_scale(ranges: Float32Array, reach: Float32Array, alpha: float) -> Float32Array:
    """``s_c = r_c^a / w_c^(1-a)``, normalised so that ``max_c r_c / s_c`` is the tensor range.

    Args:
        ranges: ``r``, ``[C]``.
        reach: ``w``, ``[C]``.
        alpha: ``a``.
    """
    ranges, reach = _floored(ranges), _floored(reach)
    smooth = ranges**alpha / reach ** (1 - alpha)
    normalised: Float32Array = smooth * (ranges / smooth).max() / ranges.max()
    return normalised.astype(np.float32)


def weight_reach(problem: SiteProblem) -> Float32Array:
    """``w_c = max |W[:, c]|`` over all layers that read the site, ``[C]``."""
    reach = np.zeros(problem.site.channels, np.float32)
    for layer in problem.site.layers:
        reach = np.maximum(reach, _layer_reach(layer, problem.weights[layer.name]))
    return reach


def affine_grid(
    problem: SiteProblem, shift: Float32Array | None, smooth: Float32Array | None
) -> ActivationQuant:
    """The grid that clips nothing under a given map."""
    ranges = half_range(problem, shift)
    if smooth is not None:
        ranges = ranges / smooth
    bits = problem.bits.activation
    return ActivationQuant(bits, float(scale_for(ranges.max(), bits)), shift, smooth)


def _layer_reach(layer: Layer, weight: Float32Array) -> Float32Array:
    reach: Float32Array = np.abs(weight).max(axis=2)
    widest: Float32Array = reach.reshape(layer.groups, -1, reach.shape[1]).max(axis=1).ravel()
    return widest


def _floored(values: Float32Array) -> Float32Array:
    floor = np.float32(max(float(values.max()), 1e-30)) * _DEAD_CHANNEL
    floored: Float32Array = np.maximum(values, floor)
    return floored
