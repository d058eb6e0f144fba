"""The engine inspector's JSON, as TensorRT 8.6 and 10 write it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qvd_trt.tools.engine.build_engine import count_layers
from qvd_trt.tools.engine.engine_layers import EngineLayer, inspector_layers

INT8_CHW32 = "Thirty-two wide channel vectorized row major Int8 format"
HALF_LINEAR = "Row major linear FP16 format"


def tensor(name: str, form: str, dims: list[int] | None = None) -> dict[str, Any]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": dims or [1, 64, 8, 8],
        "Format/Datatype": form,
    }


def read(*layers: object) -> list[EngineLayer]:
    return list(inspector_layers(map(json.dumps, layers)))


INT8_CONV = {
    "Name": "conv.weight + QuantizeLinear_7 + conv + PWN(PWN(sigmoid), mul)",
    "LayerType": "CaskConvolution",
    "Inputs": [tensor("x", INT8_CHW32)],
    "Outputs": [tensor("y", INT8_CHW32)],
    "Weights": {"Type": "Int8", "Count": 9408},
    "Bias": {"Type": "Float", "Count": 64},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32",
}
HALF_GEMM = {
    "Name": "q || k || v",
    "LayerType": "CaskGemmMatrixMultiply",
    "Inputs": [tensor("x", HALF_LINEAR, [2, 9, 64])],
    "Outputs": [tensor("y", HALF_LINEAR)],
}
MYELIN_GEMM = {
    "Name": "proj_myl0_3",
    "LayerType": "gemm",
    "Inputs": [tensor("x", "Int8", [-1, 64])],
    "Constants": [{"Name": "w", "Dimensions": [64, 64], "Format/Datatype": "Int8"}],
    "Outputs": [tensor("y", "Half")],
    "Metadata": "[ONNX Layer: proj]\u001f[ONNX Layer: proj_dq]",
}
COPY = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to conv.weight + conv",
    "LayerType": "Reformat",
    "Inputs": [tensor("x", HALF_LINEAR)],
    "Outputs": [tensor("y", INT8_CHW32)],
}
BLOCK = {
    "Name": "{ForeignNode[norm...attention + proj]}",
    "LayerType": "Myelin",
    "Inputs": [tensor("x", "Row major linear FP32")],
    "Outputs": [],
}
PLUGIN = {"Name": "time/qvd/htdq", "LayerType": "PluginV2", "Inputs": [], "PluginType": "HTDQ"}


def test_int8_convolution_of_8() -> None:
    (layer,) = read(INT8_CONV)
    assert layer.kind == "CaskConvolution"
    assert (layer.inputs, layer.constants, layer.outputs) == (("Int8",), ("Int8",), ("Int8",))
    assert layer.onnx_nodes == ("conv.weight", "QuantizeLinear_7", "conv", "sigmoid", "mul")
    assert layer.input_shape == (1, 64, 8, 8)
    assert layer.is_int8_product


def test_float_product_of_8() -> None:
    (layer,) = read(HALF_GEMM)
    assert layer.onnx_nodes == ("q", "k", "v")
    assert layer.inputs == ("Half",)
    assert layer.is_product
    assert not layer.is_int8_product


def test_int8_input_with_float_weights_is_not_int8() -> None:
    """Negative control: dequantized inside of the kernel."""
    (layer,) = read(INT8_CONV | {"Weights": {"Type": "Half"}})
    assert not layer.is_int8_product


def test_gemm_of_10() -> None:
    (layer,) = read(MYELIN_GEMM)
    assert layer.onnx_nodes == ("proj", "proj_dq")
    assert layer.input_shape == ()  # dynamic
    assert layer.is_int8_product


def test_blocks_copies_and_plugins_are_counted() -> None:
    layers = read(INT8_CONV, HALF_GEMM, MYELIN_GEMM, COPY, BLOCK, PLUGIN)
    counts = count_layers(layers, ["time/qvd/htdq"])
    assert (counts.all, counts.int8_products, counts.copies) == (6, 2, 1)
    assert (counts.htdq_plugins, counts.opaque) == (1, 1)
    assert layers[3].onnx_nodes == layers[4].onnx_nodes == ()
    assert count_layers(layers[:5], ["time/qvd/htdq"]).htdq_plugins == 0


def test_missing_keys_are_taken() -> None:
    bare, nothing, odd = read("conv + relu", {}, {"Inputs": None, "Name": None, "Metadata": None})
    assert bare.onnx_nodes == ("conv", "relu")
    assert bare.inputs == nothing.inputs == odd.inputs == ()
    assert not bare.is_int8_product


QUANTIZE = """{
  "Name": "silu_1/qvd/mul/qvd/q",
  "LayerType": "Reformat",
  "Inputs": [
  {
    "Name": "silu_1/qvd/mul",
    "Location": "Device",
    "Dimensions": [16,32,32,32],
    "Format/Datatype": "Row major linear FP32"
  }],
  "Outputs": [
  {
    "Name": "silu_1/qvd/mul/qvd/q",
    "Location": "Device",
    "Dimensions": [16,32,32,32],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"
  }],
  "ParameterType": "Reformat",
  "Origin": "QDQ",
  "TacticValue": "0x00000000000003ea",
  "StreamId": 0,
  "Metadata": ""
}"""
"""As TensorRT 8.6.0 wrote it on an H200."""
SCALE = """{
  "Name": "silu_3/qvd/padded/sub/operand + silu_3/qvd/padded/sub + silu_3/qvd/padded/mul",
  "LayerType": "Scale",
  "Inputs": [],
  "Outputs": [],
  "Shift": {"Type": "Float", "Count": 32},
  "Metadata": "[ONNX Layer: silu_3/qvd/padded/sub]\x1e[ONNX Layer: silu_3/qvd/padded/mul]"
}"""
"""The same, shortened; the separator in ``Metadata`` is what it wrote."""


def test_quantize_as_reformat_is_no_copy() -> None:
    (layer,) = inspector_layers([QUANTIZE])
    assert (layer.inputs, layer.outputs) == (("Float",), ("Int8",))
    assert layer.onnx_nodes == ("silu_1/qvd/mul/qvd/q",)
    assert not layer.is_copy
    (copy,) = inspector_layers([QUANTIZE.replace("QDQ", "CONCAT")])
    assert copy.is_copy


def test_separator_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="Invalid control character"):
        json.loads(SCALE)
    (layer,) = inspector_layers([SCALE])
    assert layer.kind == "Scale"
    assert layer.onnx_nodes == ("silu_3/qvd/padded/sub", "silu_3/qvd/padded/mul")
