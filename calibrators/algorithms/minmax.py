"""``minmax``: the range of everything seen, symmetric, per tensor; the plain baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvd_trt.calibrators.algorithms.layer_plans import absmax_weights, plan_site
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.grid import scale_for
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant, DensePlan


@dataclass(frozen=True, slots=True)
class MinMax:
    """Scale = largest magnitude over the trajectory / highest code."""

    name: str = "minmax"
    temporal_quantizer: str = "uniform"

    def requests(self) -> StatisticsRequest:
        """Ranges only."""
        return StatisticsRequest(rows=False)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """One scale from the extreme values."""
        activation = None
        if problem.bits.activation != FLOAT_BITS:
            low, high = problem.channel_range()
            absmax = np.maximum(np.abs(low), np.abs(high)).max()
            scale = float(scale_for(absmax, problem.bits.activation))
            activation = ActivationQuant(problem.bits.activation, scale)
        return plan_site(problem, activation, absmax_weights)
