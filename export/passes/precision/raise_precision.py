"""A 16-bit graph, or one of mixed types, as the float32 graph that it was exported from."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.export.passes.edits import new_cast
from qvd_trt.export.passes.opset.schema import Dtypes, infer_dtypes
from qvd_trt.export.passes.precision.widen import (
    LOW_TYPES,
    has_subgraphs,
    is_low_precision,
    widen_attributes,
    widen_constant,
)

_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


class RaisePrecision(ir.passes.InPlacePass):
    """Compute in float32 what the file computes in fp16 or bf16; weights keep their values.

    Casts between float types are left out. Graph inputs and outputs of fp16 keep their type, which
    callers send, with a Cast at the border: an input ``x`` is read as ``x/qvd/raised``. Those of
    bf16 become float32: no numpy array can be bf16, and so neither ONNX Runtime nor Polygraphy
    takes one. All other tensors keep their names. 16-bit weights are converted when they are read
    (:class:`~qvd_trt.export.stored_weights.WidenedTensor`).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph; one with subgraphs (If, Loop, Scan) is left as it is.

        Raises:
            UserError: the model has 16-bit tensors, and one of unknown type.
        """
        if not is_low_precision(model) or has_subgraphs(model):
            return ir.passes.PassResult(model, False)
        graph = model.graph
        dtypes = infer_dtypes(graph, model.opset_imports[""])
        for value, dtype in dtypes.items():
            value.type = value.type or ir.TensorType(dtype)
        low = {value for value, dtype in dtypes.items() if dtype in LOW_TYPES}
        for value in list(graph.initializers.values()):
            if value in low and not value.is_graph_input():
                widen_constant(value)
        for value in graph.inputs:
            if dtypes[value] == ir.DataType.BFLOAT16:
                value.type = ir.TensorType(_FLOAT)
            elif value in low:
                _raise_input(graph, value)
        outputs = {value for value in graph.outputs if dtypes.get(value) == _FLOAT16}
        for node in list(graph):
            bordering = [output for output in node.outputs if output in outputs]
            if bordering and _casts_floats(node, dtypes):
                _free_readers(node)  # it is the border's Cast already
                continue
            widen_attributes(node)
            for output in node.outputs:
                if output in low:
                    output.type = ir.TensorType(_FLOAT)
            for output in bordering:
                _lower_output(graph, node, output)
        drop_idle_casts(graph)
        return ir.passes.PassResult(model, True)


class DropIdleCasts(ir.passes.InPlacePass):
    """Take out Casts to the type that a tensor has; types must be declared."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, drop_idle_casts(model.graph))


def drop_idle_casts(graph: ir.Graph) -> bool:
    """Take out Casts to the type that their input has; graph outputs keep their names."""
    dropped = False
    for node in list(graph):
        if node.op_type != "Cast" or node.domain:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None or source.dtype is None:
            continue
        if int(source.dtype) != node.attributes.get_int("to", 0):
            continue
        if output.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue
            name, shape = output.name, output.shape
            output.name = None
            output.replace_all_uses_with(source, replace_graph_outputs=True)
            source.name, source.shape = name, shape
        else:
            output.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        dropped = True
    return dropped


def _raise_input(graph: ir.Graph, value: ir.Value) -> None:
    readers = [usage for usage in value.uses() if not _widens(usage.node)]
    if not readers:
        return
    name = _free_name(graph, f"{value.name}/qvd/raised")
    raised = new_cast(value, _FLOAT, name, name)
    for usage in readers:
        usage.node.replace_input_with(usage.idx, raised)
    node = raised.producer()
    assert node is not None
    graph.insert_before(graph[0], node)


def _widens(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(_FLOAT)


def _lower_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Give a graph output fp16 back; who reads it inside reads float32."""
    name = value.name or ""
    value.name = _free_name(graph, f"{name}/qvd/raised")
    result = new_cast(value, _FLOAT16, name, f"{name}/qvd/lowered")
    cast = result.producer()
    assert cast is not None
    graph.insert_after(node, cast)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result


def _casts_floats(node: ir.Node, dtypes: Dtypes) -> bool:
    if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
        return False
    return dtypes[node.inputs[0]] in (_FLOAT, *LOW_TYPES)


def _free_readers(cast: ir.Node) -> None:
    """Let those that read a graph output inside the graph read what it was cast from."""
    source, output = cast.inputs[0], cast.outputs[0]
    for usage in list(output.uses()):
        usage.node.replace_input_with(usage.idx, source)


def _free_name(graph: ir.Graph, stem: str) -> str:
    taken = {output.name for node in graph for output in node.outputs}
    taken |= {value.name for value in graph.inputs} | set(graph.initializers)
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name
