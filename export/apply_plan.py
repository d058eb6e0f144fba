"""From a float model and a plan to the emitted model: the passes, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from qvd_trt import __version__
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.passes.fold_scri import FoldScri
from qvd_trt.export.passes.insert_htdq import DefineHtdq, InsertHtdq
from qvd_trt.export.passes.insert_qdq import InsertQdq
from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from qvd_trt.export.passes.opset.raise_opset import RaiseOpset
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from qvd_trt.export.passes.precision.raise_precision import DropIdleCasts
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.passes.tensorrt8 import tensorrt8_passes
from qvd_trt.export.plan.quant_plan import W8A8, QuantPlan
from qvd_trt.export.targets import (
    TARGETS,
    FloatType,
    HtdqForm,
    ScaleType,
    TargetProfile,
    choose_float_type,
    choose_htdq_form,
    default_float_type,
)

_RUNTIME_DOMAINS = ("com.microsoft", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview")
_QDQ_SCALES: Mapping[ScaleType, Literal["same", "float32"]] = {
    ScaleType.FLOAT16: "same",
    ScaleType.FLOAT32: "float32",
}


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """How a plan becomes a file.

    Attributes:
        target: The runtime's rules.
        float_type: Type of the rest of the graph; None takes the target's default, which for
            16-bit targets is the type of 16-bit weights.
        htdq_form: How HTDQ nodes are written; None takes the target's default.
    """

    target: TargetProfile = TARGETS["trt"]
    float_type: FloatType | None = None
    htdq_form: HtdqForm | None = None

    def __post_init__(self) -> None:
        """Refuse a type or a form that the target does not take.

        Raises:
            UserError: naming those that it takes.
        """
        if self.float_type is not None:
            choose_float_type(self.target, self.float_type.value)
        if self.htdq_form is not None:
            choose_htdq_form(self.target, self.htdq_form.value)

    @property
    def dtype(self) -> FloatType:
        """Type of the rest of the graph, for a float32 model where none was asked for."""
        return self.float_type or default_float_type(self.target)

    def for_model(self, model: FloatModel) -> ApplyOptions:
        """These options, with the type of the rest of the graph that the model's weights ask for.

        One that was asked for stays.
        """
        float_type = self.float_type or default_float_type(self.target, model.stored)
        return replace(self, float_type=float_type)


def apply_plan(model: FloatModel, plan: QuantPlan, options: ApplyOptions) -> ir.Model:
    """Return the QDQ model; ``model`` is left as it is.

    Raises:
        UserError: the plan does not fit the model (:func:`check_plan`), or the model cannot be
            brought to the target's opset or type.
    """
    check_plan(model, plan)
    options = options.for_model(model)
    target = options.target
    scale_type = target.scale_type(options.dtype)
    emitted = _start(model, target)
    opset = emitted.opset_imports[""]
    passes: list[ir.passes.InPlacePass] = []
    if opset < target.min_opset(options.dtype):
        passes.append(RaiseOpset(target.min_opset(options.dtype)))
    if not target.keeps_attention:
        passes.append(DecomposeAttention())  # refuses the forms that opening the model left
    passes += [
        FoldScri(plan.dense, model.layers),
        InsertHtdq(plan.temporal),
        InsertQdq(plan.dense, plan.temporal, model.layers, target, scale_type),
    ]
    passes.append(NameFixPass())  # two sites on one tensor name their nodes after it
    if options.dtype is not FloatType.FP32:
        passes.append(
            LowerPrecision(
                options.dtype.value,
                qdq_scales=_QDQ_SCALES[scale_type],
                float32=frozenset(plan.float32),
            )
        )
        if _has_fp16_interface(emitted.graph):
            passes.append(DropIdleCasts())
    # After lowering, so that an inlined body keeps its float32 comparison.
    passes.append(DefineHtdq(options.htdq_form or target.htdq_form))
    if opset > target.max_opset:
        passes += [LowerOpset(target.max_opset), RemoveUnusedNodesPass()]
    if target.spares_tensorrt8:
        passes += tensorrt8_passes()
    for step in passes:
        step(emitted)
    emitted.metadata_props.update(_metadata(plan, options))
    return emitted


def check_target(model: FloatModel, options: ApplyOptions) -> None:
    """Refuse, before anything is calibrated, a target or type that the graph cannot be written for.

    The float graph itself is brought there and thrown away.

    Raises:
        UserError: as :func:`apply_plan`.
    """
    _refuse_foreign_operators(model, options.target)
    nothing = QuantPlan("", W8A8, "", dense=(), temporal=(), kept=())
    apply_plan(model, nothing, options)


def fold_only(model: FloatModel, plan: QuantPlan) -> ir.Model:
    """The float model with SCRI folded in and nothing quantized; computes the same function."""
    check_plan(model, plan)
    rewritten = model.prepared.clone()
    FoldScri(plan.dense, model.layers)(rewritten)
    NameFixPass()(rewritten)
    return rewritten


def check_plan(model: FloatModel, plan: QuantPlan) -> None:
    """Refuse a plan, perhaps edited by hand, that does not fit the model.

    Raises:
        UserError: naming the site or layer, what the plan says of it, and what the model has.
    """
    for tensor, quants in plan.sites():
        if not quants:
            raise UserError(f"--plan: site {tensor!r} has no layers; remove it")
        for quant in quants:
            layer = model.layers.get(quant.name)
            if layer is None:
                raise UserError(f"the plan's layer {quant.name!r} is no layer of this model")
            if model.input_of(layer).name != tensor:
                raise UserError(
                    f"the plan's site {tensor!r} is not what layer {quant.name!r} reads"
                )
            if quant.weight is not None and len(quant.weight.scales) != layer.out_channels:
                raise UserError(
                    f"the plan gives layer {quant.name!r} {len(quant.weight.scales)} weight "
                    f"scales, it has {layer.out_channels} output channels"
                )
            bias = quant.bias_correction
            if bias is not None and len(bias) != layer.out_channels:
                raise UserError(
                    f"--plan: bias_correction of {quant.name!r} has {len(bias)} numbers, the layer "
                    f"has {layer.out_channels} output channels"
                )
    if plan.float32:
        known = {output.name for node in model.graph for output in node.outputs}
        known |= {value.name for value in model.graph.inputs}
        if unknown := sorted(set(plan.float32) - known):
            raise UserError(
                f"--plan: float32 names {unknown[0]!r}, which is no tensor of the model; remove it"
            )
    for site in plan.dense:
        for layer in (model.layers[quant.name] for quant in site.layers):
            if site.channel_axis != layer.channel_axis:
                raise UserError(
                    f"--plan: channel_axis of {site.tensor!r} must be {layer.channel_axis}"
                )
            for name in ("shift", "smooth"):
                vector = getattr(site.activation, name, None)
                if vector is not None and len(vector) != layer.in_channels:
                    raise UserError(
                        f"--plan: {name} of {site.tensor!r} has {len(vector)} numbers, layer "
                        f"{layer.name!r} reads {layer.in_channels} channels"
                    )


def _refuse_foreign_operators(model: FloatModel, target: TargetProfile) -> None:
    """ONNX Runtime's fused operators, which its extended optimizations write, run nowhere else."""
    if target.foreign_operators:
        return
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain.startswith(_RUNTIME_DOMAINS):
            raise UserError(
                f"node {node.name!r} is {node.domain}::{node.op_type}, which only ONNX Runtime "
                f"has; for target {target.name} give the model as exported, without ONNX Runtime's "
                "extended optimizations"
            )


def _has_fp16_interface(graph: ir.Graph) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in (*graph.inputs, *graph.outputs))


def _start(model: FloatModel, target: TargetProfile) -> ir.Model:
    """The prepared graph, with Attention nodes as they came where the target keeps them."""
    nodes = ir.traversal.RecursiveGraphIterator(model.source.graph)
    if target.keeps_attention and any(node.op_type == "Attention" for node in nodes):
        emitted = model.source.clone()
        Prepare()(emitted)
        return emitted
    return model.prepared.clone()


def _metadata(plan: QuantPlan, options: ApplyOptions) -> dict[str, str]:
    """How the file was made, for its ``metadata_props``."""
    return {
        "qvd.version": __version__,
        "qvd.source": plan.model_hash,
        "qvd.algorithm": plan.algorithm,
        "qvd.bits": str(plan.bits),
        "qvd.target": options.target.name,
        "qvd.dtype": options.dtype.value,
    }
