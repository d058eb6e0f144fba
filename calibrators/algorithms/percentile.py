"""``percentile``: clip the largest magnitudes, per tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvd_trt.calibrators.algorithms.layer_plans import absmax_weights, plan_site
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.grid import scale_for
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant, DensePlan


@dataclass(frozen=True, slots=True)
class Percentile:
    """Scale from a percentile of the magnitudes in the sample rows.

    Attributes:
        percentile: In percent; 99.99 as in common PTQ tools.
    """

    name: str = "percentile"
    temporal_quantizer: str = "uniform"
    percentile: float = 99.99

    def requests(self) -> StatisticsRequest:
        """Sample rows."""
        return StatisticsRequest(rows=True)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """One scale from the percentile."""
        activation = None
        if problem.bits.activation != FLOAT_BITS:
            magnitudes = np.concatenate(
                [np.abs(rows.values).ravel() for rows in problem.stats.rows.values()]
            )
            absmax = float(np.percentile(magnitudes, self.percentile))
            scale = float(scale_for(absmax, problem.bits.activation))
            activation = ActivationQuant(problem.bits.activation, scale)
        return plan_site(problem, activation, absmax_weights)
