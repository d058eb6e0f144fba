"""Attention written out: equal to ONNX's reference and to ONNX Runtime's own kernel."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from tests.export.attention_graphs import FORMS, attention

EXTENTS = [{"b": 1, "q": 1, "k": 1}, {"b": 2, "q": 5, "k": 7}, {"b": 3, "q": 9, "k": 4}]


def feeds(model: onnx.ModelProto, extents: dict[str, int], seed: int = 0) -> dict[str, AnyArray]:
    rng = np.random.default_rng(seed)
    result: dict[str, AnyArray] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or extents.get(d.dim_param, 3) for d in kind.shape.dim]
        noise = rng.normal(size=shape)
        is_mask = kind.elem_type == TensorProto.BOOL
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        result[value.name] = noise > -0.3 if is_mask else noise.astype(dtype)
    return result


def run(model: ir.Model | onnx.ModelProto, given: dict[str, AnyArray]) -> list[AnyArray]:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result: list[AnyArray] = session.run(None, given)
    return result


def reference(model: onnx.ModelProto, given: dict[str, AnyArray]) -> list[AnyArray]:
    with np.errstate(all="ignore"):
        result = ReferenceEvaluator(model).run(None, given)
    assert isinstance(result, list)
    return result


def written_out(model: onnx.ModelProto, opset: int) -> ir.Model:
    """At opset 17 through the lowering, else where it is."""
    loaded = ir.from_proto(model)
    (LowerOpset(17) if opset == 17 else DecomposeAttention())(loaded)
    assert "Attention" not in {node.op_type for node in loaded.graph}
    assert loaded.opset_imports[""] == opset
    return loaded


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("source", "opset"), [(23, 17), (23, 23), (24, 24), (25, 17)])
def test_means_the_same(form: str, source: int, opset: int) -> None:
    model = attention(form, source)
    lowered = written_out(model, opset)
    for extents in EXTENTS:
        given = feeds(model, extents)
        expected = reference(model, given)
        actual = run(lowered, given)
        assert len(actual) == len(expected)
        for found, wanted in zip(actual, expected, strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_means_what_onnx_runtime_makes_of_it(form: str) -> None:
    model = attention(form, 23)
    given = feeds(model, EXTENTS[1])
    for found, wanted in zip(run(written_out(model, 17), given), run(model, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("form", "closed"),
    [
        ("bool mask", False),
        ("bool mask, causal", False),
        ("float mask", -np.inf),
        ("float mask, causal", -np.inf),
    ],
)
@pytest.mark.parametrize("keys", [slice(None), slice(3)])
def test_a_closed_row_gives_zeros(form: str, closed: float, keys: slice) -> None:
    model = attention(form, 23)
    given = feeds(model, EXTENTS[1])
    given["mask"][..., 1, 0] = given["mask"][..., 0, 0] = 1
    given["mask"][..., 2, keys] = closed
    result = run(written_out(model, 17), given)[0]
    expected = reference(model, given)[0]
    if keys == slice(None) or "causal" in form:
        assert not result[:, :, 2].any()
    assert result[:, :, 1].any()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("masked", [np.finfo(np.float32).min, -40000.0])
def test_causal_attention_does_not_look_ahead_of_masked_keys(masked: float) -> None:
    """Padding on the left by a finite number: the first rows see masked keys and later ones."""
    model = attention("float mask, causal", 23)
    given = feeds(model, {"b": 2, "q": 5, "k": 5})
    given["mask"][...] = 0
    given["mask"][..., :2] = masked
    result = run(written_out(model, 17), given)[0]
    np.testing.assert_allclose(result, reference(model, given)[0], rtol=1e-5, atol=2e-6)


def test_a_row_of_the_types_least_number_weighs_all_keys_alike() -> None:
    model = attention("float mask", 23)
    given = feeds(model, EXTENTS[1])
    given["mask"][..., 2, :] = np.finfo(np.float32).min
    result = run(written_out(model, 17), given)[0]
    np.testing.assert_allclose(result[:, :, 2], given["value"].mean(axis=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["tokens by heads", "bool mask", "causal", "softcap"])
def test_fp16_stays_finite(form: str) -> None:
    model = attention(form, 23, TensorProto.FLOAT16)
    given = feeds(model, EXTENTS[1])
    result = run(written_out(model, 17), given)[0]
    expected = reference(model, given)[0]
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, atol=5e-3)


def test_softmax_in_a_stated_type() -> None:
    model = attention("heads", 23, TensorProto.FLOAT16)
    precision = helper.make_attribute("softmax_precision", TensorProto.FLOAT)
    model.graph.node[0].attribute.append(precision)
    lowered = written_out(model, 17)
    softmax = next(node for node in lowered.graph if node.op_type == "Softmax")
    before = softmax.inputs[0]
    assert before is not None
    assert before.producer().attributes.get_int("to") == TensorProto.FLOAT  # type: ignore[union-attr]
    given = feeds(model, EXTENTS[1])
    expected = reference(model, given)[0]
    np.testing.assert_allclose(run(lowered, given)[0], expected, atol=5e-3)


def test_names_stay() -> None:
    model = attention("past", 23)
    names = [value.name for value in model.graph.output]
    lowered = written_out(model, 17)
    assert [value.name for value in lowered.graph.outputs] == names
    assert "attend" in {node.name for node in lowered.graph}


def test_a_wrong_scale_would_be_seen() -> None:
    model = attention("heads", 23)
    given = feeds(model, EXTENTS[1])
    expected = reference(model, given)[0]
    model.graph.node[0].attribute.append(helper.make_attribute("scale", 0.26))
    actual = run(written_out(model, 17), given)[0]
    assert np.abs(actual - expected).max() > 1e-3


REFUSED = {
    "qk_matmul_output": attention("heads", 23, outputs=("y", "", "", "logits")),
    "nonpad_kv_seqlen": attention("lengths", 24),
    "left_window_size": attention("window", 25),
    "attn_mask has 7 columns for 9 keys": attention("short mask", 23),
    "head size of 'query' is not known": attention("unknown size", 23),
    "numbers of heads of 'query' and 'key' are not known": attention("unknown heads", 23),
    "6 heads of queries are no multiple of 4": attention("odd heads", 23),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_forms_are_refused_by_name(message: str) -> None:
    with pytest.raises(UserError, match=rf"node 'attend' \(Attention\).*{message}"):
        DecomposeAttention()(ir.from_proto(REFUSED[message]))
