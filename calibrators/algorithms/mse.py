"""``mse``: clip where the squared error of the activation itself is least, per tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.algorithms.layer_plans import mse_weights, plan_site
from qvd_trt.calibrators.algorithms.minmax import MinMax
from qvd_trt.calibrators.algorithms.problem import SiteProblem, quantized_rows
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.quant_plan import ActivationQuant, DensePlan

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass(frozen=True, slots=True)
class Mse:
    """Clipping by the activation's own error, weights by their weighted error."""

    name: str = "mse"
    temporal_quantizer: str = "uniform"

    def requests(self) -> StatisticsRequest:
        """Sample rows."""
        return StatisticsRequest(rows=True)

    def solve(self, problem: SiteProblem) -> DensePlan:
        """The clip ratio with the least squared error on the sample rows."""
        activation = MinMax().solve(problem).activation
        if activation is not None:
            candidates = [
                replace(activation, scale=activation.scale * ratio) for ratio in CLIP_RATIOS
            ]
            activation = min(candidates, key=lambda candidate: _rows_error(problem, candidate))
        return plan_site(problem, activation, mse_weights)


def _rows_error(problem: SiteProblem, activation: ActivationQuant) -> float:
    return sum(
        float(np.square(quantized_rows(rows.values, activation) - rows.values).sum())
        for rows in problem.stats.rows.values()
    )
