"""From an activation's grid to the plan of a site: weights, bias correction, measured SQNR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qvd_trt.calibrators.algorithms.problem import (
    SiteProblem,
    output_error,
    quantized_rows,
    reference_output,
)
from qvd_trt.calibrators.weight_grids import absmax_grid, mse_grid
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import (
    FLOAT_BITS,
    ActivationQuant,
    DensePlan,
    LayerQuant,
    WeightQuant,
)
from qvd_trt.export.plan.sites import Layer

WeightGrid = Callable[[SiteProblem, Layer, ActivationQuant | None], WeightQuant]


def absmax_weights(
    problem: SiteProblem, layer: Layer, activation: ActivationQuant | None
) -> WeightQuant:
    """Per-channel scales that clip nothing."""
    folded = folded_weight(layer, problem.weights[layer.name], activation)
    return absmax_grid(folded, problem.bits.weight)


def mse_weights(
    problem: SiteProblem, layer: Layer, activation: ActivationQuant | None
) -> WeightQuant:
    """Per-channel scales with the least error of the layer's output."""
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


def plan_site(
    problem: SiteProblem,
    activation: ActivationQuant | None,
    weight_grid: WeightGrid,
    *,
    correct_bias: bool = False,
) -> DensePlan:
    """Quantize every layer behind the activation and measure it where there are sample rows."""
    layers = []
    for layer in problem.site.layers:
        grid = None
        if problem.bits.weight != FLOAT_BITS:
            grid = weight_grid(problem, layer, activation)
        quant = LayerQuant(layer.name, grid)
        if problem.stats.rows:
            reference = reference_output(problem, layer)
            error = output_error(problem, layer, reference, activation, grid)
            if correct_bias:
                correction = bias_correction(error)
                error = error + correction
                quant = replace(quant, bias_correction=correction)
            quant = replace(quant, sqnr=_sqnr(reference.power, error))
        layers.append(quant)
    return DensePlan(problem.site.tensor, problem.site.channel_axis, activation, tuple(layers))


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
    noise = max(float(np.mean(np.square(error, dtype=np.float64))), 1e-30)
    return round(10 * float(np.log10(power / noise)), 2)
