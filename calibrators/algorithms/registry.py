"""The algorithms by the name that ``--algorithm`` takes."""

from __future__ import annotations

from qvd_trt.calibrators.algorithms.algorithm import Algorithm
from qvd_trt.calibrators.algorithms.baselines import MINMAX, MSE, PERCENTILE, SHIFT, SMOOTHQUANT
from qvd_trt.calibrators.algorithms.qvd import QVD

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (QVD, SHIFT, SMOOTHQUANT, MSE, PERCENTILE, MINMAX)
}
