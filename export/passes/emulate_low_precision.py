"""A 16-bit file as a float32 model that rounds, and overflows, where the file says so."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import bodies, constant_values, has_subgraph
from qvd_trt.export.passes.edits import new_cast
from qvd_trt.export.passes.opset.schema import DTYPE_ATTRIBUTES, infer_dtypes
from qvd_trt.export.passes.precision.large_values import LAYOUT

LOW_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_FLOAT = ir.DataType.FLOAT
_SELECTS = frozenset(
    (
        *LAYOUT,
        *("Concat", "Slice", "Split", "Gather", "GatherND", "GatherElements", "Expand", "Tile"),
        *("Relu", "Max", "Min", "Abs", "Neg", "DepthToSpace", "SpaceToDepth"),
        *("ScatterND", "ScatterElements"),
    )
)
"""Operators whose results are numbers that they read: already rounded."""


class EmulateLowPrecision(ir.passes.InPlacePass):
    """Compute in float32 and pass every 16-bit result through a Cast to its type and back.

    ONNX Runtime's CPU kernels run much of an fp16 graph in float32 between Casts of their own and
    hide its overflows; bf16 they lack. Run the result with graph optimizations off, which would
    take the Casts out again. Accumulators are float32, as those of GPUs are. Graph inputs and
    outputs keep their types.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph.

        Raises:
            UserError: a subgraph (If, Loop, Scan), or a tensor of unknown type.
        """
        graph = model.graph
        if has_subgraphs(model):
            raise UserError("a 16-bit model with If, Loop or Scan cannot be measured; use fp32")
        dtypes = infer_dtypes(graph, model.opset_imports[""])
        low = {value: dtype for value, dtype in dtypes.items() if dtype in LOW_TYPES}
        if not low:
            return ir.passes.PassResult(model, False)
        for value in list(graph.initializers.values()):
            if value in low and not value.is_graph_input():
                _widen_constant(value)
        for value in graph.inputs:
            if value in low:
                _replace_uses(value, _cast(graph, value, _FLOAT, "wide", None))
        outputs = list(graph.outputs)
        for node in list(graph):
            _widen_attributes(node)
            for output in node.outputs:
                if output in low:
                    _round(graph, node, output, low[output], outputs)
        return ir.passes.PassResult(model, True)


def is_low_precision(model: ir.Model) -> bool:
    """Whether any tensor of the main graph is a 16-bit float.

    Constants that are stored in 16 bits and widened by a Cast are none: nothing is rounded there.
    """
    stored = constant_values(model.graph)
    for _, body in bodies(model.graph):
        stored = constant_values(body, stored)
    nodes = [node for node in model.graph if not stored.issuperset(node.outputs)]
    values = [*model.graph.inputs, *(output for node in nodes for output in node.outputs)]
    values += [
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type != "Cast" and not stored.issuperset(node.outputs)
        for value in node.inputs
        if value in stored
    ]
    casts = {node.attributes.get_int("to", 0) for node in nodes if node.op_type == "Cast"}
    return bool(casts & {int(t) for t in LOW_TYPES}) or any(v.dtype in LOW_TYPES for v in values)


def has_subgraphs(model: ir.Model) -> bool:
    """Whether a node of the main graph has a body of its own."""
    return any(map(has_subgraph, model.graph))


def _round(
    graph: ir.Graph, node: ir.Node, output: ir.Value, low: ir.DataType, outputs: list[ir.Value]
) -> None:
    """Give a node's float32 result the values, or for a graph output the type, of ``low``."""
    output.type = ir.TensorType(_FLOAT)
    if output in outputs:
        name = output.name or ""
        output.name = f"{name}/qvd/emulated"
        rounded = _cast(graph, output, low, "rounded", node)
        rounded.name = name
        wide = _cast(graph, rounded, _FLOAT, "wide", rounded.producer())
        _replace_uses(output, wide, but=rounded.producer())
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = rounded
    elif node.op_type not in _SELECTS or node.domain:
        rounded = _cast(graph, output, low, "rounded", node)
        wide = _cast(graph, rounded, _FLOAT, "wide", rounded.producer())
        _replace_uses(output, wide, but=rounded.producer())


def _cast(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, suffix: str, after: ir.Node | None
) -> ir.Value:
    name = f"{value.name}/qvd/{suffix}"
    result = new_cast(value, dtype, name, name)
    node = result.producer()
    assert node is not None
    if after is not None:
        graph.insert_after(after, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    return result


def _replace_uses(value: ir.Value, new: ir.Value, but: ir.Node | None = None) -> None:
    for usage in list(value.uses()):
        if usage.node is not but and usage.node is not new.producer():
            usage.node.replace_input_with(usage.idx, new)


def _widen_constant(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.const_value = _widened(tensor, value.name or "")
    value.type = ir.TensorType(_FLOAT)


def _widened(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A 16-bit constant in float32, computed when it is written."""

    def widen() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype("float32"), dtype=_FLOAT, name=name)

    return ir.LazyTensor(widen, _FLOAT, ir.Shape(tensor.shape.numpy()), name=name)


def _widen_attributes(node: ir.Node) -> None:
    """Make a node that states a 16-bit type state float32."""
    if node.domain:
        return
    name = DTYPE_ATTRIBUTES.get(node.op_type)
    low = {int(dtype) for dtype in LOW_TYPES}
    if name is not None and node.attributes.get_int(name, 0) in low:
        node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    stated = node.attributes.get("value")
    if (
        node.op_type in ("Constant", "ConstantOfShape")
        and stated is not None
        and (tensor := stated.as_tensor()).dtype in LOW_TYPES
    ):
        wide = ir.Tensor(tensor.numpy().astype("float32"), dtype=_FLOAT, name=tensor.name)
        node.attributes["value"] = ir.AttrTensor("value", wide)
