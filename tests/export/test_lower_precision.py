"""The 16-bit rewrite: what is lowered, and what must stay float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.raise_opset import RaiseOpset
from qvd_trt.export.passes.precision import lower_precision
from qvd_trt.export.passes.precision.float32_nodes import out_of_range
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision, lowered
from tests.export.lower_graphs import (
    BF16,
    FLOAT,
    FP16,
    WEIGHT,
    X,
    Y,
    check,
    dtypes,
    expose,
    graph,
    ops,
    random_feeds,
    run,
    sqnr,
)


def test_weights_and_computation_are_lowered_and_the_border_stays() -> None:
    model = graph(
        "h = MatMul (x, w) y = Add (h, b)", constants=f"{WEIGHT}, float[3] b = {{1, 2, 3}}"
    )
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    assert LowerPrecision("fp16")(model).modified
    types = dtypes(model)
    assert {name: types[name] for name in ("x", "w", "b", "h", "y")} == {
        "x": FLOAT,
        "w": FP16,
        "b": FP16,
        "h": FP16,
        "y": FLOAT,
    }
    assert ops(model) == ["Cast", "MatMul", "Add", "Cast"]
    (actual,) = run(model, feeds)
    assert actual.dtype == np.float32
    assert 55 < sqnr(actual, expected) < 90


def test_without_keep_io_the_border_is_lowered_too() -> None:
    model = graph("y = MatMul (x, w)", constants=WEIGHT)
    LowerPrecision("fp16", keep_io=False)(model)
    assert ops(model) == ["MatMul"]
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == FP16
    assert model.graph.outputs[0].name == "y"
    check(model)


def test_an_input_of_the_angle_path_alone_keeps_its_type() -> None:
    model = graph(
        "a = Mul (t, f) s = Sin (a) y = Add (s, x)",
        inputs=f"float[2,1] t, {X}",
        constants="float f = {3.0}",
    )
    LowerPrecision("fp16", keep_io=False)(model)
    assert [value.dtype for value in model.graph.inputs] == [FLOAT, FP16]
    assert model.graph.outputs[0].dtype == FP16
    check(model)


def test_a_graph_without_float32_is_left_alone() -> None:
    model = graph("y = Add (x, x)", inputs="float16[2] x", output="float16[2] y")
    assert not LowerPrecision("fp16")(model).modified


ANGLES = "float[4] f = {1.0, 0.1, 0.013, 0.0011}"
ANGLE_PATH = (
    "u = Unsqueeze (t, one) c = Cast <to=1> (u) a = Mul (c, f) s = Sin (a) k = Cos (a) "
    "e = Concat <axis=-1> (s, k) y = MatMul (e, m)"
)
ANGLE_CONSTANTS = f"{ANGLES}, int64[1] one = {{1}}, float[8,1] m = {{1, 2, 3, 4, 5, 6, 7, 8}}"


def angle_model() -> ir.Model:
    return graph(ANGLE_PATH, inputs="int64[3] t", constants=ANGLE_CONSTANTS)


def test_the_angle_path_is_bit_exact() -> None:
    model = angle_model()
    feeds = {"t": np.array([0, 501, 999])}
    expose(model, ["s", "k"])
    expected = run(model.clone(), feeds)
    for value in model.graph.outputs[1:]:
        model.graph.outputs.remove(value)
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["f"] == types["a"] == types["s"] == types["k"] == FLOAT
    assert types["e"] == types["m"] == FP16
    expose(model, ["s", "k"])
    actual = run(model, feeds)
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_array_equal(actual[2], expected[2])
    assert sqnr(actual[0], expected[0]) > 55


def test_a_lowered_angle_would_be_wrong_by_percents(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = angle_model(), {"t": np.array([501, 750, 999])}
    monkeypatch.setattr(lower_precision, "float32_nodes", lambda *_, **__: {})
    LowerPrecision("fp16")(model)
    expose(model, ["s"])
    exact = np.sin(feeds["t"][:, None] * np.array([1.0, 0.1, 0.013, 0.0011]))
    assert np.abs(run(model, feeds)[1] - exact).max() > 0.01


def test_the_angle_path_ends_at_the_first_layer() -> None:
    model = graph("h = MatMul (x, w) p = Mul (h, h) y = Sin (p)", constants=WEIGHT)
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["h"] == FP16
    assert types["p"] == FLOAT


def test_a_constant_read_in_both_types_gets_a_copy() -> None:
    model = graph(
        "a = Mul (x, c) s = Sin (a) p = Mul (s, c) y = Identity (p)",
        constants="float[4] c = {0.1, 0.2, 0.3, 0.4}",
    )
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["c"] == FLOAT
    assert types["c/fp16"] == FP16
    assert sqnr(run(model, feeds)[0], expected) > 55


@pytest.mark.parametrize(
    "constant",
    [
        "k = Constant <value_float=0.25> ()",
        "k = Constant <value_floats=[0.5, 0.25, 4.0, 1.0]> ()",
        "k = Constant <value = float[1] {0.25}> ()",
    ],
)
def test_constant_nodes(constant: str) -> None:
    model = graph(f"{constant} s = Sin (k) z = Mul (x, k) y = Add (z, s)")
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16")(model)
    assert dtypes(model)["k"] == FLOAT
    assert sqnr(run(model, feeds)[0], expected) > 55
    alone = graph(f"{constant} y = Mul (x, k)")
    LowerPrecision("fp16")(alone)
    assert dtypes(alone)["k"] == FP16
    check(alone)


def test_casts_and_generators_to_float_are_retargeted() -> None:
    model = graph(
        "c = Cast <to=1> (i) n = Shape (i) z = ConstantOfShape (n) "
        "o = ConstantOfShape <value = float[1] {1.5}> (n) r = RandomNormalLike <dtype=1> (c) "
        "q = Add (c, z) p = Add (q, o) y = Add (p, r)",
        inputs="int64[2] i",
        output="float[2] y",
    )
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert {types[name] for name in "czorqp"} == {FP16}
    (result,) = run(model, {"i": np.array([3, 4])})
    assert np.abs(result - [4.5, 5.5]).max() < 6


def test_operators_without_the_type_stay() -> None:
    model = graph(
        "l = Range (lo, hi, step) r = Mul (l, x) y = Relu (r)",
        inputs="float[4] x",
        output="float[4] y",
        constants="float lo = {0}, float hi = {4}, float step = {1}",
    )
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["l"] == types["lo"] == FLOAT
    assert types["r"] == FP16
    (result,) = run(model, {"x": np.ones(4, np.float32)})
    np.testing.assert_array_equal(result, [0, 1, 2, 3])


def test_scales_of_resize_stay() -> None:
    model = graph(
        'y = Resize <mode="nearest"> (x, , s)',
        inputs="float[1,1,2,2] x",
        output="float[a,b,c,d] y",
        constants="float[4] s = {1, 1, 2, 2}",
    )
    LowerPrecision("fp16")(model)
    assert dtypes(model)["s"] == FLOAT
    assert run(model, random_feeds(model))[0].shape == (1, 1, 4, 4)


def test_positions_from_extents_stay() -> None:
    model = graph(
        "n = Shape <start=1, end=2> (x) k = Squeeze (n) i = Range (zero, k, one) "
        "p = Cast <to=1> (i) q = Mul (p, third) y = Add (x, q)",
        constants="int64 zero = {0}, int64 one = {1}, float third = {0.333}",
    )
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["p"] == types["q"] == types["third"] == FLOAT
    check(model)


def test_a_constant_beyond_fp16_keeps_its_reader() -> None:
    model = graph(
        "m = Where (c, low, zero) s = Add (x, m) y = Softmax (s)",
        inputs=f"{X}, bool[2,4] c",
        constants="float low = {-1e9}, float zero = {0}",
    )
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array([[True, False, True, False]] * 2)}
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert types["low"] == types["m"] == FLOAT
    assert types["s"] == FP16
    np.testing.assert_array_equal(run(model, feeds)[0], [[0, 0.5, 0, 0.5]] * 2)


@pytest.mark.parametrize(
    ("values", "low", "expected"),
    [
        ([65504.0, 1.0], FP16, False),
        ([65536.0, 1.0], FP16, True),
        ([-7e4], FP16, True),
        ([np.inf, 1.0], FP16, False),
        ([-np.inf, -7e4], FP16, True),
        ([1e-8], FP16, True),
        ([1e-8, 1.0], FP16, False),
        ([0.0], FP16, False),
        ([], FP16, False),
        ([1e38, 1e-30], BF16, False),
        ([3.4e38], BF16, True),
    ],
)
def test_out_of_range(values: list[float], low: ir.DataType, expected: bool) -> None:
    assert out_of_range(ir.tensor(np.array(values, np.float32)), low) is expected


def test_rms_norm_of_large_activations_does_not_overflow() -> None:
    body = (
        "p = Pow (x, two) m = ReduceMean <keepdims=1> (p, last) e = Add (m, eps) s = Sqrt (e) "
        "r = Reciprocal (s) z = Mul (x, r) y = Mul (z, g)"
    )
    constants = (
        "float two = {2}, int64[1] last = {-1}, float eps = {1e-6}, float[4] g = {1, 2, 3, 4}"
    )
    model = graph(body, constants=constants)
    feeds = {"x": np.array([[3000.0, -2000, 10, 1]] * 2, np.float32)}
    (expected,) = run(model, feeds)
    LowerPrecision("fp16")(model)
    types = dtypes(model)
    assert {types[name] for name in "pmesr"} == {FLOAT}
    assert types["z"] == types["g"] == FP16
    assert sqnr(run(model, feeds)[0], expected) > 55


def test_statistics_of_layer_norm_stay_float() -> None:
    model = graph(
        "y, m, v = LayerNormalization (x, g)",
        output=f"{Y}, float[a,c] m",
        constants="float[4] g = {1, 2, 3, 4}",
    )
    LowerPrecision("fp16")(model)
    assert dtypes(model)["m"] == FLOAT
    assert ops(model).count("Cast") == 2
    check(model)


FUNCTION = (
    '<domain: "qvd", opset_import: ["" : 20]> HTDQ <levels> (x) => (y) '
    "{ l = Constant <value_floats: floats = @levels> () h = CastLike (l, x) "
    "z = ReduceMean <keepdims=0> (h) y = Add (x, z) }"
)


def test_model_local_functions_take_the_low_type() -> None:
    model = graph("t = qvd.HTDQ <levels=[0.0, 1.0]> (x) y = Relu (t)", functions=FUNCTION)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerPrecision("fp16")(model)
    assert dtypes(model)["t"] == FP16
    assert sqnr(run(model, feeds)[0], expected) > 55


def test_plugin_nodes_take_the_low_type_and_foreign_ones_do_not() -> None:
    model = graph("t = qvd.HTDQ <levels=[0.0, 1.0]> (x) y = Relu (t)")
    LowerPrecision("fp16")(model)
    assert dtypes(model)["t"] == FP16
    foreign = graph("t = qvd.Other (x) y = Relu (t)")
    foreign.graph[0].domain = "com.other"
    LowerPrecision("fp16")(foreign)
    assert dtypes(foreign)["t"] == FLOAT


def test_subgraphs_are_refused_by_name() -> None:
    model = graph(
        "y = If <then_branch = a () => (float[2,4] p) { p = Identity (x) }, "
        "else_branch = b () => (float[2,4] q) { q = Neg (x) }> (c)",
        inputs=f"{X}, bool c",
    )
    with pytest.raises(UserError, match=r"'n0' \(If\): subgraphs"):
        LowerPrecision("fp16")(model)


def test_an_unknown_type_is_an_error_that_names_the_node() -> None:
    model = graph("y = Relu (x)")
    model.graph[0].domain, model.graph[0].op_type = "com.other", "Source"
    model.graph[0].resize_inputs(0)
    model.graph[0].outputs[0].type = None
    with pytest.raises(UserError, match=r"'n0' \(Source\): the type of its output 'y'"):
        LowerPrecision("fp16")(model)


def test_bf16_needs_a_new_opset() -> None:
    model = graph("y = MatMul (x, w)", constants=WEIGHT)
    with pytest.raises(UserError, match="bf16 needs opset 22"):
        LowerPrecision("bf16")(model)
    RaiseOpset(22)(model)
    LowerPrecision("bf16")(model)
    assert dtypes(model)["w"] == BF16
    check(model)


@pytest.mark.parametrize("wrong", [{"dtype": "fp8"}, {"dtype": "fp16", "qdq_scales": "half"}])
def test_wrong_options_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not"):
        LowerPrecision(**wrong)  # type: ignore[arg-type]


def test_external_weights_stay_on_disk(tmp_path: Path) -> None:
    model = graph("y = MatMul (x, w)", constants=WEIGHT)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    model = ir.load(tmp_path / "m.onnx")
    LowerPrecision("fp16")(model)
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.LazyTensor)
    assert weight.nbytes == 24
    ir.save(model, tmp_path / "low.onnx", external_data="low.data", size_threshold_bytes=0)
    again = ir.load(tmp_path / "low.onnx").graph.initializers["w"].const_value
    assert again is not None
    np.testing.assert_array_equal(again.numpy(), weight.numpy())
    assert (tmp_path / "low.data").stat().st_size == 24


def test_lowered_rounds_to_nearest() -> None:
    values = np.array([1.0, 1.0004, 65519.0, -1e-9], np.float32)
    result = lowered(ir.tensor(values), FP16, "v").numpy()
    np.testing.assert_array_equal(result, values.astype(np.float16))
