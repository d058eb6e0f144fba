"""Finding the layers: Conv, Gemm and MatMul nodes with a constant weight."""

from __future__ import annotations

import ast
import math

import onnx_ir as ir

from qvd_trt.export.graph.values import is_weight, static_shape
from qvd_trt.export.plan.site_types import KeptLayer, Layer, LayerOp, Window

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata: a printed list of the module paths from the root down, then torch's node."""

_OPS = {op.value for op in LayerOp}


def find_layers(graph: ir.Graph) -> tuple[list[Layer], list[KeptLayer]]:
    """All layers of the graph in topological order, and those of a form that stays float.

    Every node needs a unique name, as :class:`~qvd_trt.export.passes.prepare.Prepare` gives it.
    """
    layers: list[Layer] = []
    kept: list[KeptLayer] = []
    for node in graph:
        if node.op_type == "ConvTranspose" and is_weight(node.inputs[1]):
            kept.append(_kept(node, "ConvTranspose has no INT8 kernel in TensorRT-RTX"))
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPS:
            continue
        weight = node.inputs[1]
        if not is_weight(weight) or is_weight(node.inputs[0]):
            continue
        layer = _read_layer(node)
        if isinstance(layer, str):
            kept.append(_kept(node, layer))
        else:
            layers.append(layer)
    return layers, kept


def module_path(node: ir.Node) -> str:
    """The path, such as ``down_blocks.0.attentions.0.proj_in``; empty where none is noted."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def _kept(node: ir.Node, reason: str) -> KeptLayer:
    return KeptLayer(node.name or "", node.op_type, reason)


def _read_layer(node: ir.Node) -> Layer | str:
    """The layer, or the reason why its form cannot be quantized."""
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
        return "auto_pad SAME: export with explicit pads"
    rank = len(weight_shape) - 2
    pads = tuple(node.attributes.get_ints("pads", [0] * 2 * rank))
    return Window(
        kernel=weight_shape[2:],
        strides=tuple(node.attributes.get_ints("strides", [1] * rank)),
        dilations=tuple(node.attributes.get_ints("dilations", [1] * rank)),
        pads_begin=pads[:rank],
        pads_end=pads[rank:],
    )
