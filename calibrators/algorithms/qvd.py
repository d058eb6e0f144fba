"""``qvd``: SCRI gated per site by the error of the layers' outputs, HTDQ on temporal sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.algorithms.layer_plans import (
    absmax_weights,
    mse_weights,
    plan_site,
)
from qvd_trt.calibrators.algorithms.problem import (
    Reference,
    SiteProblem,
    output_error,
    reference_output,
)
from qvd_trt.calibrators.algorithms.scri import (
    affine_grid,
    half_range,
    mid_shift,
    smooth_scale,
)
from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.calibrators.bits import FLOAT_BITS
from qvd_trt.calibrators.collect.request import StatisticsRequest
from qvd_trt.calibrators.plan import ActivationQuant, DensePlan

ALPHAS = (0.35, 0.5, 0.65, 0.8, 1.0)
CLIP_RATIOS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)

FINALISTS = 3
"""How many maps of the first round get their clipping searched."""

SEARCH_ROWS = 192
"""Sample rows that candidates are compared on; weights and bias correction use all of them."""

PAD_BEFORE_SHIFT_COST = 1.10
"""A shift in front of a zero-padded convolution needs a Pad node: it must gain a tenth."""


@dataclass(frozen=True, slots=True)
class Qvd:
    """Shift or not, alpha, and clipping with the least error of the layers' outputs.

    The paper (arXiv 2407.11585) shifts everywhere; METHOD says why the gate is needed: under
    scattered channel scales a mid shift alone can be worse than nothing.
    """

    name: str = "qvd"
    temporal_quantizer: str = "hidi"

    def requests(self) -> StatisticsRequest:
        """Sample rows, to measure the layers' outputs."""
        return StatisticsRequest(rows=True)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """Search in two rounds: the map without clipping, then the clipping of the best maps."""
        if problem.bits.activation == FLOAT_BITS:
            return plan_site(problem, None, mse_weights, correct_bias=True)
        search = problem.thinned(SEARCH_ROWS)
        references = {layer.name: reference_output(search, layer) for layer in problem.site.layers}
        first = sorted(
            (affine_grid(problem, shift, smooth) for shift, smooth in _maps(problem)),
            key=lambda grid: _cost(search, references, grid),
        )
        second = [
            replace(grid, scale=grid.scale * ratio)
            for grid in first[:FINALISTS]
            for ratio in (1.0, *CLIP_RATIOS)
        ]
        best = min(second, key=lambda grid: _cost(search, references, grid))
        return plan_site(problem, best, mse_weights, correct_bias=True)


def _maps(problem: SiteProblem) -> list[tuple[Float32Array | None, Float32Array | None]]:
    maps: list[tuple[Float32Array | None, Float32Array | None]] = []
    for shift in (None, mid_shift(problem)):
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
    padded = any(window.padded for window in problem.site.windows)
    if activation.shift is not None and padded:
        total *= PAD_BEFORE_SHIFT_COST
    return total
