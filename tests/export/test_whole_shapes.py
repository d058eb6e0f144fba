from __future__ import annotations

import numpy as np
import pytest

from qvd_trt.export.passes.tensorrt8 import WholeShapes
from tests.export.lower_graphs import graph, run_in_onnx_runtime

CUTS = [
    "start = 1",
    "end = 2",
    "start = 1, end = 3",
    "start = -2",
    "end = -1",
    "start = 2, end = 1",
]


@pytest.mark.parametrize("cut", CUTS)
def test_same_extents(cut: str) -> None:
    model = graph(f"y = Shape<{cut}>(x)", "float[a,b,c,d] x", "int64[n] y", opset=17)
    feeds = {"x": np.zeros((2, 3, 5, 7), np.float32)}
    (before,) = run_in_onnx_runtime(model, feeds)
    WholeShapes()(model)
    assert all(not node.attributes for node in model.graph if node.op_type == "Shape")
    (after,) = run_in_onnx_runtime(model, feeds)
    np.testing.assert_array_equal(after, before)


def test_whole_shape_is_left_alone() -> None:
    model = graph("y = Shape(x)", "float[a,b,c,d] x", "int64[n] y", opset=17)
    assert not WholeShapes()(model).modified
