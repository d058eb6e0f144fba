"""The algorithms by the name that ``--algorithm`` takes."""

from __future__ import annotations

from qvd_trt.calibrators.algorithms.base import Algorithm
from qvd_trt.calibrators.algorithms.minmax import MinMax
from qvd_trt.calibrators.algorithms.mse import Mse
from qvd_trt.calibrators.algorithms.percentile import Percentile
from qvd_trt.calibrators.algorithms.qvd import Qvd
from qvd_trt.calibrators.algorithms.shift_only import ShiftOnly
from qvd_trt.calibrators.algorithms.smoothquant import SmoothQuant

_ALL: tuple[Algorithm, ...] = (
    Qvd(),
    ShiftOnly(),
    SmoothQuant(),
    Mse(),
    Percentile(),
    MinMax(),
)

ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in _ALL}
