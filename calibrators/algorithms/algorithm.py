"""A calibration algorithm: how it chooses grids, and from these to the plan of a dense site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.algorithms.problem import (
    SiteProblem,
    output_error,
    quantized_rows,
    reference_output,
)
from qvd_trt.calibrators.weight_scales import absmax_grid, mse_grid
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.metrics import decibels
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import (
    FLOAT_BITS,
    ActivationQuant,
    DensePlan,
    LayerQuant,
    WeightQuant,
)
from qvd_trt.export.plan.site_types import Layer

WeightGrid = Callable[[SiteProblem, Layer, ActivationQuant | None], WeightQuant]
"""The grid of one layer's weight behind the activation's grid; None where that stays float."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Chooses the numbers of one dense site at a time.

    Attributes:
        name: As written in ``--algorithm``.
        temporal_quantizer: The name in ``CODEBOOKS`` that goes with it on temporal sites.
        needs_rows: Whether it reads sample rows. Without them it sees the ranges alone, and layers
            are not measured.
        choose_grid: The activation's grid at a site; not called where activations stay float.
        weight_grid: `absmax_weights`, or `mse_weights`, which reads sample rows.
        correct_bias: Whether the mean error of every output channel is taken off its bias; needs
            sample rows.

    Raises:
        ValueError: the bias is corrected without sample rows.
    """

    name: str
    temporal_quantizer: str
    needs_rows: bool
    choose_grid: Callable[[SiteProblem], ActivationQuant]
    weight_grid: WeightGrid
    correct_bias: bool

    def __post_init__(self) -> None:
        if self.correct_bias and not self.needs_rows:
            raise ValueError(f"algorithm {self.name!r} corrects the bias but needs no sample rows")

    def solve(self, problem: SiteProblem) -> DensePlan:
        """Quantize the site and measure its layers where there are sample rows."""
        activation = None
        if problem.bits.activation != FLOAT_BITS:
            activation = self.choose_grid(problem)
        site = problem.site
        layers = tuple(self._plan_layer(problem, layer, activation) for layer in site.layers)
        return DensePlan(site.tensor, site.channel_axis, activation, layers)

    def _plan_layer(
        self, problem: SiteProblem, layer: Layer, activation: ActivationQuant | None
    ) -> LayerQuant:
        grid = None
        if problem.bits.weight != FLOAT_BITS:
            grid = self.weight_grid(problem, layer, activation)
        quant = LayerQuant(layer.name, grid)
        if not problem.stats.rows:
            return quant
        reference = reference_output(problem, layer)
        error = output_error(problem, layer, reference, activation, grid)
        if self.correct_bias:
            correction = bias_correction(error)
            error = error + correction
            quant = replace(quant, bias_correction=correction)
        return replace(quant, sqnr=_sqnr(reference.power, error))


def absmax_weights(
    problem: SiteProblem, layer: Layer, activation: ActivationQuant | None
) -> WeightQuant:
    """Per-channel scales that clip nothing."""
    folded = folded_weight(layer, problem.weights[layer.name], activation)
    return absmax_grid(folded, problem.bits.weight)


def mse_weights(
    problem: SiteProblem, layer: Layer, activation: ActivationQuant | None
) -> WeightQuant:
    """Per-channel scales with the least error of the layer's output on the sample rows."""
    folded = folded_weight(layer, problem.weights[layer.name], activation)
    rows = problem.rows(layer)
    if activation is not None:
        rows = quantized_rows(rows, activation)
    power = np.mean(np.square(rows), axis=0)
    if layer.groups == 1:
        return mse_grid(folded, problem.bits.weight, power[None])
    grouped = power.reshape(layer.groups, -1, power.shape[-1])
    importance = np.repeat(grouped, layer.out_channels // layer.groups, axis=0)
    return mse_grid(folded, problem.bits.weight, importance)


def bias_correction(error: Float32Array) -> Float32Array:
    """Minus the mean output error per channel, shrunk by how uncertain that mean is.

    The mean over R sample rows has variance ``var / R``; the positive-part James-Stein factor
    ``max(0, 1 - var / (R mean^2))`` keeps the correction from adding sampling noise.

    Args:
        error: ``[R, N]``.

    Returns:
        ``[N]``.
    """
    mean = error.mean(axis=0, dtype=np.float64)
    variance = error.var(axis=0, dtype=np.float64) / len(error)
    shrink = np.maximum(0.0, 1.0 - variance / np.maximum(np.square(mean), 1e-30))
    correction: Float32Array = (-mean * shrink).astype(np.float32)
    return correction


def _sqnr(power: float, error: Float32Array) -> float:
    """Signal to quantization-noise ratio in dB."""
    return round(decibels(power, float(np.mean(np.square(error, dtype=np.float64)))), 2)
