"""Why a layer with weights does not run in INT8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.node_precision import NodePrecision, node_precisions
from qvd_trt.tools.engine.onnx_file import read_onnx

SHAPES = {"Conv": (32, 32, 3, 3), "ConvTranspose": (32, 32, 3, 3), "MatMul": (32, 32)}
AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


def one_layer(
    path: Path,
    op: str = "Conv",
    *,
    shape: Sequence[int] | None = None,
    axis: int | None = None,
    scale_shape: Sequence[int] = (),
    quantize: Sequence[str] = ("x", "w"),
    source: str | None = None,
) -> Path:
    """`layer`, with Q/DQ on the operands named in `quantize`."""
    shape = SHAPES[op] if shape is None else shape
    axis = AXES[op] if axis is None else axis
    arrays = {
        "w": np.zeros(shape, np.float32),
        "x_scale": np.ones(scale_shape, np.float32),
        "w_scale": np.ones(shape[axis], np.float32),
    }
    nodes = []
    operands = {"x": "x", "w": "w"}
    if source is not None:
        nodes.append(helper.make_node(source, ["x"], ["from_htdq"], name="htdq", domain="qvd"))
        operands["x"] = "from_htdq"
    for name in quantize:
        given: dict[str, Any] = {"axis": axis} if name == "w" else {}
        scale, codes, restored = f"{name}_scale", f"{name}_q", f"{name}_dq"
        nodes += [
            helper.make_node("QuantizeLinear", [operands[name], scale], [codes], **given),
            helper.make_node("DequantizeLinear", [codes, scale], [restored], **given),
        ]
        operands[name] = restored
    nodes.append(helper.make_node(op, [operands["x"], operands["w"]], ["y"], name="layer"))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def layer(kind: str, *inputs: str, shape: Sequence[int] = (512, 32), **changes: Any) -> EngineLayer:
    fields: dict[str, Any] = {
        "name": "layer_myl0",
        "kind": kind,
        "inputs": inputs,
        "constants": inputs[:1],
        "outputs": ("Half",),
        "onnx_nodes": ("layer",),
        "input_shape": tuple(shape),
        "raw": "",
    }
    return EngineLayer(**(fields | changes))


FLOAT_CONV, INT8_CONV = layer("correlation", "Half"), layer("correlation", "Int8")
FLOAT_GEMM = layer("gemm", "Half")


@pytest.fixture
def explain(tmp_path: Path) -> Callable[..., NodePrecision]:
    def of(*layers: EngineLayer, capabilities: Sequence[str] = (), **model: Any) -> NodePrecision:
        path = one_layer(tmp_path / "m.onnx", **model)
        (found,) = node_precisions(read_onnx(path), layers, capabilities)
        return found

    return of


Explain = Callable[..., NodePrecision]


def test_int8(explain: Explain) -> None:
    found = explain(INT8_CONV)
    assert (found.runs, found.quantized, found.reason) == ("int8", True, None)
    assert found.layer == "layer_myl0"


def test_layer_that_multiplies_counts(explain: Explain) -> None:
    """A generated kernel that only dequantizes names the node too."""
    found = explain(layer("kgen", "Float", name="scale"), INT8_CONV)
    assert (found.runs, found.layer) == ("int8", "layer_myl0")


def test_copy_does_not_count(explain: Explain) -> None:
    """Negative control: an INT8 copy in front of a float product."""
    copy = layer("Reformat", "Int8", name="Reformatting CopyNode for layer")
    assert explain(copy, FLOAT_CONV).runs == "float"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"quantize": ()}, "not quantized in the file (no DequantizeLinear on input x)"),
        ({"quantize": ("w",)}, "not quantized in the file (no DequantizeLinear on input x)"),
        ({"quantize": ("x",)}, "not quantized in the file (no DequantizeLinear on weight w)"),
        ({"quantize": ("w",), "source": "HTDQ"}, "HTDQ codebook's, which is float by design"),
    ],
)
def test_file_does_not_ask_for_int8(explain: Explain, model: dict[str, Any], reason: str) -> None:
    found = explain(FLOAT_CONV, **model)
    assert (found.runs, found.quantized) == ("float", False)
    assert found.reason is not None
    assert reason in found.reason


@pytest.mark.parametrize(
    ("built", "model", "reason"),
    [
        (FLOAT_CONV, {}, "runs it in Half: its Q/DQ nodes were not fused"),
        (layer("correlation", "Float"), {}, "runs it in Float"),
        (FLOAT_CONV, {"scale_shape": (1,)}, "scale has shape [1], which counts as per axis"),
        (FLOAT_CONV, {"axis": 1}, "weight scales lie along axis 1 instead of 0"),
        (FLOAT_GEMM, {"op": "MatMul", "axis": 0}, "weight scales lie along axis 0 instead of 1"),
        (FLOAT_CONV, {"shape": (32, 8, 3, 3)}, "it has 8 channels, and INT8 pays from 16 on"),
        (FLOAT_CONV, {"op": "ConvTranspose"}, "hardly any INT8 kernels for ConvTranspose"),
        (layer("gemm", "Half", shape=(2, 32)), {"op": "MatMul"}, "it multiplies 2 rows"),
        (FLOAT_GEMM, {"op": "MatMul"}, "its Q/DQ nodes were not fused"),
        (FLOAT_GEMM, {"op": "MatMul", "scale_shape": (1,)}, "its Q/DQ nodes were not fused"),
        (layer("runtime_fusion", "Int8"), {"op": "MatMul"}, "is fused into layer_myl0"),
    ],
)
def test_engine_does_not_follow(
    explain: Explain, built: EngineLayer, model: dict[str, Any], reason: str
) -> None:
    found = explain(built, **model)
    assert (found.runs, found.quantized) == ("float", True)
    assert found.reason is not None
    assert found.reason.startswith("quantized in the file, but the engine runs it in ")
    assert reason in found.reason


def test_turing(explain: Explain) -> None:
    reason = explain(FLOAT_CONV, capabilities=("7.5", "8.9")).reason
    assert reason is not None
    assert "SM75 is among the GPUs" in reason


def test_fused_block_does_not_tell(explain: Explain) -> None:
    block = layer("Myelin", "Half", name="{ForeignNode[a...b]}", onnx_nodes=())
    found = explain(block)
    assert (found.runs, found.layer) == ("unknown", block.name)
    assert found.reason is not None
    assert "whose kernels TensorRT does not list" in found.reason
    assert explain(layer("kgen", "Half", onnx_nodes=("other",))).runs == "unknown"


def test_product_of_two_activations_is_not_listed(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="scores")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert list(node_precisions(read_onnx(tmp_path / "m.onnx"), [])) == []
