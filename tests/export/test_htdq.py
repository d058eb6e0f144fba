"""The HTDQ node in ONNX Runtime: the codebook bit by bit, whatever the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qvd_trt.calibrators.temporal.codebooks import codebook_from_levels
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import W8A8, Codebook, LayerQuant, QuantPlan, TemporalPlan
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm
from tests.export.graphs import GraphBuilder, opened, prepared

Array = npt.NDArray[Any]
FORMS = [("ort", None), ("ort", HtdqForm.INLINE), ("trt", None), ("trt8", None)]


def codebook(count: int) -> Codebook:
    return codebook_from_levels(np.sort(np.random.default_rng(count).normal(size=count)))


def hard_values(table: Codebook, channels: int) -> Array:
    """Every level and threshold, their neighbours, and what is no usual number; whole rows."""
    exact = np.concatenate([table.levels, table.thresholds])
    infinite = np.float32(np.inf)
    values = np.concatenate(
        [
            exact,
            np.nextafter(exact, infinite),
            np.nextafter(exact, -infinite),
            np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, -3e38], np.float32),
        ]
    )
    return np.resize(values, (-(-len(values) // channels), channels)).astype(np.float32)


def emitted(
    table: Codebook, shape: list[int | str], target: str, form: HtdqForm | None
) -> ir.Model:
    """A layer of ones on the diagonal behind the node: its output is what the node gives."""
    net = GraphBuilder()
    x = net.input("x", shape)
    net.op("MatMul", x, net.constant("eye", np.eye(16, dtype=np.float32)), name="layer")
    net.op("Abs", x, name="other")  # a reader outside of the plan
    model = prepared(net.model({"layer_out": shape, "other_out": shape}))
    plan = TemporalPlan("x", "hidi", table, (LayerQuant("layer", None),), 0.0, 1.0)
    options = ApplyOptions(TARGETS[target], FloatType.FP32, htdq_form=form)
    return apply_plan(opened(model), QuantPlan("sha256:x", W8A8, "qvd", (), (plan,), ()), options)


def node_output(model: ir.Model, x: Array) -> Array:
    """The tensor that the layer reads."""
    (layer,) = [node for node in model.graph if node.name == "layer"]
    read = layer.inputs[0]
    assert read is not None
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(read.name or "", onnx.TensorProto.FLOAT, None)
    )
    found: Array = open_session(ir.from_proto(proto)).run([read.name], {"x": x})[0]
    return found


@pytest.mark.parametrize(("target", "form"), FORMS)
@pytest.mark.parametrize("count", [2, 16, 255, 256])
def test_node_is_the_codebook(count: int, target: str, form: HtdqForm | None) -> None:
    table = codebook(count)
    x = hard_values(table, 16)
    found = node_output(emitted(table, ["rows", 16], target, form), x)
    np.testing.assert_array_equal(found, table(x))
    # The rule by itself, in case the codebook and the node were wrong alike.
    expected = [table.levels[sum(not value <= t for t in table.thresholds)] for value in x.ravel()]
    np.testing.assert_array_equal(found.ravel(), np.array(expected))
    assert set(found.ravel()) == set(table.levels)


def test_inlined_without_cast_like() -> None:
    """TensorRT 8.6 has no importer for it."""
    operators = {node.op_type for node in emitted(codebook(4), [3, 16], "trt8", None).graph}
    assert "LessOrEqual" in operators
    assert "CastLike" not in operators


def test_inlined_where_no_type_is_declared() -> None:
    net = GraphBuilder()
    x = net.op("Neg", net.input("x", [3, 16]), name="neg")
    net.op("MatMul", x, net.constant("eye", np.eye(16, dtype=np.float32)), name="layer")
    model = prepared(net.model({"layer_out": [3, 16]}))
    for node in model.graph:
        node.outputs[0].type = None
    plan = TemporalPlan("neg_out", "hidi", codebook(4), (LayerQuant("layer", None),), 0.0, 1.0)
    options = ApplyOptions(TARGETS["trt8"], FloatType.FP32)
    found = apply_plan(opened(model), QuantPlan("sha256:x", W8A8, "qvd", (), (plan,), ()), options)
    assert "LessOrEqual" in {node.op_type for node in found.graph}
    assert "CastLike" not in {node.op_type for node in found.graph}


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (1, 2, 1, 3, 16)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    table = codebook(16)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = node_output(emitted(table, list(shape), "ort", None), x)
    np.testing.assert_array_equal(found, table(x))


def test_other_readers_see_the_feature_itself(tmp_path: Path) -> None:
    model = emitted(codebook(4), [3, 16], "ort", None)
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    layer, other = open_session(path).run(["layer_out", "other_out"], {"x": x})
    np.testing.assert_array_equal(other, np.abs(x))
    assert (layer != x).all()
