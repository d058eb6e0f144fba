"""Finding the layers: Conv, Gemm and MatMul nodes with a constant weight."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

import onnx_ir as ir

from qvd_trt.export.graph.values import bodies, constant_values, is_weight, static_shape
from qvd_trt.export.plan.site_types import Layer, LayerOp, OddLayer, Window

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata: a printed list of the module paths from the root down, then torch's node."""

_OPS = {op.value for op in LayerOp}
_MULTIPLIERS = (*sorted(_OPS), "ConvTranspose", "Einsum")
_CONV_TRANSPOSE = "ConvTranspose has no INT8 kernel in TensorRT-RTX"


def find_layers(graph: ir.Graph) -> tuple[list[Layer], list[OddLayer]]:
    """All layers of the graph in topological order, and those of a form that stays float.

    Every node needs a unique name, as :class:`~qvd_trt.export.passes.prepare.Prepare` gives it.
    """
    layers: list[Layer] = []
    odd: list[OddLayer] = []
    weights = constant_values(graph)
    for node, operand in _multipliers(graph, weights):
        layer = _read_layer(node, operand)
        if isinstance(layer, str):
            odd.append(_odd(node, layer, operand))
        else:
            layers.append(layer)
    for owner, body in bodies(graph):
        weights = constant_values(body, weights)
        reason = f"inside the body of {owner.op_type} {owner.name}"
        odd += [_odd(node, reason, operand) for node, operand in _multipliers(body, weights)]
    return layers, odd


def _multipliers(graph: ir.Graph, weights: set[ir.Value]) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that multiply an activation with a weight, and which operand the weight is."""
    for node in graph:
        if node.domain or node.op_type not in _MULTIPLIERS:
            continue
        constant = [value in weights for value in node.inputs[:2]]
        if len(constant) == 2 and constant[0] != constant[1]:
            yield node, constant.index(True)


def module_path(node: ir.Node) -> str:
    """The path, such as ``down_blocks.0.attentions.0.proj_in``; empty where none is noted."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def _odd(node: ir.Node, reason: str, operand: int) -> OddLayer:
    name, output = node.name or "", node.outputs[0].name or ""
    return OddLayer(name, node.op_type, reason, output, _cost(node, operand))


def _cost(node: ir.Node, operand: int) -> float:
    """Multiply-accumulates per output element; 0 where the weight's shape is not known."""
    weight = node.inputs[operand]
    if weight is None or weight.shape is None or not weight.shape.is_static():
        return 0.0
    shape = static_shape(weight)
    if node.op_type == "ConvTranspose":
        strides = math.prod(node.attributes.get_ints("strides", [1]))
        return math.prod(shape) / (shape[1] * node.attributes.get_int("group", 1) * strides)
    if node.op_type == LayerOp.CONV:
        return float(math.prod(shape[1:]))
    if node.op_type == "Einsum":
        return _einsum_cost(node.attributes.get_string("equation", ""), operand, shape)
    transposed = node.attributes.get_int(("transA", "transB")[operand], 0)
    contracted = (-1, -2)[operand ^ transposed] if len(shape) > 1 else 0
    return float(shape[contracted])


def _einsum_cost(equation: str, operand: int, shape: tuple[int, ...]) -> float:
    """The product of the extents that the weight has and the output does not."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:
        out = "".join(label for label in terms if terms.count(label) == 1)
    before, _, after = terms.split(",")[operand].partition("...")
    extents = dict(zip(before, shape, strict=False))
    extents |= zip(after[::-1], shape[::-1], strict=False)
    return float(math.prod(extent for label, extent in extents.items() if label not in out))


def _read_layer(node: ir.Node, operand: int) -> Layer | str:
    """The layer, or the reason why its form cannot be quantized."""
    if node.op_type == "ConvTranspose":
        return _CONV_TRANSPOSE
    if node.op_type == "Einsum":
        return "an Einsum that is no product with a matrix over the last axis"
    if operand == 0:
        return "its weight is the left operand"
    if not is_weight(node.inputs[1]):
        return "its weight is computed in the graph"
    weight = node.inputs[1]
    assert weight is not None
    shape = static_shape(weight)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_weight(bias):
        return "its bias is computed, not constant"
    if node.op_type == LayerOp.CONV:
        window = _conv_window(node, shape)
        if isinstance(window, str):
            return window
        groups = node.attributes.get_int("group", 1)
        out_axis, in_axis = 0, 1
    else:
        if len(shape) != 2:
            return f"its weight has rank {len(shape)}, not 2"
        window, groups = Window(), 1
        transposed = node.attributes.get_int("transB", 0)
        input_transposed = node.attributes.get_int("transA", 0)
        if node.op_type == LayerOp.GEMM and (
            input_transposed
            or node.attributes.get_float("alpha", 1.0) != 1.0
            or node.attributes.get_float("beta", 1.0) != 1.0
        ):
            return "Gemm with transA, alpha or beta"
        out_axis, in_axis = (0, 1) if transposed else (1, 0)
    return Layer(
        name=node.name or "",
        op=LayerOp(node.op_type),
        weight=weight.name or "",
        output=node.outputs[0].name or "",
        out_axis=out_axis,
        in_axis=in_axis,
        out_channels=shape[out_axis],
        weight_size=math.prod(shape),
        window=window,
        groups=groups,
    )


def _conv_window(node: ir.Node, weight_shape: tuple[int, ...]) -> Window | str:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "auto_pad SAME with strides and unknown extents: export with explicit pads"
    rank = len(weight_shape) - 2
    pads = tuple(node.attributes.get_ints("pads", [0] * 2 * rank))
    return Window(
        kernel=weight_shape[2:],
        strides=tuple(node.attributes.get_ints("strides", [1] * rank)),
        dilations=tuple(node.attributes.get_ints("dilations", [1] * rank)),
        pads_begin=pads[:rank],
        pads_end=pads[rank:],
    )
