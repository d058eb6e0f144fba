"""What the emitted file says of itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import onnx_ir as ir

from qvd_trt.calibrators.plan import QuantPlan


class WriteMetadata(ir.passes.InPlacePass):
    """Record how the model was made, under ``qvd.`` metadata keys."""

    def __init__(self, plan: QuantPlan, target: str, float_type: str) -> None:
        super().__init__()
        self._entries = {
            "qvd.version": _package_version(),
            "qvd.source": plan.model_hash,
            "qvd.algorithm": plan.algorithm,
            "qvd.bits": str(plan.bits),
            "qvd.target": target,
            "qvd.dtype": float_type,
        }

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.metadata_props.update(self._entries)
        return ir.passes.PassResult(model, True)


def _package_version() -> str:
    try:
        return version("qvd-trt")
    except PackageNotFoundError:
        return "unknown"
