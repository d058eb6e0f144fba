"""SCRI folded into the graph: exact in real arithmetic, with or without Q/DQ afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.graph.affine_producer import (
    AffineConstant,
    AffineProducer,
    find_affine_producer,
)
from qvd_trt.export.graph.values import constant_array, nodes_by_name
from qvd_trt.export.passes.edits import (
    add_initializer,
    add_to_bias,
    read_weight,
    replace_constant,
    write_weight,
)
from qvd_trt.export.plan.fold_math import folded_weight, reciprocal, shift_bias
from qvd_trt.export.plan.quant_plan import ActivationQuant, DensePlan
from qvd_trt.export.plan.site_types import Layer


class FoldScri(ir.passes.InPlacePass):
    """Apply ``x' = (x - z) / s`` to every dense site and undo it in the next weights.

    Weights and biases always take ``W' = W diag(s)``, ``b' = b + W z``. The activation side goes
    into the gamma and beta of a norm that only these layers read, else it becomes ``Sub, Mul``
    right before the layers. A shifted, zero-padded convolution pads before the shift
    (docs/method.md#folding).
    """

    def __init__(self, plans: Sequence[DensePlan], layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self._plans = plans
        self._layers = layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_by_name(model.graph)
        modified = False
        for plan in self._plans:
            activation = plan.activation
            if activation is None or (activation.shift is None and activation.smooth is None):
                continue
            modified = True
            readers = [(nodes[quant.name], self._layers[quant.name]) for quant in plan.layers]
            _map_activation(plan, activation, readers)
            for node, layer in readers:
                weight = read_weight(node, layer)
                gained = shift_bias(layer, weight, activation)
                if activation.smooth is not None:
                    write_weight(node, layer, folded_weight(layer, weight, activation))
                if gained is not None:
                    add_to_bias(node, layer, gained)
        return ir.passes.PassResult(model, modified)


def _map_activation(
    plan: DensePlan, activation: ActivationQuant, readers: list[tuple[ir.Node, Layer]]
) -> None:
    value = readers[0][0].inputs[0]
    assert value is not None
    channels = len(_some_vector(activation))
    pads_before_shift = activation.shift is not None and any(
        layer.window.padded for _, layer in readers
    )
    if not pads_before_shift:
        producer = find_affine_producer(
            value, plan.channel_axis, channels, [node for node, _ in readers]
        )
        if producer is not None:
            _absorb(producer, activation)
            return
    mapped: dict[tuple[int, ...], ir.Value] = {}
    for node, layer in readers:
        pads: tuple[int, ...] = ()
        if activation.shift is not None and layer.window.padded:
            pads = (*layer.window.pads_begin, *layer.window.pads_end)
            node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
        if pads not in mapped:
            mapped[pads] = _insert_map(value, node, plan.channel_axis, activation, pads)
        node.replace_input_with(0, mapped[pads])


def _absorb(producer: AffineProducer, activation: ActivationQuant) -> None:
    gamma, beta = _operand(producer.gamma), _operand(producer.beta)
    channels = len(_some_vector(activation))
    shift = activation.shift if activation.shift is not None else np.zeros(channels, np.float32)
    factor = np.ones(channels, np.float32)
    if activation.smooth is not None:
        factor = reciprocal(activation.smooth)
    _replace(producer.gamma, gamma * factor.reshape(gamma.shape))
    _replace(producer.beta, (beta - shift.reshape(beta.shape)) * factor.reshape(beta.shape))


def _operand(constant: AffineConstant) -> Float32Array:
    value = constant.node.inputs[constant.index]
    assert value is not None
    return constant_array(value).astype(np.float32)


def _replace(constant: AffineConstant, array: Float32Array) -> None:
    value = constant.node.inputs[constant.index]
    assert value is not None
    replace_constant(constant.node, constant.index, f"{value.name}/qvd", array)


def _insert_map(
    value: ir.Value,
    before: ir.Node,
    channel_axis: int,
    activation: ActivationQuant,
    pads: tuple[int, ...],
) -> ir.Value:
    """``Pad, Sub, Mul`` as needed, right before the first layer that reads them."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    stem = f"{value.name}/qvd"
    if pads:
        spatial = len(pads) // 2
        full = [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]
        stem = f"{stem}/padded"
        pads_value = add_initializer(graph, f"{stem}/pads", np.array(full, np.int64))
        value = _insert(graph, before, "Pad", [value, pads_value], f"{stem}/pad")
    spatial_axes = len(before.inputs[1].shape) - 2 if before.op_type == "Conv" else 0  # type: ignore[union-attr,arg-type]
    operand_shape = (-1, *([1] * spatial_axes)) if channel_axis == 1 else (-1,)
    if activation.shift is not None:
        shift = add_initializer(graph, f"{stem}/shift", activation.shift.reshape(operand_shape))
        value = _insert(graph, before, "Sub", [value, shift], f"{stem}/sub")
    if activation.smooth is not None:
        factor = reciprocal(activation.smooth).reshape(operand_shape)
        inverse = add_initializer(graph, f"{stem}/inverse_smooth", factor)
        value = _insert(graph, before, "Mul", [value, inverse], f"{stem}/mul")
    return value


def _insert(
    graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value], name: str
) -> ir.Value:
    node = ir.node(op, inputs, name=name)
    output = node.outputs[0]
    output.name, output.type = name, inputs[0].type
    if op != "Pad":
        output.shape = inputs[0].shape
    graph.insert_before(before, node)
    return output


def _some_vector(activation: ActivationQuant) -> Float32Array:
    vector = activation.shift if activation.shift is not None else activation.smooth
    assert vector is not None
    return vector
