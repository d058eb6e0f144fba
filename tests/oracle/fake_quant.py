"""What a plan means, computed anew: numpy inside of the reference evaluator of ONNX.

The float graph stays as its exporter wrote it. Only the Conv, Gemm and MatMul nodes that a plan
names are replaced, each by one call into this file, which does all of the node's arithmetic: pad,
map, round, fold, multiply, correct. Nothing is taken from the package but the plan's data types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qvd_trt.export.plan.quant_plan import (
    ActivationQuant,
    DensePlan,
    LayerQuant,
    QuantPlan,
    TemporalPlan,
)

Array = npt.NDArray[Any]
DOMAIN = "oracle"


class Oracle:
    """Runs a float model the way its plan says.

    After `run`, `positions` holds by layer name where the activation lies on its grid, clipped but
    not yet rounded: `rint` of it are the codes. For a convolution it is the zero-padded input.
    """

    def __init__(self, model: onnx.ModelProto, plan: QuantPlan) -> None:
        self.positions: dict[str, Array] = {}
        self._observed: Mapping[str, Array] = {}
        self._nodes = {node.name: node for node in model.graph.node}
        self._constants = _constants(model.graph)
        self._layers: dict[str, Callable[[Array], Array]] = {}
        for dense in plan.dense:
            for quant in dense.layers:
                self._layers[quant.name] = self._dense_layer(dense, quant)
        for temporal in plan.temporal:
            for quant in temporal.layers:
                self._layers[quant.name] = self._temporal_layer(temporal, quant)
        self._output = model.graph.output[0].name
        self._session = ReferenceEvaluator(self._rewritten(model), new_ops=[self._operator()])

    def run(self, feeds: Mapping[str, Array], observed: Mapping[str, Array] | None = None) -> Array:
        """Return the model's first output.

        Where `observed` holds a layer's codes, the layer goes on with those instead of its own.
        Two exact computations of one plan drift apart: their sums differ in the last bit, a value
        that lies between two codes falls to either side, and each such flip moves thousands of
        values behind it. Going on with the observed codes keeps every layer comparable.
        """
        self.positions.clear()
        self._observed = observed or {}
        outputs: Any = self._session.run([self._output], dict(feeds))
        return np.asarray(outputs[0])

    def _rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            if node.name in self._layers:
                replaced = helper.make_node(
                    "Layer", node.input[:1], node.output, domain=DOMAIN, layer=node.name
                )
                node.CopyFrom(replaced)
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return copy

    def _operator(self) -> type[OpRun]:
        layers = self._layers

        class Layer(OpRun):
            op_domain = DOMAIN

            def _run(self, x: Array, layer: str = "") -> tuple[Array]:
                return (layers[layer](x),)

        return Layer

    def _dense_layer(self, plan: DensePlan, quant: LayerQuant) -> Callable[[Array], Array]:
        node, activation = self._nodes[quant.name], plan.activation
        weight, bias = self._operands(node)
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        groups = attributes.get("group", 1)
        spatial = weight.ndim - 2
        filters, per_group = weight.shape[:2]
        channels = per_group * groups
        shift = np.zeros(channels, np.float32)
        smooth = np.ones(channels, np.float32)
        if activation is not None and activation.shift is not None:
            shift = activation.shift
        if activation is not None and activation.smooth is not None:
            smooth = activation.smooth

        # Which input channel the element [n, c, ...] of the weight multiplies.
        group_of = np.arange(filters) // (filters // groups)
        reads = group_of[:, None] * per_group + np.arange(per_group)[None, :]
        reads = reads.reshape(filters, per_group, *[1] * spatial)
        used_weight = _fake_quantized_weight(weight * smooth[reads], quant)
        gained = (weight.astype(np.float64) * shift[reads]).sum(axis=tuple(range(1, weight.ndim)))
        used_bias = bias + gained
        if quant.bias_correction is not None:
            used_bias = used_bias + quant.bias_correction
        along = (-1, *[1] * spatial)

        def layer(x: Array) -> Array:
            x = _zero_padded(x, attributes.get("pads", [0] * 2 * spatial)) if spatial else x
            if activation is not None:
                mapped = (x - shift.reshape(along)) * (np.float32(1) / smooth).reshape(along)
                position = _grid_position(mapped, activation)
                self.positions[quant.name] = position
                codes = np.rint(position)
                if quant.name in self._observed:
                    codes = self._observed[quant.name].astype(np.float32)
                    if codes.shape != x.shape:  # read before the convolution pads them itself
                        codes = _zero_padded(codes, attributes["pads"])
                x = codes * np.float32(activation.scale)
            if spatial:
                strides = attributes.get("strides", [1] * spatial)
                dilations = attributes.get("dilations", [1] * spatial)
                output = _convolved(x, used_weight, strides, dilations, groups)
            else:
                output = x.astype(np.float64) @ used_weight.T
            sum_: Array = (output + used_bias.reshape(along)).astype(np.float32)
            return sum_

        return layer

    def _temporal_layer(self, plan: TemporalPlan, quant: LayerQuant) -> Callable[[Array], Array]:
        weight, bias = self._operands(self._nodes[quant.name])
        used_weight = _fake_quantized_weight(weight, quant)
        if quant.bias_correction is not None:
            bias = bias + quant.bias_correction
        levels, thresholds = plan.codebook.levels, plan.codebook.thresholds

        def layer(x: Array) -> Array:
            snapped = levels[np.searchsorted(thresholds, x, side="left")]
            output: Array = (snapped.astype(np.float64) @ used_weight.T + bias).astype(np.float32)
            return output

        return layer

    def _operands(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        """The weight with its output channels first, and the bias (zeros where there is none)."""
        weight = self._constants[node.input[1]]
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        if node.op_type != "Conv" and not transposed:
            weight = weight.T
        bias = np.zeros(len(weight), np.float64)
        if len(node.input) > 2 and node.input[2]:
            bias = bias + self._constants[node.input[2]]
        return weight, bias


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Initializers, and what exporters write on top of them: Transpose and Identity."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Identity", "Transpose") and node.input[0] in found:
            perm = [entry.ints for entry in node.attribute if entry.name == "perm"]
            source = found[node.input[0]]
            found[node.output[0]] = source.transpose(perm[0]) if perm else source
    return found


def _grid_position(mapped: Array, activation: ActivationQuant) -> Array:
    low, high = -(2 ** (activation.bits - 1)), 2 ** (activation.bits - 1) - 1
    position: Array = np.clip(mapped / np.float32(activation.scale), low, high)
    return position


def _fake_quantized_weight(weight: Array, quant: LayerQuant) -> Array:
    """Rounded to the symmetric grid of its output channels (the first axis), or as it is."""
    if quant.weight is None:
        return weight
    scales = quant.weight.scales.reshape(-1, *[1] * (weight.ndim - 1))
    highest = 2 ** (quant.weight.bits - 1) - 1
    snapped: Array = np.clip(np.rint(weight / scales), -highest, highest) * scales
    return snapped


def _zero_padded(x: Array, pads: Sequence[int]) -> Array:
    spatial = len(pads) // 2
    widths = [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
    return np.pad(x, widths)


def _convolved(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Array:
    """Correlate `[B, C, ...]` with `[N, C / groups, ...]`, nothing padded, in float64."""
    spatial = weight.ndim - 2
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    every = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    windows = windows[every].astype(np.float64)
    contracted = [1, *range(2 + spatial, 2 + 2 * spatial)]
    parts = [
        np.tensordot(part, filters, axes=(contracted, range(1, weight.ndim)))
        for part, filters in zip(
            np.split(windows, groups, axis=1), np.split(weight, groups), strict=True
        )
    ]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
