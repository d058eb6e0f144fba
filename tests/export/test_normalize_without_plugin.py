from __future__ import annotations

import numpy as np
import pytest

from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from qvd_trt.export.passes.tensorrt8 import NormalizeWithoutPlugin
from tests.export.lower_graphs import graph, ops, run_in_onnx_runtime

ONES, ZEROS = "float[3] s = {1, 1, 1}", "float[3] b = {0, 0, 0}"
NORM = "y = InstanceNormalization<epsilon = 0.1>(x, s, b)"


def test_same_function_at_every_length() -> None:
    model = graph(NORM, "float[n,3,l] x", "float[n,3,l] y", f"{ONES}, {ZEROS}", opset=17)
    feeds = [
        {"x": np.random.default_rng(length).normal(3, 2, (2, 3, length)).astype(np.float32)}
        for length in (1, 7, 64)
    ]
    before = [run_in_onnx_runtime(model, feed)[0] for feed in feeds]
    assert NormalizeWithoutPlugin()(model).modified
    assert "InstanceNormalization" not in ops(model)
    for feed, expected in zip(feeds, before, strict=True):
        np.testing.assert_allclose(run_in_onnx_runtime(model, feed)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "constants"),
    [
        ("n,3,l", "float[3] s = {1, 2, 1}, " + ZEROS),
        ("n,3,l", ONES + ", float[3] b = {0, 1, 0}"),
        ("n,3,h,w", f"{ONES}, {ZEROS}"),
    ],
    ids=["scale", "bias", "rank"],
)
def test_others_are_left_alone(shape: str, constants: str) -> None:
    model = graph(NORM, f"float[{shape}] x", f"float[{shape}] y", constants, opset=17)
    assert not NormalizeWithoutPlugin()(model).modified


@pytest.mark.parametrize(("opset", "extent"), [(18, 3), (20, 3), (21, 6), (23, 6)])
def test_group_normalization_gets_there_too(opset: int, extent: int) -> None:
    """Scale and bias are per group until opset 20, then per channel."""
    rng = np.random.default_rng(opset)
    scale, bias = rng.normal(1, 1, extent), rng.normal(0, 1, extent)
    listed = [", ".join(f"{number:.3f}" for number in values) for values in (scale, bias)]
    model = graph(
        "y = GroupNormalization<num_groups = 3, epsilon = 0.1>(x, s, b)",
        "float[n,6,h,w] x",
        "float[n,6,h,w] y",
        f"float[{extent}] s = {{{listed[0]}}}, float[{extent}] b = {{{listed[1]}}}",
        opset=opset,
    )
    LowerOpset(17)(model)
    assert NormalizeWithoutPlugin()(model).modified
    assert "InstanceNormalization" not in ops(model)
    x = rng.normal(3, 2, (2, 6, 4, 5)).astype(np.float32)
    rows = x.reshape(2, 3, -1).astype(np.float64)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.1)
    per_channel = [np.repeat(v, 6 // extent).reshape(6, 1, 1) for v in (scale, bias)]
    expected = normal.reshape(x.shape) * per_channel[0] + per_channel[1]
    (actual,) = run_in_onnx_runtime(model, {"x": x})
    np.testing.assert_allclose(actual, expected, atol=5e-3)
