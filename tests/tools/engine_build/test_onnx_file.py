"""What is read of a file, and by which names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.insert_htdq import HTDQ_SUFFIX
from qvd_trt.tools.engine.onnx_file import WeightLayer, read_onnx, weight_layers

EXTERNAL = "weights.bin"


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], *, external: bool = False
) -> Path:
    """A model `x [n, 32] -> y` of these nodes."""
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph),
        path,
        save_as_external_data=external,
        location=EXTERNAL,
        size_threshold=0,
    )
    return path


def layers(path: Path) -> list[WeightLayer]:
    return list(weight_layers(read_onnx(path)))


def pair(source: str, result: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, f"{source}_s"], [f"{source}_q"]),
        helper.make_node("DequantizeLinear", [f"{source}_q", f"{source}_s"], [result]),
    ]


def test_nameless_nodes_are_called_as_tensorrt_calls_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("HTDQ", ["x"], ["code"], domain="qvd"),
        helper.make_node("MatMul", ["code", "w"], ["y"]),
    ]
    model = read_onnx(write(tmp_path / "m.onnx", nodes, {"w": np.zeros((32, 32), np.float32)}))
    assert model.htdq_nodes == ("node_of_code",)
    assert [layer.name for layer in weight_layers(model)] == ["node_of_y"]


def test_external_weights_are_not_read(tmp_path: Path) -> None:
    weights = {"w": np.zeros((32, 8, 3, 3), np.float16)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    path = write(tmp_path / "m.onnx", [node], weights, external=True)
    (tmp_path / EXTERNAL).unlink()
    model = read_onnx(path)
    assert not model.is_float32
    (layer,) = weight_layers(model)
    assert layer.channels == 8
    assert [spec.shape for spec in model.inputs] == [("n", 32)]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("op", ["Reshape", "Transpose", "Cast"])
def test_weights_behind_a_change_of_shape(tmp_path: Path, op: str, quantized: bool) -> None:
    weights = {
        "w": np.zeros((32, 32), np.float32),
        "w_s": np.float32(1),
        "x_s": np.float32(1),
        "shape": np.array([32, 32]),
    }
    given: dict[str, Any] = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    inputs = ["w_dq" if quantized else "w", *(["shape"] if op == "Reshape" else [])]
    nodes = [
        *pair("x", "x_dq"),
        *(pair("w", "w_dq") if quantized else []),
        helper.make_node(op, inputs, ["changed"], **given),
        helper.make_node("MatMul", ["x_dq", "changed"], ["y"], name="product"),
    ]
    (layer,) = layers(write(tmp_path / "m.onnx", nodes, weights))
    assert layer.name == "product"
    assert layer.unquantized == (None if quantized else "weight changed")
    assert layer.trap is None


def test_weight_on_the_left_of_a_product(tmp_path: Path) -> None:
    weights = {"w": np.zeros((32, 32), np.float32), "x_s": np.float32(1)}
    nodes = [*pair("x", "x_dq"), helper.make_node("MatMul", ["w", "x_dq"], ["y"], name="product")]
    (layer,) = layers(write(tmp_path / "m.onnx", nodes, weights))
    assert layer.unquantized == "weight w"


def test_weight_of_a_constant_node(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.zeros((32, 32), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    (layer,) = layers(write(tmp_path / "m.onnx", nodes, {}))
    assert (layer.name, layer.unquantized) == ("product", "input x")


def test_inlined_codebook_is_known_by_its_output(tmp_path: Path) -> None:
    feature = f"x{HTDQ_SUFFIX}"
    nodes = [
        helper.make_node("Gather", ["levels", "x"], [feature]),
        helper.make_node("Cast", [feature], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["y"], name="product"),
    ]
    weights = {"levels": np.zeros(4, np.float32), "w": np.zeros((32, 32), np.float16)}
    (layer,) = layers(write(tmp_path / "m.onnx", nodes, weights))
    assert layer.reads_codebook


def test_layers_of_a_subgraph_are_not_listed(tmp_path: Path) -> None:
    """TensorRT names them otherwise than the file."""
    inner = helper.make_node("MatMul", ["x", "w"], ["inside"], name="inner")
    out = helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)
    body = helper.make_graph([inner], "body", [], [out])
    nodes = [
        helper.make_node("If", ["c"], ["z"], name="if", then_branch=body, else_branch=body),
        helper.make_node("MatMul", ["z", "w"], ["y"], name="outer"),
    ]
    weights = {"c": np.array(True), "w": np.zeros((32, 32), np.float32)}
    assert [layer.name for layer in layers(write(tmp_path / "m.onnx", nodes, weights))] == ["outer"]


@pytest.mark.parametrize("extent", [None, -1])
def test_nameless_dimension_is_dynamic(tmp_path: Path, extent: int | None) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})
    model = onnx.load(path)
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.ClearField("dim_param")
    if extent is not None:
        dim.dim_value = extent
    onnx.save(model, path)
    (spec,) = read_onnx(path).inputs
    assert (spec.shape, spec.is_dynamic) == (("?", 32), True)


def test_input_with_an_initializer_is_a_weight(tmp_path: Path) -> None:
    weights = {"w": np.zeros((32, 32), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    path = write(tmp_path / "m.onnx", [node], weights)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 32]))
    onnx.save(model, path)
    assert [spec.name for spec in read_onnx(path).inputs] == ["x"]
    assert [layer.name for layer in layers(path)] == ["product"]


def test_why_a_graph_cannot_be_read(tmp_path: Path) -> None:
    """In one line, and not by the name of the graph alone."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]) for _ in range(2)]
    with pytest.raises(UserError, match=r"m.onnx is not an ONNX model: .*'y'") as found:
        read_onnx(write(tmp_path / "m.onnx", nodes, {}))
    assert "\n" not in str(found.value)
