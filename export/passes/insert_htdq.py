"""The ``qvd::HTDQ`` node on temporal features and its body in ONNX (docs/method.md#htdq)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from qvd_trt.export.graph.values import nodes_by_name
from qvd_trt.export.passes.opset.schema import infer_dtypes
from qvd_trt.export.plan.quant_plan import Codebook, TemporalPlan
from qvd_trt.export.targets import HtdqForm

HTDQ_DOMAIN = "qvd"
HTDQ_OP = "HTDQ"
HTDQ_SUFFIX = "/qvd/htdq"
"""Ends the name of a quantized feature, also where the node itself is inlined."""
PLUGIN_NAMESPACE = "qvd"
PLUGIN_VERSION = "1"


class InsertHtdq(ir.passes.InPlacePass):
    """Put one ``qvd::HTDQ`` node on each temporal feature, for the planned layers only."""

    def __init__(self, plans: Sequence[TemporalPlan]) -> None:
        super().__init__()
        self._plans: Mapping[str, TemporalPlan] = {plan.tensor: plan for plan in plans}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_by_name(model.graph)
        for plan in self._plans.values():
            readers = [nodes[quant.name] for quant in plan.layers]
            feature = readers[0].inputs[0]
            assert feature is not None
            node = htdq_node(feature, plan.codebook)
            model.graph.insert_before(readers[0], node)
            for reader in readers:
                reader.replace_input_with(0, node.outputs[0])
        if self._plans:
            model.opset_imports[HTDQ_DOMAIN] = 1
        return ir.passes.PassResult(model, bool(self._plans))


def htdq_node(feature: ir.Value, codebook: Codebook) -> ir.Node:
    """``qvd::HTDQ`` with the table and TensorRT's plugin attributes."""
    node = ir.node(
        HTDQ_OP,
        [feature],
        attributes={
            "levels": [float(level) for level in codebook.levels],
            "thresholds": [float(threshold) for threshold in codebook.thresholds],
            "plugin_namespace": PLUGIN_NAMESPACE,
            "plugin_version": PLUGIN_VERSION,
        },
        domain=HTDQ_DOMAIN,
        name=f"{feature.name}{HTDQ_SUFFIX}",
    )
    output = node.outputs[0]
    output.name = f"{feature.name}{HTDQ_SUFFIX}"
    output.shape, output.type = feature.shape, feature.type
    return node


class DefineHtdq(ir.passes.InPlacePass):
    """Give HTDQ nodes a meaning: a model-local function, its inlined body, or only the plugin."""

    def __init__(self, form: HtdqForm) -> None:
        super().__init__()
        self._form = form

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        used = any(node.domain == HTDQ_DOMAIN for node in model.graph)
        if not used or self._form is HtdqForm.PLUGIN:
            return ir.passes.PassResult(model, False)
        function = htdq_function(model.opset_imports[""])
        model.functions[function.identifier()] = function
        if self._form is HtdqForm.INLINE:
            InlinePass()(model)
            _replace_cast_like(model.graph, model.opset_imports[""])
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            model.opset_imports.pop(HTDQ_DOMAIN, None)
        return ir.passes.PassResult(model, True)


def _replace_cast_like(graph: ir.Graph, opset: int) -> None:
    """TensorRT 8.6 cannot read CastLike; outside of a function the type is known."""
    nodes = [node for node in graph if node.op_type == "CastLike"]
    declared = all(node.inputs[1] is not None and node.inputs[1].dtype for node in nodes)
    dtypes = {} if declared else infer_dtypes(graph, opset)
    for node in nodes:
        value, like = node.inputs
        assert like is not None
        dtype = like.dtype or dtypes[like]
        cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=node.name)
        output = cast.outputs[0]
        output.shape, output.type = node.outputs[0].shape, ir.TensorType(dtype)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [cast], [node.outputs[0]], [output]
        )


def htdq_function(opset: int) -> ir.Function:
    """``y = levels[searchsorted(thresholds, x)]``, left side, for any shape and float type.

    The index counts the thresholds that are *not* at or above x: NaN compares false with all of
    them and so gets the last level, as ``numpy.searchsorted`` has it.
    """
    x = ir.Value(name="x")
    nodes: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes or None)  # type: ignore[arg-type]
        node.outputs[0].name = f"{op.lower()}_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    def parameter(name: str) -> ir.Value:
        reference = ir.RefAttr("value_floats", name, ir.AttributeType.FLOATS)
        node = ir.Node("", "Constant", [], attributes=[reference])
        node.outputs[0].name = name
        nodes.append(node)
        return node.outputs[0]

    levels, thresholds = parameter("levels"), parameter("thresholds")
    last_axis = add("Constant", [], value_ints=[-1])
    x32 = add("Cast", [x], to=int(ir.DataType.FLOAT))
    column = add("Unsqueeze", [x32, last_axis])
    not_above = add("Not", [add("LessOrEqual", [column, thresholds])])
    ones = add("Cast", [not_above], to=int(ir.DataType.INT32))
    index = add("ReduceSum", [ones, last_axis], keepdims=0)
    picked = add("Gather", [levels, index], axis=0)
    y = add("CastLike", [picked, x])
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": opset})
    attributes = [
        ir.Attr(name, ir.AttributeType.UNDEFINED, None)
        for name in ("levels", "thresholds", "plugin_namespace", "plugin_version")
    ]
    return ir.Function(HTDQ_DOMAIN, HTDQ_OP, graph=graph, attributes=attributes)
