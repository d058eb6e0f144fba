"""Q/DQ pairs on layer inputs and weights, as TensorRT's explicit quantization wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.graph.values import nodes_by_name, static_shape
from qvd_trt.export.passes.edits import add_initializer, add_to_bias, read_weight, replace_constant
from qvd_trt.export.plan.fold_math import restored_weight
from qvd_trt.export.plan.quant_plan import ActivationQuant, DensePlan, LayerQuant, TemporalPlan
from qvd_trt.export.plan.scale_math import (
    activation_levels,
    codes,
    quantize_dequantize,
    representable_scale,
    weight_levels,
)
from qvd_trt.export.plan.site_types import Layer
from qvd_trt.export.targets import CodeType, ScaleType, TargetProfile, WeightForm

FULL_INT8 = activation_levels(8)

_ZERO_POINTS = {CodeType.INT8: np.int8(0), CodeType.UINT8: np.uint8(128)}


class InsertQdq(ir.passes.InPlacePass):
    """Quantize activations per tensor and weights per output channel, symmetrically.

    Runs after SCRI is folded: a layer's first input is then the mapped activation, and layers that
    share it share one Q/DQ pair. Widths under 8 bits live in 8: activations are clipped before Q,
    weight codes use fewer levels.
    """

    def __init__(
        self,
        dense: Sequence[DensePlan],
        temporal: Sequence[TemporalPlan],
        layers: Mapping[str, Layer],
        target: TargetProfile,
        scale_type: ScaleType,
    ) -> None:
        super().__init__()
        self._dense = dense
        self._temporal = temporal
        self._layers = layers
        self._target = target
        self._zero = _ZERO_POINTS[target.code_type]
        self._codes = ir.TensorType(ir.DataType.from_numpy(self._zero.dtype))
        self._scale_type = scale_type

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_by_name(model.graph)
        for plan in self._dense:
            quantized: dict[ir.Value, ir.Value] = {}
            for quant in plan.layers:
                node = nodes[quant.name]
                if plan.activation is not None:
                    value = node.inputs[0]
                    assert value is not None
                    if value not in quantized:
                        quantized[value] = self._quantize_activation(
                            model.graph, node, value, plan.activation
                        )
                    node.replace_input_with(0, quantized[value])
                self._quantize_layer(model.graph, node, quant, plan.activation is not None)
        for temporal in self._temporal:
            for quant in temporal.layers:
                self._quantize_layer(model.graph, nodes[quant.name], quant, reads_codes=False)
        return ir.passes.PassResult(model, bool(self._dense or self._temporal))

    def _quantize_activation(
        self, graph: ir.Graph, before: ir.Node, value: ir.Value, activation: ActivationQuant
    ) -> ir.Value:
        stem = f"{value.name}/qvd"
        scale = representable_scale(np.float32(activation.scale), self._scale_type)
        levels = activation_levels(activation.bits)
        shape, dtype = value.shape, value.type
        if levels != FULL_INT8:
            bounds = [
                add_initializer(graph, f"{stem}/{name}", np.float32(level) * scale)
                for name, level in zip(("lowest", "highest"), levels, strict=True)
            ]
            clip = ir.node("Clip", [value, *bounds], name=f"{stem}/clip")
            graph.insert_before(before, clip)
            value = _named(clip, f"{stem}/clip", shape, dtype)
        scale_value = add_initializer(graph, f"{stem}/scale", scale)
        zero = add_initializer(graph, f"{stem}/zero_point", np.asarray(self._zero))
        quantize = ir.node("QuantizeLinear", [value, scale_value, zero], name=f"{stem}/q")
        codes_value = _named(quantize, f"{stem}/q", shape, self._codes)
        dequantize = ir.node(
            "DequantizeLinear", [codes_value, scale_value, zero], name=f"{stem}/dq"
        )
        graph.insert_before(before, [quantize, dequantize])
        return _named(dequantize, f"{stem}/dq", shape, dtype)

    def _quantize_layer(
        self, graph: ir.Graph, node: ir.Node, quant: LayerQuant, reads_codes: bool
    ) -> None:
        layer = self._layers[quant.name]
        if quant.bias_correction is not None:
            add_to_bias(node, layer, quant.bias_correction)
        if quant.weight is None:
            return
        weight = read_weight(node, layer)
        source = node.inputs[1]
        assert source is not None
        shape, dtype, stem = source.shape, source.type, f"{source.name}/{layer.name}/qvd"
        extents = static_shape(source)
        scales = representable_scale(quant.weight.scales, self._scale_type)
        levels = weight_levels(quant.weight.bits)
        scale = add_initializer(graph, f"{stem}/scale", scales)
        zero = add_initializer(graph, f"{stem}/zero_point", np.full(len(scales), self._zero))
        axis = layer.out_axis
        if self._target.negative_axis and not reads_codes:
            axis -= len(extents)
        if self._target.weight_form is WeightForm.CODES:
            integers = codes(weight, scales[:, None, None], levels) + np.float32(self._zero)
            stored = restored_weight(layer, integers.astype(self._zero.dtype), extents)
            replace_constant(node, 1, f"{stem}/{self._target.code_type.value}", stored)
            codes_value = node.inputs[1]
            assert codes_value is not None
        else:
            snapped = _snapped(weight, scales, levels)
            replace_constant(node, 1, f"{stem}/float", restored_weight(layer, snapped, extents))
            quantize = ir.node(
                "QuantizeLinear",
                [node.inputs[1], scale, zero],
                attributes={"axis": axis},
                name=f"{stem}/q",
            )
            graph.insert_before(node, quantize)
            codes_value = _named(quantize, f"{stem}/q", shape, self._codes)
        dequantize = ir.node(
            "DequantizeLinear",
            [codes_value, scale, zero],
            attributes={"axis": axis},
            name=f"{stem}/dq",
        )
        graph.insert_before(node, dequantize)
        node.replace_input_with(1, _named(dequantize, f"{stem}/dq", shape, dtype))


def _snapped(weight: Float32Array, scales: Float32Array, levels: tuple[int, int]) -> Float32Array:
    """Float weights that any quantizer with these scales rounds to exactly our codes."""
    return quantize_dequantize(weight, scales[:, None, None], levels)


def _named(
    node: ir.Node, name: str, shape: ir.Shape | None, dtype: ir.TypeProtocol | None
) -> ir.Value:
    output = node.outputs[0]
    output.name, output.shape, output.type = name, shape, dtype
    return output
