"""What an algorithm sees of one dense site, and how it measures a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qvd_trt.calibrators.statistics.activation_stats import SiteStats
from qvd_trt.export.arrays import Float32Array, Float64Array
from qvd_trt.export.plan.fold_math import folded_weight, reciprocal, shift_bias
from qvd_trt.export.plan.quant_plan import ActivationQuant, Bits, WeightQuant
from qvd_trt.export.plan.scale_math import activation_levels, fake_quantized, quantize_dequantize
from qvd_trt.export.plan.site_types import Layer, Site


@dataclass(frozen=True, slots=True, eq=False)
class SiteProblem:
    """One site to solve.

    Attributes:
        site: The activation tensor and its layers.
        stats: Its ranges and, when requested, its sample rows.
        weights: ``[N, C / groups, taps]`` float32 by layer name.
        bits: Widths to solve for.
        timesteps: ``[T]`` float64, the first axis of the ranges.
        may_shift: Whether a shift is worth its nodes on the runtime.
    """

    site: Site
    stats: SiteStats
    weights: Mapping[str, Float32Array]
    bits: Bits
    timesteps: Float64Array
    may_shift: bool = True

    @property
    def trajectories(self) -> int:
        """Number of folds that had calls."""
        return len(self.stats.fold_ranges.called())

    def channel_range(self) -> tuple[Float32Array, Float32Array]:
        """Minimum and maximum ``[C]`` over the trajectory, zero included where it is padded."""
        low, high = self.stats.ranges.over()
        if self.site.padded:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        return low, high

    def rows(self, layer: Layer) -> Float32Array:
        """What the layer reads, ``[R, C, taps]``."""
        return self.stats.rows[layer.window.key].values


def transformed_rows(rows: Float32Array, activation: ActivationQuant) -> Float32Array:
    """``x' = (x - shift) * (1 / smooth)`` on ``[R, C, taps]``, rounded as the graph computes it."""
    if activation.shift is not None:
        rows = rows - activation.shift[None, :, None]
    if activation.smooth is not None:
        rows = rows * reciprocal(activation.smooth)[None, :, None]
    return rows


def quantized_rows(rows: Float32Array, activation: ActivationQuant) -> Float32Array:
    """``x'`` on its grid, ``[R, C, taps]``."""
    scale = np.asarray(activation.scale, np.float32)
    return quantize_dequantize(
        transformed_rows(rows, activation), scale, activation_levels(activation.bits)
    )


def layer_output(layer: Layer, rows: Float32Array, weight: Float32Array) -> Float32Array:
    """The layer's linear part, without bias, on sample rows.

    Args:
        layer: The layer.
        rows: ``[R, C, taps]``.
        weight: ``[N, C / groups, taps]``.

    Returns:
        ``[R, N]``.
    """
    outputs: Float32Array
    if layer.groups == 1:
        outputs = rows.reshape(len(rows), -1) @ weight.reshape(len(weight), -1).T
        return outputs
    grouped_rows = rows.reshape(len(rows), layer.groups, -1)
    grouped_weight = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    outputs = np.einsum("rgk,gnk->rgn", grouped_rows, grouped_weight, optimize=True)
    return outputs.reshape(len(rows), -1)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a layer should compute.

    Attributes:
        output: Float output without bias on the sample rows, ``[R, N]``.
        power: Its mean square; never zero.
    """

    output: Float32Array
    power: float


def reference_output(problem: SiteProblem, layer: Layer) -> Reference:
    """The layer's float output on its sample rows."""
    output = layer_output(layer, problem.rows(layer), problem.weights[layer.name])
    return Reference(output, max(float(np.mean(np.square(output, dtype=np.float64))), 1e-30))


def output_error(
    problem: SiteProblem,
    layer: Layer,
    reference: Reference,
    activation: ActivationQuant | None,
    grid: WeightQuant | None,
) -> Float32Array:
    """``Q(X') Q(W') + W z - X W`` on the layer's sample rows, ``[R, N]``."""
    rows, weight = problem.rows(layer), problem.weights[layer.name]
    folded = folded_weight(layer, weight, activation)
    used_weight = folded if grid is None else fake_quantized(folded, grid)
    used_rows = rows if activation is None else quantized_rows(rows, activation)
    output = layer_output(layer, used_rows, used_weight)
    gained = shift_bias(layer, weight, activation)
    if gained is not None:
        output = output + gained
    return output - reference.output
