"""INT8 video diffusion on TensorRT: the names that people need, imported when they are used.

``docs/api.md`` shows them at work. Nothing here imports torch, ONNX Runtime or TensorRT before a
name is asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvd_trt.export.targets import TARGETS as TARGETS
    from qvd_trt.export.plan.quant_plan import QuantPlan as QuantPlan
    from qvd_trt.export.plan.site_types import GraphSites as GraphSites
    from qvd_trt.export.targets import FloatType as FloatType
    from qvd_trt.export.graph.float_model import FloatModel as FloatModel
    from qvd_trt.calibrators.statistics.activation_stats import ActivationStats as ActivationStats
    from qvd_trt.calibrators.algorithms.registry import ALGORITHMS as ALGORITHMS
    from qvd_trt.calibrators.calibrate import CalibrationOptions as CalibrationOptions
    from qvd_trt.calibrators.calibrate import calibrate as calibrate
    from qvd_trt.calibrators.solve import SolveOptions as SolveOptions
    from qvd_trt.calibrators.solve import solve as solve
    from qvd_trt.calibrators.sources.open_source import open_source as open_source
    from qvd_trt.export.apply_plan import ApplyOptions as ApplyOptions
    from qvd_trt.export.apply_plan import apply_plan as apply_plan
    from qvd_trt.export.errors import UserError as UserError
    from qvd_trt.export.graph.find_sites import find_sites as find_sites
    from qvd_trt.export.model_file import open_model as open_model
    from qvd_trt.export.model_file import save_model as save_model
    from qvd_trt.export.plan.quant_plan import Bits as Bits
    from qvd_trt.tools.denoisers.ort_denoiser import OrtDenoiser as OrtDenoiser
    from qvd_trt.tools.denoisers.trt_denoiser import TrtDenoiser as TrtDenoiser
    from qvd_trt.tools.engine.build_engine import build_engine as build_engine
    from qvd_trt.tools.engine.build_plan import BuildRequest as BuildRequest
    from qvd_trt.tools.measure_held_out import measure as measure
    from qvd_trt.tools.quantize import quantize as quantize
    from qvd_trt.tools.quantize_request import QuantizeRequest as QuantizeRequest
    from qvd_trt.tools.validation.request import ValidationRequest as ValidationRequest
    from qvd_trt.tools.validation.validate import validate as validate

try:
    __version__ = version("qvd-trt")
except PackageNotFoundError:
    __version__ = "unknown"

_MODULES = {
    "TARGETS": "export.targets",
    "QuantPlan": "export.plan.quant_plan",
    "GraphSites": "export.plan.site_types",
    "FloatType": "export.targets",
    "FloatModel": "export.graph.float_model",
    "ActivationStats": "calibrators.statistics.activation_stats",
    "ALGORITHMS": "calibrators.algorithms.registry",
    "ApplyOptions": "export.apply_plan",
    "Bits": "export.plan.quant_plan",
    "BuildRequest": "tools.engine.build_plan",
    "CalibrationOptions": "calibrators.calibrate",
    "OrtDenoiser": "tools.denoisers.ort_denoiser",
    "QuantizeRequest": "tools.quantize_request",
    "SolveOptions": "calibrators.solve",
    "TrtDenoiser": "tools.denoisers.trt_denoiser",
    "UserError": "export.errors",
    "ValidationRequest": "tools.validation.request",
    "apply_plan": "export.apply_plan",
    "build_engine": "tools.engine.build_engine",
    "calibrate": "calibrators.calibrate",
    "find_sites": "export.graph.find_sites",
    "measure": "tools.measure_held_out",
    "open_model": "export.model_file",
    "open_source": "calibrators.sources.open_source",
    "quantize": "tools.quantize",
    "save_model": "export.model_file",
    "solve": "calibrators.solve",
    "validate": "tools.validation.validate",
}
"""Public name -> the module of this package that holds it."""

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
