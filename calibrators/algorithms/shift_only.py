"""``shift``: SCRI as the paper's abstract reads, the mid shift alone, at every site."""

from __future__ import annotations

from dataclasses import dataclass

from qvd_trt.calibrators.algorithms.layer_plans import absmax_weights, plan_site
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.scri_scale import affine_grid, mid_shift
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, DensePlan


@dataclass(frozen=True, slots=True)
class ShiftOnly:
    """``z_c = (max_c + min_c) / 2`` (arXiv 2407.11585, SCRI); no scale, no gate.

    Where the target forbids a shift, the plain grid.
    """

    name: str = "shift"
    temporal_quantizer: str = "hidi"

    def requests(self) -> StatisticsRequest:
        """Ranges only."""
        return StatisticsRequest(rows=False)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """The shifted grid without clipping."""
        if problem.bits.activation == FLOAT_BITS:
            return plan_site(problem, None, absmax_weights)
        shift = mid_shift(problem) if problem.may_shift else None
        return plan_site(problem, affine_grid(problem, shift, None), absmax_weights)
