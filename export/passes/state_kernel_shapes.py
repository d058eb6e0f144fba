"""Convolutions that say the extents of their kernel, for TensorRT 8.6."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.export.graph.stored_values import stored_value

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_BEFORE_WEIGHTS = ("QuantizeLinear", "DequantizeLinear")


class StateKernelShapes(ir.passes.InPlacePass):
    """Write the optional attribute ``kernel_shape`` of every convolution with constant weights.

    TensorRT 8.6 infers it from plain weights, but refuses the node when they come out of a
    DequantizeLinear: "The input tensor shape misaligns with the input kernel shape".
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type in _CONVOLUTIONS and "kernel_shape" not in node.attributes:
                weights = stored_value(node.inputs[1], _BEFORE_WEIGHTS)
                if weights is not None and weights.const_value is not None:
                    extents = weights.const_value.shape.numpy()[2:]
                    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", extents)
                    modified = True
        return ir.passes.PassResult(model, modified)
