"""Opsets 23 to 25 brought to 23 and 17: results of ONNX's reference before, ORT's after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.normalize import Normalize
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from tests.export import lower_graphs
from tests.export.lower_graphs import random_feeds, run, run_in_onnx_runtime

X, Y = "float[2,4,6] x", "float[a,b,c] y"
HEADS, CACHES = "float[2,3,5,8] x", "float[2,5,4] c, float[2,5,4] s"
ROTATED = "float[a,b,c,d] y"


def graph(
    body: str, opset: int = 25, inputs: str = X, output: str = Y, constants: str = ""
) -> ir.Model:
    return lower_graphs.graph(body, inputs, output, constants, opset)


TYPES_ONLY = {
    "shape": "s = Shape <start=1> (x) r = Shape (x) z = Size (x) y = Reshape (x, r)",
    "layout": "a = Transpose <perm=[2, 0, 1]> (x) y = Transpose <perm=[1, 2, 0]> (a)",
    "squeeze": "a = Unsqueeze (x, axes) y = Squeeze (a, axes)",
    "flatten": "a = Flatten <axis=1> (x) y = Unsqueeze (a, axes)",
    "identity": "y = Identity (x)",
    "pad": "y = Pad (x, pads)",
    "cast": 'i = Cast <to=7, round_mode="up", saturate=1> (x) y = CastLike (i, x)',
    "topk": "y, i = TopK <axis=1> (x, two)",
    "constant": "o = Constant <value_float=1.5> () y = Mul (x, o)",
    "filled": "r = Shape (x) f = ConstantOfShape (r) y = Add (x, f)",
    "quantized": "q = QuantizeLinear (x, step, zero) y = DequantizeLinear (q, step, zero)",
}
CONSTANTS = (
    "int64[1] axes = {0}, int64[1] two = {2}, int64[6] pads = {0, 0, 1, 0, 0, 2}, "
    "float step = {0.1}, int8 zero = {0}"
)
WRITTEN_OUT = {
    "swish": graph("y = Swish (x)", 24),
    "swish-alpha": graph("y = Swish <alpha=1.5> (x)"),
    "rms-norm": graph("y = RMSNormalization (x, g)", constants="float[6] g = {1, 2, -3, 4, 5, 6}"),
    "rotary": graph("y = RotaryEmbedding (x, c, s)", 23, f"{HEADS}, {CACHES}", ROTATED),
    "rotary-pairs": graph(
        "y = RotaryEmbedding <interleaved=1> (x, c, s)", 24, f"{HEADS}, {CACHES}", ROTATED
    ),
    "rotary-part": graph(
        "y = RotaryEmbedding <rotary_embedding_dim=4> (x, c, s)",
        inputs=f"{HEADS}, float[2,5,2] c, float[2,5,2] s",
        output=ROTATED,
    ),
    "rotary-part-pairs": graph(
        "y = RotaryEmbedding <rotary_embedding_dim=4, interleaved=1> (x, c, s)",
        inputs=f"{HEADS}, float[2,5,2] c, float[2,5,2] s",
        output=ROTATED,
    ),
    "rotary-tokens": graph(
        "y = RotaryEmbedding <num_heads=3> (x, c, s)", 23, f"float[2,5,24] x, {CACHES}"
    ),
    "rotary-positions": graph(
        "y = RotaryEmbedding (x, c, s, p)",
        inputs=f"{HEADS}, float[9,4] c, float[9,4] s",
        output=ROTATED,
        constants="int64[2,5] p = {0, 1, 2, 3, 4, 8, 7, 6, 5, 4}",
    ),
    "rotary-dynamic": graph(
        "y = RotaryEmbedding (x, c, s)",
        inputs="float[batch,3,tokens,8] x, float[batch,tokens,4] c, float[batch,tokens,4] s",
        output=ROTATED,
    ),
}


@pytest.mark.parametrize("target", [17, 23])
@pytest.mark.parametrize("source", [24, 25])
@pytest.mark.parametrize("name", TYPES_ONLY)
def test_a_longer_list_of_types_changes_nothing(name: str, source: int, target: int) -> None:
    model = graph(TYPES_ONLY[name], source, constants=CONSTANTS)
    operators = lower_graphs.ops(model)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    LowerOpset(target)(model)
    assert model.opset_imports[""] == target
    assert lower_graphs.ops(model) == operators
    np.testing.assert_array_equal(run_in_onnx_runtime(model, feeds)[0], expected)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_new_operators_mean_the_same(name: str) -> None:
    model = WRITTEN_OUT[name].clone()
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    for target in (23, 17):
        LowerOpset(target)(model)
        (actual,) = run_in_onnx_runtime(model, feeds)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert not {"Swish", "RMSNormalization", "RotaryEmbedding"} & set(lower_graphs.ops(model))


@pytest.mark.parametrize("name", ["swish", "rotary", "rms-norm"])
def test_opening_a_file_lowers_no_further_than_23(name: str) -> None:
    model = WRITTEN_OUT[name].clone()
    Normalize()(model)
    assert model.opset_imports[""] == 23
    assert ("Swish" in lower_graphs.ops(model)) is False
    assert (name == "swish") == ("Mul" in lower_graphs.ops(model))


def test_nodes_without_names() -> None:
    model = graph("a = Swish <alpha=1.5> (x) b = Swish <alpha=0.5> (a) y = Swish (b)", 24)
    feeds = random_feeds(model)
    (expected,) = run(model, feeds)
    for node in model.graph:
        node.name = None
    Normalize()(model)
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(run_in_onnx_runtime(model, feeds)[0], expected, rtol=1e-5)


def test_nameless_nodes_are_told_by_what_they_write() -> None:
    model = graph("t = Abs (x) y = TensorScatter (t, x)")
    model.graph[1].name = None
    with pytest.raises(UserError, match=r"node that writes 'y' \(TensorScatter\)"):
        LowerOpset(23)(model)


def test_bodies_of_control_flow() -> None:
    model = graph(
        "t = Cast <to=9> (c) y = If (t) <then_branch = on () => (a) { a = Swish <alpha=2.0> (x) }, "
        "else_branch = off () => (b) { b = Identity (x) }>",
        inputs=f"{X}, float c",
    )
    feeds = [{**random_feeds(model), "c": np.array(on, np.float32)} for on in (0, 1)]
    expected = [run(model, feed)[0] for feed in feeds]
    Normalize()(model)
    for feed, wanted in zip(feeds, expected, strict=True):
        np.testing.assert_allclose(run_in_onnx_runtime(model, feed)[0], wanted, rtol=1e-5)


def test_types_are_known_after_opening() -> None:
    model = WRITTEN_OUT["swish-alpha"].clone()
    for node in model.graph:
        node.outputs[0].shape = None
    Normalize()(model)
    assert all(value.dtype and value.shape for node in model.graph for value in node.outputs)


REFUSED = {
    "n0.*Cast.*'round_mode' is not part of opset 23": graph(
        'e = Cast <to=24, round_mode="down"> (x) y = Cast <to=1> (e)', 24
    ),
    "n0.*TensorScatter.*opset 23 does not have": graph("y = TensorScatter (x, x)"),
    "n0.*Identity.*UINT2.*does not take": graph(
        "y = Identity (x)", inputs="uint2[2] x", output="uint2[2] y"
    ),
    "n0.*RotaryEmbedding.*num_heads is not stated": graph(
        "y = RotaryEmbedding (x, c, s)", 23, f"float[2,5,24] x, {CACHES}"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_older_equal_is_refused_by_name(message: str) -> None:
    with pytest.raises(UserError, match=message):
        LowerOpset(17 if "Rotary" in message else 23)(REFUSED[message].clone())
