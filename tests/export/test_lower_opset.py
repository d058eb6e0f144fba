"""Both opset passes: equal results on one small graph per rewrite and on exported denoisers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from qvd_trt.export.passes.opset.raise_opset import RaiseOpset
from tests.export import lower_graphs
from tests.export.lower_graphs import random_feeds, run_in_onnx_runtime
from tests.models.cache import exported

ARCHITECTURES = ["animatediff", "latte", "svd", "wan"]

X = "float[2,6,4,5] x"
Y = "float[a,b,c,d] y"


def graph(body: str, opset: int, inputs: str = X, output: str = Y, constants: str = "") -> ir.Model:
    return lower_graphs.graph(body, inputs, output, constants, opset)


def run(model: ir.Model, feeds: dict[str, AnyArray]) -> AnyArray:
    return run_in_onnx_runtime(model, feeds)[0]


def assert_close(actual: AnyArray, expected: AnyArray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    assert error <= tolerance * np.abs(expected).max()


REWRITES = {
    "reduce": graph(
        "y = ReduceMean <keepdims=1> (x, axes)", 20, constants="int64[2] axes = {1, -1}"
    ),
    "reduce-constant-node": graph(
        "axes = Constant <value_ints=[2]> () y = ReduceMax <keepdims=1> (x, axes)", 20
    ),
    "reduce-all": graph("y = ReduceMin <keepdims=1> (x)", 20),
    "reduce-none": graph("y = ReduceMean <noop_with_empty_axes=1> (x)", 20),
    "split": graph("a, y = Split <axis=1, num_outputs=2> (x)", 20),
    "split-unequal": graph("a, b, y = Split <axis=3, num_outputs=3> (x)", 20),
    "pad-some-axes": graph(
        "y = Pad (x, pads, , axes)",
        20,
        constants="int64[4] pads = {1, 2, 3, 0}, int64[2] axes = {-1, 1}",
    ),
    "pad": graph("y = Pad (x, pads)", 20, constants="int64[8] pads = {0, 0, 1, 2, 0, 0, 0, 3}"),
    "resize": graph(
        "y = Resize <mode='nearest', antialias=0, keep_aspect_ratio_policy='stretch', "
        "axes=[0, 1, 2, 3]> (x, , scales)".replace("'", '"'),
        20,
        constants="float[4] scales = {1.0, 1.0, 2.0, 2.0}",
    ),
    "gelu": graph("y = Gelu (x)", 20),
    "gelu-tanh": graph('y = Gelu <approximate="tanh"> (x)', 20),
    "mish": graph("y = Mish (x)", 20),
    "group-norm": graph(
        "y = GroupNormalization <num_groups=3, epsilon=0.01> (x, s, b)",
        21,
        constants="float[6] s = {1, 2, 3, -4, 5, 6}, float[6] b = {0, 1, 0, -1, 2, 3}",
    ),
    "rms-norm": graph(
        "y = RMSNormalization <axis=2, epsilon=0.01> (x, s)",
        23,
        constants="float[5] s = {1, 2, 3, -4, 5}",
    ),
    "grid-sample": graph(
        'y = GridSample <mode="linear"> (x, grid)', 20, inputs=f"{X}, float[2,3,3,2] grid"
    ),
    "average-pool": graph("y = AveragePool <kernel_shape=[2, 2], dilations=[1, 1]> (x)", 20),
    "quantize": graph(
        "q = QuantizeLinear <output_dtype=3, axis=1> (x, s) y = DequantizeLinear <axis=1> (q, s)",
        21,
        constants="float[6] s = {0.1, 0.2, 0.03, 0.1, 0.2, 0.03}",
    ),
    "cast": graph("i = Cast <to=7, saturate=1> (x) y = Cast <to=1> (i)", 20),
    "types-only": graph("s = Shape (x) r = Reshape (x, s) y = Identity (r)", 23),
}


@pytest.mark.parametrize("name", sorted(REWRITES))
def test_rewritten_nodes_mean_the_same(name: str) -> None:
    model = REWRITES[name].clone()
    feeds = random_feeds(model)
    expected = run(model, feeds)
    assert LowerOpset(17)(model).modified
    assert model.opset_imports[""] == 17
    assert model.ir_version == 8
    assert_close(run(model, feeds), expected, 1e-6)
    assert not LowerOpset(17)(model).modified


@pytest.mark.parametrize("name", sorted(REWRITES))
def test_node_and_tensor_names_stay(name: str) -> None:
    model = REWRITES[name].clone()
    nodes = {node.name for node in model.graph}
    tensors = {value.name for node in model.graph for value in node.outputs}
    LowerOpset(17)(model)
    assert nodes <= {node.name for node in model.graph}
    assert tensors <= {value.name for node in model.graph for value in node.outputs}


def test_a_half_precision_norm_is_computed_in_float32() -> None:
    model = graph(
        "y = GroupNormalization <num_groups=3> (x, s, b)",
        21,
        inputs="float16[2,6,4,5] x, float16[6] s, float16[6] b",
        output="float16[a,b,c,d] y",
    )
    feeds = random_feeds(model)
    feeds["x"] = feeds["x"] * np.float16(300)
    expected = run(model, feeds)
    LowerOpset(17)(model)
    assert_close(run(model, feeds), expected, 2e-3)


def test_group_norm_of_opset_18_scales_groups() -> None:
    model = graph(
        "y = GroupNormalization <num_groups=2> (x, s, b)",
        18,
        constants="float[2] s = {2, -3}, float[2] b = {0.5, 1}",
    )
    feeds = random_feeds(model)
    LowerOpset(17)(model)
    rows = feeds["x"].reshape(2, 2, -1).astype(np.float64)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    expected = normal * np.array([[2.0], [-3.0]]) + np.array([[0.5], [1.0]])
    assert_close(run(model, feeds), expected.reshape(feeds["x"].shape).astype(np.float32), 1e-5)


def test_group_norm_stays_where_the_target_knows_it() -> None:
    model = REWRITES["group-norm"].clone()
    LowerOpset(21)(RaiseOpset(23)(model))
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]
    assert model.opset_imports[""] == 21


def test_a_wrong_rewrite_would_be_seen() -> None:
    model = REWRITES["gelu"].clone()
    feeds = random_feeds(model)
    expected = run(model, feeds)
    next(iter(model.graph)).attributes["approximate"] = ir.AttrString("approximate", "tanh")
    LowerOpset(17)(model)
    with pytest.raises(AssertionError):
        assert_close(run(model, feeds), expected, 1e-6)


REFUSED = {
    "n1.*the shape of 'x0' is neither stated nor inferred; state it in the model's": graph(
        "x0 = Reshape (x, s) y, z = Split <num_outputs = 2> (x0)",
        20,
        inputs="float[4] x, int64[k] s",
        output="float[a] y",
    ),
    "n0.*BitwiseNot.*opset 17 does not have": graph(
        "y = BitwiseNot (x)", 20, inputs="int32[2] x", output="int32[2] y"
    ),
    "n0.*Resize.*antialias=1": graph(
        'y = Resize <mode="linear", antialias=1> (x, , s)',
        20,
        constants="float[4] s = {1.0, 1.0, 0.5, 0.5}",
    ),
    "n0.*Resize.*half_pixel_symmetric": graph(
        'y = Resize <coordinate_transformation_mode="half_pixel_symmetric"> (x, , s)',
        20,
        constants="float[4] s = {1.0, 1.0, 2.0, 2.0}",
    ),
    "n0.*Pad.*wrap": graph(
        'y = Pad <mode="wrap"> (x, p)', 20, constants="int64[8] p = {0, 0, 1, 0, 0, 0, 0, 0}"
    ),
    "n0.*ReduceMean.*axes.*not a constant": graph(
        "y = ReduceMean (x, axes)", 20, inputs=f"{X}, int64[1] axes"
    ),
    "n0.*ReduceL1.*noop_with_empty_axes": graph("y = ReduceL1 <noop_with_empty_axes=1> (x)", 20),
    "n0.*Split.*extent of axis 1": graph(
        "a, y = Split <axis=1, num_outputs=2> (x)", 20, inputs="float[2,c,4,5] x"
    ),
    "n1.*DequantizeLinear.*block_size=2": graph(
        "z = Identity (s) y = DequantizeLinear <axis=1, block_size=2> (q, z)",
        21,
        inputs="int8[2,4] q, float[2,2] s",
        output="float[a,b] y",
    ),
    "n0.*QuantizeLinear.*FLOAT16": graph(
        "y = QuantizeLinear (x, s, z)",
        20,
        inputs="float16[2] x, float16 s, int8 z",
        output="int8[2] y",
    ),
    "n0.*Equal.*STRING": graph("y = Equal (x, x)", 20, inputs="string[2] x", output="bool[2] y"),
    "n0.*DFT.*something else": graph("y = DFT <inverse=0> (x)", 20, inputs="float[1,8,4,1] x"),
    "n0.*ScatterND.*reduction=max": graph(
        'y = ScatterND <reduction="max"> (x, i, u)',
        18,
        inputs="float[4] x, int64[1,1] i, float[1] u",
        output="float[4] y",
    ),
    "n0.*GridSample.*volumes": graph(
        "y = GridSample (x, g)",
        20,
        inputs="float[1,1,2,2,2] x, float[1,2,2,2,3] g",
        output="float[a,b,c,d,e] y",
    ),
}


@pytest.mark.parametrize("message", sorted(REFUSED))
def test_what_has_no_older_equal_is_refused_by_name(message: str) -> None:
    with pytest.raises(UserError, match=message):
        LowerOpset(17)(REFUSED[message].clone())


def test_functions_must_be_inlined_first() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "f" : 1]> g (float[2] x) => (float[2] y) '
        '{ y = f.Twice (x) } <domain: "f", opset_import: ["" : 20]> Twice (a) => (b) '
        "{ b = Add (a, a) }"
    )
    with pytest.raises(PreconditionError, match=r"functions \(Twice\)"):
        LowerOpset(17)(model)
    for opset in (17, 20):
        older = model.clone()
        older.opset_imports[""] = opset
        for function in older.functions.values():
            function.opset_imports[""] = opset
        RaiseOpset(23)(older)
        assert [node.op_type for node in older.graph] == ["Add"]
    RaiseOpset(23)(model)
    assert not model.functions
    assert [node.op_type for node in model.graph] == ["Add"]


def test_nodes_of_other_domains_are_left_alone() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "qvd" : 1]> g (float[2] x) => (float[2] y) '
        "{ t = qvd.HTDQ <levels=[0.0, 1.0], thresholds=[0.5]> (x) y = Gelu (t) }"
    )
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        node.outputs[0].dtype = ir.DataType.FLOAT
    LowerOpset(17)(model)
    assert model.graph[0].op_type == "HTDQ"
    assert set(model.graph[0].attributes) == {"levels", "thresholds"}


@pytest.mark.parametrize("target", [16, 25])
def test_unknown_targets_are_refused(target: int) -> None:
    with pytest.raises(ValueError, match="target opset"):
        LowerOpset(target)


def test_an_opset_of_the_future_is_refused() -> None:
    model = REWRITES["gelu"].clone()
    model.opset_imports[""] = 99
    with pytest.raises(PreconditionError, match="up to 25"):
        LowerOpset(17)(model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_denoisers_agree_after_lowering_and_raising(
    name: str, pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    model = ir.load(exported(name, pytestconfig.cache.mkdir("models")))
    feeds = random_feeds(model)
    expected = run(model, feeds)
    LowerOpset(17)(model)
    assert_close(run(model, feeds), expected, 1e-6)
    scopes = [dict(node.metadata_props) for node in model.graph]
    RaiseOpset(22)(model)
    assert [dict(node.metadata_props) for node in model.graph] == scopes
    assert_close(run(model, feeds), expected, 1e-6)


RAISED = {
    "reduce": graph("y = ReduceMean <axes=[1, -1]> (x)", 17),
    "reduce-all": graph("y = ReduceMax (x)", 17),
    "split": graph("a, y = Split <axis=1> (x)", 17),
    "split-sizes": graph("a, y = Split <axis=1> (x, s)", 17, constants="int64[2] s = {2, 4}"),
    "grid-sample": graph(
        'y = GridSample <mode="bicubic"> (x, g)', 17, inputs=f"{X}, float[2,3,3,2] g"
    ),
    "pad": graph("y = Pad (x, p)", 17, constants="int64[8] p = {0, 0, 1, 2, 0, 0, 0, 3}"),
    "reduce-13": graph("y = ReduceMean <axes=[1, -1]> (x)", 13),
    "split-14": graph("a, y = Split <axis=1> (x)", 14),
    "arithmetic": graph("a = Add (x, x) b = Mul (a, x) c = Div (b, a) y = Relu (c)", 13),
    "layout": graph("s = Shape (x) r = Reshape (x, s) y = Identity (r)", 13),
    "compare": graph("c = LessOrEqual (x, h) y = Where (c, x, h)", 15, f"{X}, float[2,6,4,5] h"),
    "slope": graph("y = PRelu (x, h)", 13, f"{X}, float[5] h"),
    "batch-norm": graph(
        "y = BatchNormalization (x, h, h, h, v)",
        13,
        f"{X}, float[6] h",
        constants="float[6] v = {1, 2, 3, 4, 5, 6}",
    ),
}


@pytest.mark.parametrize("name", sorted(RAISED))
@pytest.mark.parametrize("target", [17, 18, 20, 22])
def test_raised_nodes_mean_the_same(name: str, target: int) -> None:
    model = RAISED[name].clone()
    feeds = random_feeds(model)
    expected = run(model, feeds)
    raised = model.opset_imports[""] < target
    assert RaiseOpset(target)(model).modified == raised
    assert model.opset_imports[""] == target
    np.testing.assert_array_equal(run(model, feeds), expected)
    assert not RaiseOpset(17)(model).modified


def test_regions_stay_where_they_were() -> None:
    model = graph(
        "y = RoiAlign <output_height=2, output_width=2> (x, r, i)",
        13,
        constants="float[1,4] r = {0, 0, 3, 2}, int64[1] i = {1}",
    )
    feeds = random_feeds(model)
    expected = run(model, feeds)
    raised = model.clone()
    RaiseOpset(20)(raised)
    np.testing.assert_array_equal(run(raised, feeds), expected)
    model.opset_imports[""] = 20
    assert np.abs(run(model, feeds) - expected).max() > 0.1


GROUP_NORM = "float[2] s = {2, -3}, float[2] b = {0.5, 1}"
"""Scale and bias of two groups, as opsets 18 to 20 take them."""


@pytest.mark.parametrize("target", [20, 21, 23])
def test_group_norm_gets_scales_per_channel(target: int) -> None:
    node = "y = GroupNormalization <num_groups=2, epsilon=0.5> (x, s, b)"
    model = graph(node, 18, constants=GROUP_NORM)
    feeds = random_feeds(model)
    rows = feeds["x"].reshape(feeds["x"].shape[0], 2, -1).astype(np.float64)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.5)
    expected = normal * np.array([2, -3])[:, None] + np.array([0.5, 1])[:, None]
    RaiseOpset(target)(model)
    assert [node.name for node in model.graph if node.op_type == "GroupNormalization"] == ["n0"]
    # ONNX Runtime computes GroupNormalization from opset 21 on.
    if target >= 21:
        np.testing.assert_allclose(
            run(model, feeds), expected.reshape(feeds["x"].shape), rtol=1e-5, atol=1e-5
        )
    else:
        assert [node.op_type for node in model.graph] == ["GroupNormalization"]


def test_raising_refuses_what_changed_its_meaning() -> None:
    model = graph("y = GroupNormalization <num_groups=2> (x, s, b)", 18, constants=GROUP_NORM)
    extents = model.graph.inputs[0].shape
    assert extents is not None
    model.graph.inputs[0].shape = ir.Shape([extents[0], "channels", *list(extents)[2:]])
    with pytest.raises(UserError, match=r"n0.*GroupNormalization"):
        RaiseOpset(22)(model)
    with pytest.raises(ValueError, match="target opset"):
        RaiseOpset(13)
    model.opset_imports[""] = 11
    with pytest.raises(PreconditionError, match="from 13"):
        RaiseOpset(22)(model)
