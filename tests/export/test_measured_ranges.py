"""What is measured bounds every tensor; what fp16 cannot hold stays float32."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.ort_session import open_session
from qvd_trt.export.passes.emulate_low_precision import EmulateLowPrecision
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from qvd_trt.export.passes.precision.measured_tensors import measured_tensors
from qvd_trt.export.passes.precision.widen import is_low_precision
from qvd_trt.export.plan.scale_math import MIN_SCALE, beyond_fp16, holds_scale, representable_scale
from qvd_trt.export.targets import ScaleType
from tests.export.graphs import prepared
from tests.export.lower_graphs import BF16, FLOAT, FP16, check, dtypes, graph, random_feeds, run
from tests.models.token_denoiser import token_denoiser


@pytest.mark.parametrize("massive", [1.0, 1e5])
def test_bounds_hold_and_are_not_far(massive: float) -> None:
    model = prepared(token_denoiser(massive=massive))
    bounds = measured_tensors(model.graph, 18)
    assert {"up_out", "stream_out", "mid_bias_out", "small_out", "last_out"} <= bounds.keys()
    # Angles stay float32, gates and norms are bounded, time does not enlarge.
    assert not {"angles_out", "norm1_out", "waves_out"} & bounds.keys()
    names = {name for bound in bounds.values() for name in bound.measured} | set(bounds)
    ordered = sorted(names)
    values = {output.name: output for node in model.graph for output in node.outputs}
    for name in ordered:
        values[name].dtype = ir.DataType.FLOAT
        model.graph.outputs.append(values[name])
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((2, 16, 20)).astype(np.float32),
        "timestep": np.array([5, 900]),
    }
    found = open_session(model).run(ordered, feeds)
    exact = {name: float(np.abs(value).max()) for name, value in zip(ordered, found, strict=True)}
    for name, bound in bounds.items():
        assert exact[name] <= bound(exact) * 1.0001
        assert bound(exact) <= 4 * exact[name]


def test_a_bias_and_a_scale_are_measured_behind_themselves() -> None:
    model = graph(
        "h = MatMul (x, w) y = Add (h, b)",
        constants="float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float[3] b = {1, -7, 3}",
    )
    bounds = measured_tensors(model.graph, 20)
    assert bounds["h"].measured == bounds["y"].measured == ("y",)
    assert (bounds["h"]({"y": 10.0}), bounds["y"]({"y": 10.0})) == (17.0, 10.0)
    model = graph(
        "h = MatMul (x, w) s = Mul (h, c) y = Softmax (s)",
        constants="float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float c = {0.125}",
    )
    assert measured_tensors(model.graph, 20)["h"]({"s": 10.0}) == 80.0


@pytest.mark.parametrize(
    ("magnitude", "beyond"),
    [(0.0, False), (1.0, False), (16_000, False), (17_000, True), (math.inf, True), (1e-6, True)],
)
def test_what_fp16_cannot_hold(magnitude: float, beyond: bool) -> None:
    assert beyond_fp16(magnitude) == beyond


STREAM = "a = Mul (x, big) t = Transpose (a) u = Mul (t, small) y = Add (u, u)"
STREAM_CONSTANTS = "float[4] big = {60000, 60000, 60000, 60000}, float small = {0.001}"


def test_only_the_nodes_around_a_large_tensor_stay() -> None:
    model = graph(STREAM, constants=STREAM_CONSTANTS)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16", float32={"a"})(model)
    types = dtypes(model)
    # Transpose hands the values on; the product with a small number is small again.
    assert types["a"] == types["t"] == types["u"] == FLOAT
    assert types["u/fp16"] == FP16
    (found,) = run(model, feeds)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_bf16_needs_no_such_care() -> None:
    model = graph(STREAM, constants=STREAM_CONSTANTS, opset=22)
    LowerPrecision("bf16", float32={"a"})(model)
    assert dtypes(model)["a"] == BF16


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_emulation_rounds_and_overflows_as_the_type_does(dtype: str) -> None:
    model = graph("a = Mul (x, x) y = Sqrt (a)", opset=22)
    LowerPrecision(dtype)(model)  # type: ignore[arg-type]
    assert is_low_precision(model)
    EmulateLowPrecision()(model)
    check(model)
    x = np.array([[1.2345, 300, 1e-2, 7], [3.3, 2.2, 1.1, 255]], np.float32)
    (found,) = open_session(model, optimized=False).run(None, {"x": x})
    low = (FP16 if dtype == "fp16" else BF16).numpy()
    with np.errstate(over="ignore"):
        rounded = x.astype(low).astype(np.float32)
        square = np.square(rounded).astype(low).astype(np.float32)
        expected = np.sqrt(square).astype(low).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(found).any() == (dtype == "fp16")


@pytest.mark.parametrize(
    ("scales", "held"),
    [
        ([0.1, 2.0**-17], True),
        ([0.1, 1e-6], False),
        ([0.1, MIN_SCALE], True),
        ([MIN_SCALE], True),
        ([7e4], False),
    ],
)
def test_scales_that_fp16_holds(scales: list[float], held: bool) -> None:
    array = np.array(scales, np.float32)
    assert holds_scale(array, ScaleType.FLOAT16) == held
    assert holds_scale(array, ScaleType.FLOAT32)
    found = representable_scale(array, ScaleType.FLOAT16)
    if held:
        np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
        assert found.min() > 0
    else:
        np.testing.assert_array_equal(found, array)


def test_weights_that_are_subnormal_in_fp16_keep_their_layer_float32() -> None:
    tiny = "float[4,3] w = {1e-6, 2e-6, 0, 0, 1e-6, 0, 0, 0, 3e-6, 0, 0, 0}"
    model = graph("h = MatMul (x, w) y = Add (h, h)", constants=tiny)
    LowerPrecision("fp16")(model)
    assert dtypes(model)["w"] == dtypes(model)["h"] == FLOAT
