"""The algorithms that QVD is compared with, and its shift alone: no search over maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qvd_trt.calibrators.algorithms.algorithm import Algorithm, absmax_weights, mse_weights
from qvd_trt.calibrators.algorithms.problem import SiteProblem, quantized_rows
from qvd_trt.calibrators.algorithms.scri_map import (
    MapRule,
    affine_grid,
    mid_shift,
    weight_reach,
)
from qvd_trt.export.plan.quant_plan import ActivationQuant
from qvd_trt.export.plan.scale_math import scale_for

CLIP_PERCENTILE = 99.99
"""In percent, as in common PTQ tools."""

MSE_CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Candidates of ``mse``, times the range seen."""

SMOOTHQUANT_ALPHA = 0.5


def minmax_grid(problem: SiteProblem) -> ActivationQuant:
    """Scale = largest magnitude over the trajectory / highest code."""
    return affine_grid(problem, shift=None, smooth=None)


def percentile_grid(problem: SiteProblem) -> ActivationQuant:
    """Scale = a percentile of the magnitudes in the sample rows / highest code."""
    magnitudes = np.concatenate(
        [np.abs(rows.values).ravel() for rows in problem.stats.rows.values()]
    )
    bits = problem.bits.activation
    absmax = float(np.percentile(magnitudes, CLIP_PERCENTILE))
    return ActivationQuant(bits, float(scale_for(absmax, bits)))


def mse_clipped_grid(problem: SiteProblem) -> ActivationQuant:
    """The clip ratio with the least squared error of the activation itself on the sample rows."""
    whole = minmax_grid(problem)
    candidates = [replace(whole, scale=whole.scale * ratio) for ratio in MSE_CLIP_RATIOS]
    return min(candidates, key=lambda candidate: _rows_error(problem, candidate))


def smoothquant_grid(problem: SiteProblem) -> ActivationQuant:
    """``s_c = max|x_c|^a / max|W_c|^(1-a)`` at every site, no clipping (arXiv 2211.10438)."""
    return MapRule(alpha=SMOOTHQUANT_ALPHA).grid(problem, weight_reach(problem))


def shift_grid(problem: SiteProblem) -> ActivationQuant:
    """``z_c = (max_c + min_c) / 2`` (arXiv 2407.11585, SCRI); no scale, no gate.

    Where the target forbids a shift, the plain grid.
    """
    return affine_grid(problem, mid_shift(problem) if problem.may_shift else None, None)


def _rows_error(problem: SiteProblem, activation: ActivationQuant) -> float:
    return sum(
        float(np.square(quantized_rows(rows.values, activation) - rows.values).sum())
        for rows in problem.stats.rows.values()
    )


SHIFT = Algorithm(
    name="shift",
    temporal_quantizer="hidi",
    needs_rows=False,
    choose_grid=shift_grid,
    weight_grid=absmax_weights,
    correct_bias=False,
)

SMOOTHQUANT = Algorithm(
    name="smoothquant",
    temporal_quantizer="uniform",
    needs_rows=False,
    choose_grid=smoothquant_grid,
    weight_grid=absmax_weights,
    correct_bias=False,
)

MSE = Algorithm(
    name="mse",
    temporal_quantizer="uniform",
    needs_rows=True,
    choose_grid=mse_clipped_grid,
    weight_grid=mse_weights,
    correct_bias=False,
)

PERCENTILE = Algorithm(
    name="percentile",
    temporal_quantizer="uniform",
    needs_rows=True,
    choose_grid=percentile_grid,
    weight_grid=absmax_weights,
    correct_bias=False,
)

MINMAX = Algorithm(
    name="minmax",
    temporal_quantizer="uniform",
    needs_rows=False,
    choose_grid=minmax_grid,
    weight_grid=absmax_weights,
    correct_bias=False,
)
