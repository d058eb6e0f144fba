from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("tensorrt_rtx")

from qvd_trt.tools.engine.engine_layers import rtx_log_layers
from tests.rtx.builder import RtxBuild, RtxBuildError, build, int8_layers

Array = npt.NDArray[Any]


@dataclass
class Net:
    """Writes quantized nodes in one of the forms that export profiles may choose.

    `data` is the type of the float graph, `scales` that of the scales. With `island` the quantized
    node computes in the scales' type between two Casts.
    """

    data: type[np.floating[Any]] = np.float32
    scales: type[np.floating[Any]] = np.float32
    opset: int = 20
    island: bool = False
    weights: Literal["int8", "float"] = "int8"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def const(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def op(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        output = f"{name}_out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def dequantize(self, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        if self.data != self.scales and not self.island:
            attributes["output_dtype"] = tensor_type(self.data)
        return self.op("DequantizeLinear", inputs, name, **attributes)

    def activation(self, x: str, name: str, scale_shape: tuple[int, ...] = ()) -> str:
        scale = self.const(f"{name}_scale", np.full(scale_shape, 0.05, self.scales))
        zero = self.const(f"{name}_zero", np.zeros(scale_shape, np.int8))
        if self.island:
            x = self.op("Cast", [x], f"{name}_cast", to=tensor_type(self.scales))
        quantized = self.op("QuantizeLinear", [x, scale, zero], f"{name}_q")
        return self.dequantize([quantized, scale, zero], f"{name}_dq")

    def weight(self, shape: Sequence[int], axis: int, name: str) -> str:
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = self.rng.uniform(0.005, 0.02, shape[axis]).astype(self.scales)
        parameters = [
            self.const(f"{name}_scale", scale),
            self.const(f"{name}_zero", np.zeros(shape[axis], np.int8)),
        ]
        if self.weights == "int8":
            quantized = self.const(f"{name}_codes", codes)
        else:
            along_axis = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            values = (codes * along_axis).astype(self.scales if self.island else self.data)
            float_weight = self.const(f"{name}_float", values)
            inputs = [float_weight, *parameters]
            quantized = self.op("QuantizeLinear", inputs, f"{name}_q", axis=axis)
        return self.dequantize([quantized, *parameters], f"{name}_dq", axis=axis)

    def quantized(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        y = self.op(op_type, inputs, name, **attributes)
        return self.op("Cast", [y], f"{name}_cast", to=tensor_type(self.data)) if self.island else y

    def save(
        self,
        path: Path,
        x_shape: Sequence[int | str],
        y: str,
        y_shape: Sequence[int | str],
        functions: Sequence[onnx.FunctionProto] = (),
    ) -> Path:
        data = tensor_type(self.data)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", data, x_shape)],
            [helper.make_tensor_value_info(y, data, y_shape)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("test", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def tensor_type(dtype: type[np.floating[Any]]) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


FORMS: dict[str, Callable[[], Net]] = {
    "fp32": Net,
    "fp32, float weights": partial(Net, weights="float"),
    "fp16": partial(Net, np.float16, np.float16),
    "fp16, float weights": partial(Net, np.float16, np.float16, weights="float"),
    "fp32 island in fp16": partial(Net, np.float16, np.float32, island=True),
    "fp16 with fp32 scales": partial(Net, np.float16, np.float32, opset=23),
}
CONVS = {"conv_3x3", "conv_1x1", "conv_3d"}
LINEARS = {"q", "k", "v", "proj", "gemm"}


def video_block(net: Net, path: Path) -> Path:
    """Spatial and temporal convs, attention and a Linear as denoisers have them.

    `conv_float` and `float_linear` have no Q/DQ, nor have the two products of the attention.
    """
    wide = net.scales if net.island else net.data
    y = net.op("Mul", ["x", net.op("Sigmoid", ["x"], "sigmoid")], "silu")
    bias = net.const("conv_3x3_bias", net.rng.normal(size=64).astype(wide))
    inputs = [net.activation(y, "a"), net.weight((64, 32, 3, 3), 0, "w_3x3"), bias]
    y = net.quantized("Conv", inputs, "conv_3x3", pads=[1] * 4)
    kernel = net.const("kernel", net.rng.normal(size=(64, 64, 3, 3)).astype(net.data))
    y = net.op("Relu", [net.op("Conv", [y, kernel], "conv_float", pads=[1] * 4)], "relu")
    y = net.quantized(
        "Conv", [net.activation(y, "b"), net.weight((64, 64, 1, 1), 0, "w_1x1")], "conv_1x1"
    )
    y = net.op("Transpose", [y], "to_channels_first", perm=[1, 0, 2, 3])
    y = net.op("Reshape", [y, net.const("video", np.array([1, 64, 4, 8, 8]))], "to_video")
    y = net.quantized(
        "Conv",
        [net.activation(y, "c"), net.weight((64, 64, 3, 1, 1), 0, "w_3d")],
        "conv_3d",
        pads=[1, 0, 0, 1, 0, 0],
    )
    y = net.op("Transpose", [y], "to_channels_last", perm=[0, 2, 3, 4, 1])
    y = net.op("Reshape", [y, net.const("tokens", np.array([4, 64, 64]))], "to_tokens")
    ones, zeros = np.ones(64, net.data), np.zeros(64, net.data)
    affine = [net.const("gamma", ones), net.const("beta", zeros)]
    shared = net.activation(net.op("LayerNormalization", [y, *affine], "norm"), "d")
    q, k, v = (
        net.quantized("MatMul", [shared, net.weight((64, 64), 1, f"w_{n}")], n) for n in "qkv"
    )
    k = net.op("Transpose", [k], "k_transposed", perm=[0, 2, 1])
    y = net.op("Softmax", [net.op("MatMul", [q, k], "scores")], "softmax")
    y = net.op("MatMul", [y, v], "attention")
    y = net.quantized("MatMul", [net.activation(y, "e"), net.weight((64, 64), 1, "w_o")], "proj")
    y = net.op("Reshape", [y, net.const("rows", np.array([256, 64]))], "to_rows")
    bias = net.const("gemm_bias", net.rng.normal(size=48).astype(wide))
    y = net.quantized(
        "Gemm", [net.activation(y, "f"), net.weight((48, 64), 0, "w_g"), bias], "gemm", transB=1
    )
    matrix = net.const("matrix", net.rng.normal(size=(48, 32)).astype(net.data))
    y = net.op("MatMul", [y, matrix], "float_linear")
    return net.save(path, [4, 32, 8, 8], y, [256, 32])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RtxBuild]:
    directory = tmp_path_factory.mktemp("blocks")
    return {
        form: build(video_block(new_net(), directory / f"{i}.onnx"))
        for i, (form, new_net) in enumerate(FORMS.items())
    }


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_exactly_the_quantized_nodes_are_int8(
        self, blocks: dict[str, RtxBuild], form: str
    ) -> None:
        assert int8_layers(blocks[form]) == CONVS | LINEARS

    @pytest.mark.parametrize("form", FORMS)
    def test_shared_quantizer_merges_q_k_v(self, blocks: dict[str, RtxBuild], form: str) -> None:
        merged = [x for x in blocks[form].layers if {"q", "k", "v"} <= set(x.onnx_nodes)]
        assert [layer.kind for layer in merged] == ["gemm"]

    @pytest.mark.parametrize("form", FORMS)
    def test_norm_and_activation_write_int8(self, blocks: dict[str, RtxBuild], form: str) -> None:
        for producer in ("silu", "norm"):
            (layer,) = blocks[form].layers_of(producer)
            assert layer.kind == "kgen"
            assert layer.outputs[0] == "Int8"

    @pytest.mark.parametrize(
        ("form", "conv_sums", "gemm_sums"),
        [
            ("fp32", "Float", "Float"),
            ("fp16", "Float", "Half"),  # 65504 overflows: why a profile avoids fp16 scales
            ("fp32 island in fp16", "Float", "Float"),
            ("fp16 with fp32 scales", "Float", "Float"),
        ],
    )
    def test_type_of_the_sums(
        self, blocks: dict[str, RtxBuild], form: str, conv_sums: str, gemm_sums: str
    ) -> None:
        products = [x for x in blocks[form].layers if x.is_int8_product]
        assert {x.outputs for x in products if x.kind == "correlation"} == {(conv_sums,)}
        assert {x.outputs for x in products if x.kind == "gemm"} == {(gemm_sums,)}


class TestNegativeControls:
    """What must not be counted as INT8."""

    @staticmethod
    def conv(
        path: Path,
        net: Net,
        *,
        weight_axis: int = 0,
        scale_shape: tuple[int, ...] = (),
        quantize_input: bool = True,
    ) -> Path:
        x = net.activation("x", "a", scale_shape) if quantize_input else "x"
        y = net.op("Conv", [x, net.weight((32, 32, 3, 3), weight_axis, "w")], "conv", pads=[1] * 4)
        return net.save(path, [1, 32, 8, 8], y, [1, 32, 8, 8])

    @staticmethod
    def matmul(
        path: Path, net: Net, *, weight_axis: int = 1, scale_shape: tuple[int, ...] = ()
    ) -> Path:
        x = net.activation("x", "a", scale_shape)
        y = net.op("MatMul", [x, net.weight((32, 32), weight_axis, "w")], "matmul")
        return net.save(path, [64, 32], y, [64, 32])

    @pytest.fixture(params=[np.float32, np.float16], ids=["fp32", "fp16"])
    def net(self, request: pytest.FixtureRequest) -> Net:
        return Net(request.param, request.param)

    def test_positive_control(self, tmp_path: Path, net: Net) -> None:
        assert int8_layers(build(self.conv(tmp_path / "m.onnx", net))) == {"conv"}

    def test_scale_of_shape_1_loses_the_conv(self, tmp_path: Path, net: Net) -> None:
        built = build(self.conv(tmp_path / "m.onnx", net, scale_shape=(1,)))
        assert int8_layers(built) == set()
        assert "Int8" not in built.layers_of("conv")[0].inputs

    def test_scale_of_shape_1_keeps_the_matmul(self, tmp_path: Path, net: Net) -> None:
        built = build(self.matmul(tmp_path / "m.onnx", net, scale_shape=(1,)))
        assert int8_layers(built) == {"matmul"}

    def test_wrong_weight_axis_of_conv(self, tmp_path: Path, net: Net) -> None:
        assert int8_layers(build(self.conv(tmp_path / "m.onnx", net, weight_axis=1))) == set()

    def test_wrong_weight_axis_of_matmul(self, tmp_path: Path, net: Net) -> None:
        built = build(self.matmul(tmp_path / "m.onnx", net, weight_axis=0))
        assert int8_layers(built) == set()
        reads_int8 = [x for x in built.layers_of("matmul") if "Int8" in x.inputs]
        assert [x.kind for x in reads_int8] == ["runtime_fusion"]

    def test_quantized_weight_alone(self, tmp_path: Path, net: Net) -> None:
        built = build(self.conv(tmp_path / "m.onnx", net, quantize_input=False))
        assert int8_layers(built) == set()

    def test_generation_7_5_takes_the_conv_from_all(self, tmp_path: Path, net: Net) -> None:
        path = self.conv(tmp_path / "m.onnx", net)
        assert int8_layers(build(path, ("7.5", "8.9"))) == set()
        assert int8_layers(build(path, ("8.0", "8.6", "8.9", "12.0", "12.1"))) == {"conv"}


class TestFailures:
    def test_parser_names_the_node(self, tmp_path: Path) -> None:
        net = Net()
        y = net.op("Conv", ["x", "w"], "conv")
        net.const("w", np.zeros((4, 4, 1, 1), np.float32))
        model = onnx.load(net.save(tmp_path / "m.onnx", [1, 4, 8, 8], y, [1, 4, 8, 8]))
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(RtxBuildError, match=r"conv.*NoSuchOperator"):
            build(tmp_path / "bad.onnx")

    def test_dynamic_shape_needs_a_profile(self, tmp_path: Path) -> None:
        net = Net()
        y = net.op("MatMul", [net.activation("x", "a"), net.weight((32, 32), 1, "w")], "matmul")
        path = net.save(tmp_path / "m.onnx", ["rows", 32], y, ["rows", 32])
        with pytest.raises(RtxBuildError, match="profile"):
            build(path)
        built = build(path, profiles={"x": ((1, 32), (64, 32), (256, 32))})
        assert int8_layers(built) == {"matmul"}
        assert built.engine_bytes_len > 32 * 32

    def test_unknown_gpu_generation_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(RtxBuildError, match="SM10"):
            build(TestNegativeControls.conv(tmp_path / "m.onnx", Net()), ("1.0",))


def test_nodes_of_a_function_count_as_their_call(tmp_path: Path) -> None:
    body = [
        helper.make_node("Abs", ["u"], ["inside"]),
        helper.make_node("Mul", ["inside", "u"], ["w"], name="named inside"),
    ]
    function = helper.make_function(
        "test", "SignedSquare", ["u"], ["w"], body, [helper.make_opsetid("", 20)]
    )
    net = Net()
    net.nodes.append(helper.make_node("SignedSquare", ["x"], ["y"], name="call", domain="test"))
    built = build(net.save(tmp_path / "m.onnx", [4, 32], "y", [4, 32], [function]))
    (layer,) = built.layers_of("call")
    assert "named inside | call (SignedSquare)" in layer.raw
    assert layer.onnx_nodes == ("call",)


def test_log_reader_takes_brackets_and_separators() -> None:
    log = (
        "Name: not a layer, LayerType: kgen, Inputs: []\nLayers:\n"
        "Name: a+b, LayerType: gemm, "
        "Inputs: [ { Name: i, Dimensions: [2,3], Datatype: Int8, Format: (Linear) Row major }], "
        "Constants: [ { Name: c, Strides: [1], Datatype: Half }, { Name: d, Datatype: Float }], "
        "Outputs: [ { Name: o, Datatype: Half, Format: (Arbitrary) order = [1,0] }], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a[0]/b]\x1f[ONNX Layer: c]\n"
        "Name: none, LayerType: wait, Inputs: [], Outputs: [], TacticName: , Metadata: "
    )
    first, second = rtx_log_layers(log)
    assert (first.name, first.kind) == ("a+b", "gemm")
    assert (first.inputs, first.constants, first.outputs) == (
        ("Int8",),
        ("Half", "Float"),
        ("Half",),
    )
    assert first.onnx_nodes == ("a[0]/b", "c")
    assert second.onnx_nodes == second.inputs == second.outputs == ()
    assert not first.is_int8_product
