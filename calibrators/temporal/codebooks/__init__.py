"""One file per construction of a codebook, and the registry of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qvd_trt.calibrators.temporal.codebooks.hidi import build_hidi
from qvd_trt.calibrators.temporal.codebooks.lloyd_max import build_lloyd_max
from qvd_trt.calibrators.temporal.codebooks.log2 import build_log2
from qvd_trt.calibrators.temporal.codebooks.log2_uniform import build_log2_uniform
from qvd_trt.calibrators.temporal.codebooks.mu_law import build_mu_law
from qvd_trt.calibrators.temporal.codebooks.table import CodebookBuilder
from qvd_trt.calibrators.temporal.codebooks.uniform import (
    build_uniform,
    build_uniform_asymmetric,
)

CODEBOOKS: Mapping[str, CodebookBuilder] = MappingProxyType(
    {
        "uniform": build_uniform,
        "uniform-asymmetric": build_uniform_asymmetric,
        "log2": build_log2,
        "log2-uniform": build_log2_uniform,
        "mu-law": build_mu_law,
        "lloyd-max": build_lloyd_max,
        "hidi": build_hidi,
    }
)
"""The constructions of ``--temporal``, by name."""

DEFAULT_CODEBOOK = "hidi"

__all__ = ["CODEBOOKS", "DEFAULT_CODEBOOK", "CodebookBuilder"]
