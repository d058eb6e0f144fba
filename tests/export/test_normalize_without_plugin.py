from __future__ import annotations

import numpy as np
import pytest

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


def test_an_opset_without_layer_normalization_is_left_alone() -> None:
    model = graph(NORM, "float[n,3,l] x", "float[n,3,l] y", f"{ONES}, {ZEROS}", opset=16)
    assert not NormalizeWithoutPlugin()(model).modified
