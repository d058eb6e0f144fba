from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.passes.tensorrt8 import StateKernelShapes
from tests.export.graphs import GraphBuilder


def convolution(op_type: str, *, quantized: bool) -> ir.Model:
    net = GraphBuilder()
    x, weight = net.input("x", ["n", 4, "h", "w"]), net.weight("weight", 4, 4, 3, 5)
    if quantized:
        scales = (
            net.constant("scale", np.ones(4, np.float32)),
            net.constant("zero_point", np.zeros(4, np.int8)),
        )
        weight = net.op("QuantizeLinear", weight, *scales, name="q", axis=0)
        weight = net.op("DequantizeLinear", weight, *scales, name="dq", axis=0)
    net.op(op_type, x, weight, name="layer")
    return ir.from_proto(net.model({"layer_out": ["n", 4, "a", "b"]}))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_extents_of_the_weights(op_type: str, quantized: bool) -> None:
    model = convolution(op_type, quantized=quantized)
    assert StateKernelShapes()(model).modified
    (layer,) = [node for node in model.graph if node.name == "layer"]
    assert tuple(layer.attributes["kernel_shape"].as_ints()) == (3, 5)
    assert not StateKernelShapes()(model).modified


def test_computed_weights_are_left_alone() -> None:
    net = GraphBuilder()
    weight = net.op("Neg", net.weight("weight", 4, 4, 3, 5), name="neg")
    net.op("Conv", net.input("x", ["n", 4, "h", "w"]), weight, name="layer")
    model = ir.from_proto(net.model({"layer_out": ["n", 4, "a", "b"]}))
    assert not StateKernelShapes()(model).modified
