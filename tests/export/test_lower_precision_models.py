"""The 16-bit rewrite of quantized layers and of exported denoisers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.raise_opset import RaiseOpset
from qvd_trt.export.passes.opset.schema import infer_dtypes
from qvd_trt.export.passes.precision.float32_nodes import float32_nodes
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from tests.export.lower_graphs import (
    FLOAT,
    FP16,
    check,
    dtypes,
    expose,
    graph,
    ops,
    random_feeds,
    run,
    run_in_onnx_runtime,
    sqnr,
)
from tests.models.cache import exported

ARCHITECTURES = ["animatediff", "latte", "svd", "wan"]

QDQ = (
    "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) "
    "v = DequantizeLinear <axis=1> (w, t, o) {layer} y = Relu (h)"
)
QDQ_CONSTANTS = (
    "float s = {0.03}, int8 z = {0}, float[3] t = {0.1, 0.2, 0.3}, int8[3] o = {0, 0, 0}, "
    "int8[4,3] w = {1, -2, 3, 10, 20, 30, -1, -1, 1, 2, 2, -2}"
)


def test_float32_scales_make_an_island() -> None:
    model = graph(QDQ.format(layer="h = MatMul (d, v)"), constants=QDQ_CONSTANTS)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert {types[name] for name in ("s", "t", "d", "v", "h")} == {FLOAT}
    assert ops(model)[-4:] == ["MatMul", "Cast", "Relu", "Cast"]
    assert sqnr(run(model, feeds)[0], expected) > 55


def test_the_input_of_q_is_cast_up() -> None:
    model = graph(
        "r = Sigmoid (x) " + QDQ.format(layer="h = MatMul (d, v)").replace("(x,", "(r,"),
        constants=QDQ_CONSTANTS,
    )
    LowerPrecision("fp16")(model)
    assert ops(model)[:5] == ["Cast", "Sigmoid", "Cast", "QuantizeLinear", "DequantizeLinear"]
    assert dtypes(model)["r"] == FP16
    check(model)


def test_the_island_reaches_through_layout() -> None:
    model = graph(
        QDQ.format(layer="vt = Transpose <perm=[1, 0]> (v) h = Gemm <transB=1> (d, vt, b)"),
        constants=QDQ_CONSTANTS + ", float[3] b = {1, 2, 3}",
    )
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert {types[name] for name in ("vt", "b", "h")} == {FLOAT}
    check(model)


def test_a_weight_only_layer_runs_low() -> None:
    model = graph(
        "v = DequantizeLinear <axis=1> (w, t, o) h = MatMul (x, v) y = Relu (h)",
        constants=QDQ_CONSTANTS.replace("float s = {0.03}, int8 z = {0}, ", ""),
    )
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["v"] == types["t"] == FLOAT
    assert types["v/fp16"] == types["h"] == FP16
    check(model)


def test_same_scales_are_lowered_with_their_layers() -> None:
    model = graph(QDQ.format(layer="h = MatMul (d, v)"), constants=QDQ_CONSTANTS)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16", qdq_scales="same")(model)
    types = dtypes(model)
    assert {types[name] for name in ("s", "t", "d", "v", "h")} == {FP16}
    assert ops(model).count("Cast") == 2
    assert sqnr(run(model, feeds)[0], expected) > 20


def test_same_scales_need_opset_19() -> None:
    model = graph(QDQ.format(layer="h = MatMul (d, v)"), constants=QDQ_CONSTANTS, opset=17)
    with pytest.raises(UserError, match=r"n0.*fp16 scales need opset 19, the model has 17"):
        LowerPrecision("fp16", qdq_scales="same")(model)
    LowerPrecision("fp16", qdq_scales="float32")(model)
    check(model)


def test_undeclared_types_follow_from_the_schemas() -> None:
    model = graph(
        QDQ.format(layer="h = MatMul (d, v)") + " i = Shape (y) e = Equal (i, i)",
        constants=QDQ_CONSTANTS,
    )
    declared = dtypes(model)
    for node in model.graph:
        for output in node.outputs:
            if output.name != "y":
                output.type = None
    inferred = {value.name: dtype for value, dtype in infer_dtypes(model.graph, 20).items()}
    assert inferred == declared


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_denoisers(name: str, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    path = exported(name, pytestconfig.cache.mkdir("models"))
    model = ir.load(path)
    feeds = random_feeds(model)
    reference = ir.load(path)
    angles = [
        o.name or "" for n in reference.graph if n.op_type in ("Sin", "Cos") for o in n.outputs
    ]
    names = {value.name for node in model.graph for value in node.outputs}
    expose(reference, angles)
    expected = run_in_onnx_runtime(reference, feeds)
    LowerPrecision("fp16")(model)
    assert names <= {value.name for node in model.graph for value in node.outputs}
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} <= {
        FLOAT,
        ir.DataType.INT64,
    }
    expose(model, angles)
    actual = run_in_onnx_runtime(model, feeds)
    assert sqnr(actual[0], expected[0]) > 45
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(got, wanted)
    low = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    assert low < 0.6 * sum(
        v.const_value.nbytes for v in reference.graph.initializers.values() if v.const_value
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_denoisers_in_true_fp16_arithmetic(name: str, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    model = ir.load(exported(name, pytestconfig.cache.mkdir("models")))
    feeds = random_feeds(model)
    (expected,) = run_in_onnx_runtime(model, feeds)
    LowerPrecision("fp16")(model)
    assert sqnr(run(model, feeds)[0], expected) > 45


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_denoisers_keep_little_in_float32(name: str, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    model = ir.load(exported(name, pytestconfig.cache.mkdir("models")))
    types = infer_dtypes(model.graph, 20)
    kept = float32_nodes(model.graph, types, FP16, 20, float32_scales=True)
    assert not {node.op_type for node in kept} & {"Conv", "Gemm", "MatMul", "Softmax", "Gelu"}
    assert len(kept) < 0.12 * len(model.graph)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_denoisers_are_valid_in_bf16(name: str, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    model = ir.load(exported(name, pytestconfig.cache.mkdir("models")))
    RaiseOpset(22)(model)
    LowerPrecision("bf16")(model)
    check(model)
