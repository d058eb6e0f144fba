"""``qvd``: SCRI gated per site by the error of the layers' outputs, HTDQ on temporal sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qvd_trt.calibrators.algorithms.algorithm import Algorithm, absmax_weights, mse_weights
from qvd_trt.calibrators.algorithms.problem import (
    Reference,
    SiteProblem,
    output_error,
    reference_output,
)
from qvd_trt.calibrators.algorithms.scri_map import (
    affine_grid,
    half_range,
    mid_shift,
    smooth_scale,
)
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant

ALPHAS = (0.35, 0.5, 0.65, 0.8, 1.0)

HEADROOM = 1.25
"""Room above the ranges seen: calibration shows a few trajectories and conditions, and a channel
that leaves its range under the next one is clipped in every frame (see docs/results.md)."""

CLIP_RATIOS = (0.8, 0.64, 0.5, 0.4, 0.3, 0.2)
"""Candidates for clipping, times the range with headroom; 0.8 is the range seen."""

CLIP_GAIN = 0.7
"""Clipping is judged on the rows that it was chosen on, so it must remove a third of the noise."""

FINALISTS = 3
"""How many maps of the first round get their clipping searched."""

SEARCH_ROWS = 192
"""Sample rows that candidates are compared on; weights and bias correction use all of them."""

PAD_BEFORE_SHIFT_COST = 1.10
"""A shift in front of a zero-padded convolution needs a Pad node: it must gain a tenth. Where the
node costs more than INT8 gains, a target forbids such shifts (``TargetProfile.shifts_padded``)."""


def gated_grid(problem: SiteProblem) -> ActivationQuant:
    """Shift and alpha by the least error of the layers' outputs, then headroom or clipping.

    The map is chosen first and clipped only where that clearly pays. The paper (arXiv 2407.11585)
    shifts everywhere; docs/method.md#gate says why that needs a gate: under scattered scales a mid
    shift alone can be worse than nothing.
    """
    search = problem.thinned(SEARCH_ROWS)
    references = {layer.name: reference_output(search, layer) for layer in problem.site.layers}

    def cost(grid: ActivationQuant) -> float:
        return _cost(search, references, grid)

    maps = sorted(
        (_scaled(affine_grid(problem, *pair), HEADROOM) for pair in _maps(problem)), key=cost
    )
    best = maps[0]
    clipped = min(
        (_scaled(grid, ratio) for grid in maps[:FINALISTS] for ratio in CLIP_RATIOS), key=cost
    )
    return clipped if cost(clipped) < CLIP_GAIN * cost(best) else best


def _scaled(grid: ActivationQuant, ratio: float) -> ActivationQuant:
    return replace(grid, scale=grid.scale * ratio)


def _maps(problem: SiteProblem) -> list[tuple[Float32Array | None, Float32Array | None]]:
    maps: list[tuple[Float32Array | None, Float32Array | None]] = []
    for shift in (None, mid_shift(problem)) if problem.may_shift else (None,):
        ranges = half_range(problem, shift)
        maps.append((shift, None))
        maps += [(shift, smooth_scale(problem, ranges, alpha)) for alpha in ALPHAS]
    return maps


def _cost(
    problem: SiteProblem, references: Mapping[str, Reference], activation: ActivationQuant
) -> float:
    """Noise over signal, summed over the layers that share the site."""
    total = 0.0
    for layer in problem.site.layers:
        grid = None
        if problem.bits.weight != FLOAT_BITS:
            grid = absmax_weights(problem, layer, activation)
        reference = references[layer.name]
        error = output_error(problem, layer, reference, activation, grid)
        total += float(np.mean(np.square(error, dtype=np.float64))) / reference.power
    if activation.shift is not None and problem.site.padded:
        total *= PAD_BEFORE_SHIFT_COST
    return total


QVD = Algorithm(
    name="qvd",
    temporal_quantizer="hidi",
    needs_rows=True,
    choose_grid=gated_grid,
    weight_grid=mse_weights,
    correct_bias=True,
)
