"""``smoothquant``: a fixed per-channel scale, alpha 0.5, no shift (arXiv 2211.10438)."""

from __future__ import annotations

from dataclasses import dataclass

from qvd_trt.calibrators.algorithms.layer_plans import absmax_weights, plan_site
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.scri_scale import affine_grid, half_range, smooth_scale
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, DensePlan


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """``s_c = max|x_c|^a / max|W_c|^(1-a)`` at every site."""

    name: str = "smoothquant"
    temporal_quantizer: str = "uniform"
    alpha: float = 0.5

    def requests(self) -> StatisticsRequest:
        """Ranges only."""
        return StatisticsRequest(rows=False)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """The smoothed grid without clipping."""
        if problem.bits.activation == FLOAT_BITS:
            return plan_site(problem, None, absmax_weights)
        smooth = smooth_scale(problem, half_range(problem, None), self.alpha)
        return plan_site(problem, affine_grid(problem, None, smooth), absmax_weights)
