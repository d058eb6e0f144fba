"""Preparation: names for every node, weights as plain initializers, the same function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan, fold_only
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import W8A8, DensePlan, LayerQuant, QuantPlan, WeightQuant
from qvd_trt.export.targets import TARGETS, FloatType
from tests.export.graphs import GraphBuilder, opened, prepared


def as_other_exporters_write_it() -> onnx.ModelProto:
    """A nameless node, a Constant weight, one behind Transpose, one behind Identity."""
    net = GraphBuilder()
    x = net.input("x", [3, 16])
    weight = net.rng.normal(size=(16, 16)).astype(np.float32)
    lifted = numpy_helper.from_array(weight)
    turned = net.op("Transpose", net.weight("stored", 8, 16), name="turn", perm=[1, 0])
    behind = net.op("Identity", net.weight("shared", 16, 16), name="identity")
    a = net.op("MatMul", x, "lifted", name="first")
    b = net.op("MatMul", a, behind, name="second")
    c = net.op("MatMul", b, turned, name="third")
    model = net.unchecked({c: [3, 8]})
    model.graph.node.insert(0, helper.make_node("Constant", [], ["lifted"], value=lifted))
    model.graph.node[-1].name = ""
    onnx.checker.check_model(model)
    return model


def test_every_weight_becomes_a_layer() -> None:
    model = prepared(as_other_exporters_write_it())
    layers, kept = find_layers(model.graph)
    assert not kept
    assert [layer.out_channels for layer in layers] == [16, 16, 8]
    assert [node.op_type for node in model.graph] == ["MatMul"] * 3
    names = [node.name for node in model.graph]
    assert names[:2] == ["first", "second"]
    assert names[2] not in (None, "", "first", "second")


def test_tensor_names_and_function_are_kept() -> None:
    original = as_other_exporters_write_it()
    model = prepared(original)
    produced = {name for node in original.graph.node for name in node.output}
    assert {value.name for node in model.graph for value in node.outputs} <= produced
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    (before,) = open_session(ir.from_proto(original)).run(None, {"x": x})
    (after,) = open_session(model).run(None, {"x": x})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_folded_transpose_leaves_no_second_copy() -> None:
    model = prepared(as_other_exporters_write_it())
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert len(model.graph.initializers) == 3
    assert set(model.graph.initializers) <= read


class TestForeignPlans:
    """A plan that does not fit the graph is refused, with the name of what does not."""

    @pytest.fixture
    def model(self) -> ir.Model:
        net = GraphBuilder()
        x = net.input("x", [3, 16])
        y = net.linear(x, 16, 16, "first")
        return prepared(net.model({net.linear(y, 16, 8, "second"): [3, 8]}))

    @pytest.fixture
    def site(self) -> DensePlan:
        quant = LayerQuant("first", WeightQuant(8, np.ones(16, np.float32)))
        return DensePlan("x", -1, None, (quant,))

    def apply(self, model: ir.Model, site: DensePlan) -> None:
        plan = QuantPlan("sha256:x", W8A8, "qvd", (site,), (), ())
        fold_only(opened(model), plan)
        apply_plan(opened(model), plan, ApplyOptions(TARGETS["ort"], FloatType.FP32))

    def test_fitting_plan(self, model: ir.Model, site: DensePlan) -> None:
        self.apply(model, site)

    def test_unknown_layer(self, model: ir.Model, site: DensePlan) -> None:
        with pytest.raises(UserError, match="'third' is no layer"):
            self.apply(model, replace(site, layers=(LayerQuant("third", None),)))

    def test_unread_tensor(self, model: ir.Model, site: DensePlan) -> None:
        with pytest.raises(UserError, match="'first_bias_out' is not what layer 'first' reads"):
            self.apply(model, replace(site, tensor="first_bias_out"))

    def test_wrong_number_of_channels(self, model: ir.Model, site: DensePlan) -> None:
        quant = LayerQuant("first", WeightQuant(8, np.ones(8, np.float32)))
        with pytest.raises(UserError, match="8 weight scales, it has 16"):
            self.apply(model, replace(site, layers=(quant,)))
