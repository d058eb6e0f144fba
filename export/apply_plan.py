"""From a float model and a plan to the emitted model: the passes, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.plan import QuantPlan
from qvd_trt.calibrators.sites import Layer
from qvd_trt.export.graph.layers import find_layers
from qvd_trt.export.passes.define_htdq import DefineHtdq
from qvd_trt.export.passes.fold_scri import FoldScri
from qvd_trt.export.passes.insert_htdq import InsertHtdq
from qvd_trt.export.passes.insert_qdq import InsertQdq
from qvd_trt.export.passes.lower_opset import LowerOpset
from qvd_trt.export.passes.lower_precision import LowerPrecision
from qvd_trt.export.passes.multiply_then_add import MultiplyThenAdd
from qvd_trt.export.passes.normalize_without_plugin import NormalizeWithoutPlugin
from qvd_trt.export.passes.raise_opset import HIGHEST, LOWEST, RaiseOpset
from qvd_trt.export.passes.state_kernel_shapes import StateKernelShapes
from qvd_trt.export.passes.whole_shapes import WholeShapes
from qvd_trt.export.passes.write_metadata import WriteMetadata
from qvd_trt.export.targets import FloatType, HtdqForm, ScaleType, TargetProfile

_QDQ_SCALES: Mapping[ScaleType, Literal["same", "float32"]] = {
    ScaleType.FLOAT16: "same",
    ScaleType.FLOAT32: "float32",
}


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """How a plan becomes a file.

    Attributes:
        target: The runtime's rules.
        float_type: Type of the rest of the graph.
        htdq_form: How HTDQ nodes are written; None takes the target's default.
    """

    target: TargetProfile
    float_type: FloatType
    htdq_form: HtdqForm | None = None


def apply_plan(model: ir.Model, plan: QuantPlan, options: ApplyOptions) -> ir.Model:
    """Return the QDQ model; ``model`` (already prepared) is left as it is.

    Raises:
        UserError: the plan names a layer or tensor that the graph does not have, or the model
            cannot be brought to the target's opset or type.
    """
    layers = _planned_layers(model, plan)
    target = options.target
    scale_type = target.scale_type(options.float_type)
    emitted = model.clone()
    opset = model.opset_imports[""]
    _check_opset(opset, options)
    passes: list[ir.passes.InPlacePass] = []
    if opset < target.min_opset(options.float_type):
        passes.append(RaiseOpset(target.min_opset(options.float_type)))
    passes += [
        FoldScri(plan.dense, layers),
        InsertHtdq(plan.temporal),
        InsertQdq(plan.dense, plan.temporal, layers, target.weight_form, scale_type),
    ]
    if options.float_type is not FloatType.FP32:
        passes.append(LowerPrecision(options.float_type.value, qdq_scales=_QDQ_SCALES[scale_type]))
    # After lowering, so that an inlined body keeps its float32 comparison.
    passes.append(DefineHtdq(options.htdq_form or target.htdq_form))
    if opset > target.max_opset:
        passes += [LowerOpset(target.max_opset), RemoveUnusedNodesPass()]
    if target.spares_tensorrt8:
        passes += [MultiplyThenAdd(), NormalizeWithoutPlugin(), WholeShapes(), StateKernelShapes()]
    passes.append(WriteMetadata(plan, target.name, options.float_type.value))
    for step in passes:
        step(emitted)
    return emitted


def fold_only(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """The float model with SCRI folded in and nothing quantized; computes the same function."""
    layers = _planned_layers(model, plan)
    rewritten = model.clone()
    FoldScri(plan.dense, layers)(rewritten)
    return rewritten


def _check_opset(opset: int, options: ApplyOptions) -> None:
    lowest = min(LOWEST, options.target.min_opset(options.float_type))
    if not lowest <= opset <= HIGHEST:
        raise UserError(
            f"the model has opset {opset}, target {options.target.name} can be written from "
            f"{lowest} to {HIGHEST}; export it again with one of those"
        )


def _planned_layers(model: ir.Model, plan: QuantPlan) -> dict[str, Layer]:
    """The plan's layers in the graph, checked against what the plan says of them."""
    layers = {layer.name: layer for layer in find_layers(model.graph)[0]}
    inputs = {node.name: node.inputs[0] for node in model.graph if node.inputs}
    for tensor, quants in plan.sites():
        for quant in quants:
            layer = layers.get(quant.name)
            if layer is None:
                raise UserError(f"the plan's layer {quant.name!r} is no layer of this model")
            value = inputs[quant.name]
            if value is None or value.name != tensor:
                raise UserError(
                    f"the plan's site {tensor!r} is not what layer {quant.name!r} reads"
                )
            if quant.weight is not None and len(quant.weight.scales) != layer.out_channels:
                raise UserError(
                    f"the plan gives layer {quant.name!r} {len(quant.weight.scales)} weight "
                    f"scales, it has {layer.out_channels} output channels"
                )
    return layers
