"""What a calibration algorithm is."""

from __future__ import annotations

from typing import Protocol

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.statistics.request import StatisticsRequest
from qvd_trt.export.plan.quant_plan import DensePlan


class Algorithm(Protocol):
    """Chooses the numbers of one dense site at a time; stateless."""

    @property
    def name(self) -> str:
        """As written in ``--algorithm``."""
        ...

    @property
    def temporal_quantizer(self) -> str:
        """The codebook that goes with it on temporal sites."""
        ...

    def requests(self) -> StatisticsRequest:
        """The statistics it needs."""
        ...

    def solve(self, problem: SiteProblem) -> DensePlan:
        """The site's part of the plan."""
        ...
