"""A 16-bit file as a float32 model that rounds, and overflows, where the file says so."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.edits import new_cast
from qvd_trt.export.passes.opset.schema import infer_dtypes
from qvd_trt.export.passes.precision.large_values import LAYOUT
from qvd_trt.export.passes.precision.widen import (
    LOW_TYPES,
    has_subgraphs,
    widen_attributes,
    widen_constant,
)

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
                widen_constant(value)
        for value in graph.inputs:
            if value in low:
                _replace_uses(value, _cast(graph, value, _FLOAT, "wide", None))
        outputs = list(graph.outputs)
        for node in list(graph):
            widen_attributes(node)
            for output in node.outputs:
                if output in low:
                    _round(graph, node, output, low[output], outputs)
        return ir.passes.PassResult(model, True)


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
