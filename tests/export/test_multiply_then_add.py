from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.passes.tensorrt8 import MultiplyThenAdd
from tests.export.lower_graphs import graph, ops, run_in_onnx_runtime

QUANTIZE = "q = QuantizeLinear(m, one, zero)\n y = DequantizeLinear(q, one, zero)"
CONSTANTS = (
    "float[3,1,1] z = {1, -2, 0.5}, float[3,1,1] s = {2, 0.25, 4}, float[3] row = {2, 0.5, 4},"
    " float one = {0.125}, int8 zero = {0}"
)


def mapped(body: str) -> ir.Model:
    shape = "float[2,3,4,3]"
    return graph(f"{body}\n{QUANTIZE}", f"{shape} x", f"{shape} y", CONSTANTS, opset=17)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("d = Sub(x, z)\n m = Mul(d, s)", ["Mul", "Add"]),
        ("m = Mul(x, s)", ["Div"]),
        ("m = Mul(s, x)", ["Div"]),
        ("m = Sub(x, z)", ["Add"]),
    ],
    ids=["shift and scale", "scale", "scale first", "shift"],
)
def test_same_function(body: str, expected: list[str]) -> None:
    model = mapped(body)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)}
    (before,) = run_in_onnx_runtime(model, feeds)
    assert MultiplyThenAdd()(model).modified
    assert ops(model)[: len(expected)] == expected
    np.testing.assert_array_equal(run_in_onnx_runtime(model, feeds)[0], before)


def test_a_shift_with_other_readers_keeps_its_value() -> None:
    shape = "float[2,3,4,3]"
    body = f"d = Sub(x, z)\n m = Mul(d, s)\n {QUANTIZE}\n other = Relu(d)"
    model = graph(body, f"{shape} x", f"{shape} y, {shape} other", CONSTANTS, opset=17)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)}
    before = run_in_onnx_runtime(model, feeds)
    assert MultiplyThenAdd()(model).modified
    assert ops(model)[:2] == ["Sub", "Div"]
    for found, expected in zip(run_in_onnx_runtime(model, feeds), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "body",
    ["m = Mul(x, row)", "d = Mul(x, s)\n m = Relu(d)", "d = Sub(x, row)\n m = Mul(d, row)"],
    ids=["last axis", "not in front of Q", "both on the last axis"],
)
def test_others_are_left_alone(body: str) -> None:
    assert not MultiplyThenAdd()(mapped(body)).modified
