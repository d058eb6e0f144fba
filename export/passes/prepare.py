"""What the other passes take for granted: named nodes and weights that are plain initializers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
)

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.values import bodies, constant_array, has_subgraph, is_weight
from qvd_trt.export.passes.edits import add_initializer, add_tensor
from qvd_trt.export.passes.precision.widen import LOW_TYPES
from qvd_trt.export.stored_weights import WidenedTensor, stored_tensor

_WEIGHT_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_EINSUM = re.compile(r"(\.\.\.)?([A-Za-z]+),([A-Za-z]{2})->(\.\.\.)?([A-Za-z]+)")


class Prepare(ir.passes.InPlacePass):
    """Name every node, make weights plain initializers, write linear layers as MatMul.

    Weights behind Cast, Transpose, Reshape, Squeeze, Unsqueeze or Identity are folded; an Einsum
    that is a linear layer becomes a MatMul, a weight ``[1, K, N]`` one of ``[K, N]``, and padding
    by ``auto_pad`` is written out. Tensor names do not change, so that statistics of the original
    file stay valid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        _drop_identities(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for node in list(graph):
            if node.op_type == "Transpose" and is_weight(node.inputs[0]):
                _fold_transpose(graph, node)
        for node in list(ir.traversal.RecursiveGraphIterator(graph)):
            if node.op_type in _WEIGHT_READERS and not node.domain:
                for value in node.inputs:
                    _fold_operand(value)
        for node in graph:
            _write_out(graph, node)
        _name_nodes(graph)
        NameFixPass()(model)
        _name_nodes_of_bodies(graph)
        return ir.passes.PassResult(model, True)


def _drop_identities(model: ir.Model) -> None:
    """Without subgraphs; in one, an Identity may be all that makes an outer tensor its output."""
    if not any(map(has_subgraph, model.graph)):
        IdentityEliminationPass()(model)
        return
    for node in list(model.graph):
        output, source = node.outputs[0], node.inputs[0] if node.inputs else None
        if node.op_type == "Identity" and source is not None and not output.is_graph_output():
            output.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _fold_transpose(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    perm = node.attributes.get_ints("perm")
    output = node.outputs[0]
    if output.is_graph_output():
        return
    array = _stored_array(source).transpose(perm)
    folded = _add_folded(graph, f"{output.name}/qvd/transposed", array)
    output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)
    _drop_unread(graph, source)


def _fold_operand(value: ir.Value | None) -> None:
    """Put a plain initializer in the place of one that is only cast or reshaped on its way."""
    producer = None if value is None else value.producer()
    if producer is None or value is None:
        return
    array = _folded(value)
    if array is None:
        return
    graph = producer.graph
    assert isinstance(graph, ir.Graph)
    folded = _add_folded(graph, f"{value.name}/qvd/folded", array)
    value.replace_all_uses_with(folded)
    _drop_chain(producer)


def _folded(value: ir.Value) -> AnyArray | None:
    """The content of a tensor that is computed from one initializer by layout nodes and Casts.

    Of a 16-bit one it is what the file stores; :func:`_add_folded` widens it.
    """
    if is_weight(value):
        return _stored_array(value)
    node = value.producer()
    if node is None or node.domain or node.op_type not in _FOLDS or value.is_graph_output():
        return None
    others = node.inputs[1:]
    if not all(other is None or is_weight(other) for other in others):
        return None
    source = node.inputs[0]
    array = None if source is None else _folded(source)
    return None if array is None else _FOLDS[node.op_type](node, array)


def _stored_array(value: ir.Value) -> AnyArray:
    assert value.const_value is not None
    array: AnyArray = stored_tensor(value.const_value).numpy()
    return array


def _add_folded(graph: ir.Graph, stem: str, array: AnyArray) -> ir.Value:
    """Register what was folded; 16 bits stay as stored, perhaps a view of the file, until read."""
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype not in LOW_TYPES:
        return add_initializer(graph, stem, array)
    return add_tensor(graph, stem, WidenedTensor(ir.Tensor(array, dtype=dtype), stem))


def _cast(node: ir.Node, array: AnyArray) -> AnyArray:
    return array.astype(ir.DataType(node.attributes.get_int("to", 1)).numpy())


def _reshape(node: ir.Node, array: AnyArray) -> AnyArray:
    wanted = _ints(node, 1)
    if not node.attributes.get_int("allowzero", 0):
        wanted = [array.shape[i] if extent == 0 else extent for i, extent in enumerate(wanted)]
    return array.reshape(wanted)


def _squeeze(node: ir.Node, array: AnyArray) -> AnyArray:
    axes = _ints(node, 1)
    return np.squeeze(array, tuple(axes) if axes else None)


def _unsqueeze(node: ir.Node, array: AnyArray) -> AnyArray:
    return np.expand_dims(array, tuple(_ints(node, 1)))


def _ints(node: ir.Node, index: int) -> list[int]:
    value = node.inputs[index] if index < len(node.inputs) else None
    return [] if value is None else [int(number) for number in constant_array(value).reshape(-1)]


_FOLDS: Mapping[str, Callable[[ir.Node, AnyArray], AnyArray]] = {
    "Cast": _cast,
    "Identity": lambda node, array: array,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": lambda node, array: array.transpose(node.attributes.get_ints("perm")),
    "Unsqueeze": _unsqueeze,
}


def _drop_chain(node: ir.Node | None) -> None:
    """Remove a node that nobody reads any more, and what only it read."""
    while node is not None and not any(output.uses() for output in node.outputs):
        inputs = [value for value in node.inputs if value is not None]
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for value in inputs:
            if isinstance(value.graph, ir.Graph):
                _drop_unread(value.graph, value)
        node = inputs[0].producer() if inputs else None


def _drop_unread(graph: ir.Graph, value: ir.Value) -> None:
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(value.name or "", None)


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    if node.domain:
        return
    if node.op_type == "Einsum":
        _einsum_as_matmul(graph, node)
    if node.op_type == "MatMul":
        _squeeze_weight(graph, node)
    if node.op_type == "Conv":
        _write_pads(node)


def _einsum_as_matmul(graph: ir.Graph, node: ir.Node) -> None:
    """``bsk,kn->bsn`` and its like, the weight on either side and in either order."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if len(node.inputs) != 2:
        return
    if is_weight(node.inputs[0]) and not is_weight(node.inputs[1]):
        left, _, rest = equation.partition(",")
        right, _, out = rest.partition("->")
        equation, operands = f"{right},{left}->{out}", (node.inputs[1], node.inputs[0])
    else:
        operands = (node.inputs[0], node.inputs[1])
    x, weight = operands
    found = _EINSUM.fullmatch(equation)
    if found is None or x is None or weight is None or not is_weight(weight) or is_weight(x):
        return
    leading, labels, pair, out_leading, out = found.groups()
    contracted, kept = labels[-1], labels[:-1]
    new = pair.replace(contracted, "")
    if leading != out_leading or len(new) != 1 or new in labels or out != kept + new:
        return
    if len(set(labels)) != len(labels):
        return
    if pair[0] != contracted:
        array = _stored_array(weight).T
        transposed = _add_folded(graph, f"{weight.name}/qvd/transposed", array)
        node.replace_input_with(1 if weight is node.inputs[1] else 0, transposed)
        _drop_unread(graph, weight)
        weight = transposed
    node.replace_input_with(0, x)
    node.replace_input_with(1, weight)
    node.op_type = "MatMul"
    node.attributes.pop("equation", None)


def _squeeze_weight(graph: ir.Graph, node: ir.Node) -> None:
    x, weight = node.inputs
    if x is None or weight is None or not is_weight(weight) or x.shape is None:
        return
    extents = weight.shape.numpy() if weight.shape is not None and weight.shape.is_static() else ()
    if len(extents) <= 2 or set(extents[:-2]) != {1} or len(x.shape) < len(extents):
        return
    array = _stored_array(weight).reshape(extents[-2:])
    node.replace_input_with(1, _add_folded(graph, f"{weight.name}/qvd/squeezed", array))
    _drop_unread(graph, weight)


def _write_pads(node: ir.Node) -> None:
    """``auto_pad`` SAME as explicit pads; strided convolutions need fixed extents."""
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    weight, x = node.inputs[1], node.inputs[0]
    if kind not in ("SAME_UPPER", "SAME_LOWER") or weight is None or weight.shape is None:
        return
    kernel = [int(extent) for extent in list(weight.shape)[2:] if isinstance(extent, int)]
    rank = len(weight.shape) - 2
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    shape = None if x is None else x.shape
    extents = [None if shape is None else shape[axis + 2] for axis in range(rank)]
    begin, end = [], []
    for size, stride, dilation, extent in zip(kernel, strides, dilations, extents, strict=True):
        reach = (size - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(extent, int):
            total = max((-(-extent // stride) - 1) * stride + reach - extent, 0)
        else:
            return
        small, large = total // 2, total - total // 2
        begin.append(small if kind == "SAME_UPPER" else large)
        end.append(large if kind == "SAME_UPPER" else small)
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])


def _name_nodes(graph: ir.Graph) -> None:
    for index, node in enumerate(graph):
        if not node.name:
            node.name = f"{node.op_type}_{index}"


def _name_nodes_of_bodies(graph: ir.Graph) -> None:
    """Give the nodes of every body names that the whole model has once."""
    taken = {node.name for node in graph}
    for owner, body in bodies(graph):
        for node in body:
            stem = name = node.name or f"{owner.name}/{node.op_type}"
            count = 1
            while name in taken:
                count += 1
                name = f"{stem}_{count}"
            node.name = name
            taken.add(name)
