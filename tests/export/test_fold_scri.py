"""SCRI folded into float graphs: the same function, wherever the map ends up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qvd_trt.export.apply_plan import fold_only
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.signature import read_signature
from qvd_trt.export.graph.values import static_shape
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.passes import fold_scri
from qvd_trt.export.plan.quant_plan import W8A8, ActivationQuant, DensePlan, LayerQuant, QuantPlan
from qvd_trt.export.plan.site_types import Layer, Site
from tests.export.calibrated import noise_feeds
from tests.export.every_form import every_form_net
from tests.export.graphs import GraphBuilder, opened, prepared

Array = npt.NDArray[Any]
TOLERANCE = 1e-5
"""Relative to the largest output: float32 rounding of the map and of its inverse."""


class TestForms:
    """One site each; what is checked beside the outputs is where the map went."""

    def test_padded_convolution_at_the_border(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 16, 5, 5])
        net.conv(x, 16, 16, (3, 3), "conv", pads=[1, 2, 0, 1])
        model = prepared(net.model({"conv_out": [2, 16, 4, 6]}))
        feeds = {"x": 3 + normal(2, 16, 5, 5)}
        folded = fold_only(opened(model), plan_for(model, "x", axis=1))
        assert ops(folded) == ["Pad", "Sub", "Mul", "Conv"]
        before, after = run(model, feeds), run(folded, feeds)
        border = np.ones(before.shape, bool)
        border[:, :, 1:, 2:-1] = False
        assert border.any()
        assert not border.all()
        assert difference(before[border], after[border]) < TOLERANCE
        assert difference(before[~border], after[~border]) < TOLERANCE

    def test_padding_after_the_shift_would_show_at_the_border(self) -> None:
        """Negative control of the test above: the convolution pads the shifted activation."""
        net = GraphBuilder()
        x = net.input("x", [2, 16, 5, 5])
        net.conv(x, 16, 16, (3, 3), "conv", pads=[1, 1, 1, 1])
        model = prepared(net.model({"conv_out": [2, 16, 5, 5]}))
        feeds = {"x": 3 + normal(2, 16, 5, 5)}
        folded = fold_only(opened(model), plan_for(model, "x", axis=1))
        (pad,) = [node for node in folded.graph if node.op_type == "Pad"]
        pad.outputs[0].replace_all_uses_with(graph_input(folded))
        (conv,) = [node for node in folded.graph if node.op_type == "Conv"]
        conv.attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])
        before, after = run(model, feeds), run(folded, feeds)
        assert difference(before[:, :, 1:-1, 1:-1], after[:, :, 1:-1, 1:-1]) < TOLERANCE
        assert difference(before, after) > 0.01

    def test_smooth_alone_needs_no_pad(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 16, 5, 5])
        net.conv(x, 16, 16, (3, 3), "conv", pads=[1, 1, 1, 1])
        model = prepared(net.model({"conv_out": [2, 16, 5, 5]}))
        folded = fold_only(opened(model), plan_for(model, "x", axis=1, shift=False))
        assert ops(folded) == ["Mul", "Conv"]
        assert_same(model, folded, {"x": normal(2, 16, 5, 5)})

    @pytest.mark.parametrize(
        ("kernel", "attributes"),
        [
            ((3, 3), {"pads": [1, 1, 1, 1], "group": 4}),
            ((3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2], "strides": [2, 1]}),
            ((3, 1), {"pads": [1, 0, 0, 0]}),
            ((2, 2), {"auto_pad": "VALID"}),
        ],
    )
    def test_convolution_windows(self, kernel: Sequence[int], attributes: dict[str, Any]) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 16, 8, 6])
        net.conv(x, 16, 32, kernel, "conv", **attributes)
        model = prepared(net.model({"conv_out": ["batch", 32, "h", "w"]}))
        assert_same(
            model,
            fold_only(opened(model), plan_for(model, "x", axis=1)),
            {"x": normal(2, 16, 8, 6)},
        )

    def test_convolution_over_time(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 16, "frames", 3, 2])
        net.conv(x, 16, 16, (3, 1, 1), "conv", pads=[1, 0, 0, 1, 0, 0], bias=False)
        model = prepared(net.model({"conv_out": ["batch", 16, "frames", 3, 2]}))
        folded = fold_only(opened(model), plan_for(model, "x", axis=1))
        assert_same(model, folded, {"x": normal(2, 16, 5, 3, 2)})

    def test_padded_convolution_and_shortcut_share_an_input(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 16, 5, 5])
        wide = net.conv(x, 16, 16, (3, 3), "wide", pads=[1, 1, 1, 1])
        short = net.conv(x, 16, 16, (1, 1), "short", bias=False)
        net.op("Add", wide, short, name="sum")
        model = prepared(net.model({"sum_out": [2, 16, 5, 5]}))
        folded = fold_only(opened(model), plan_for(model, "x", axis=1))
        assert Counter(ops(folded)) == {"Pad": 1, "Sub": 2, "Mul": 2, "Conv": 2, "Add": 1}
        assert_same(model, folded, {"x": normal(2, 16, 5, 5)})

    def test_equal_windows_share_one_map(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 16, 5, 5])
        first = net.conv(x, 16, 16, (3, 3), "first", pads=[1, 1, 1, 1])
        second = net.conv(x, 16, 16, (3, 3), "second", pads=[1, 1, 1, 1])
        net.op("Add", first, second, name="sum")
        model = prepared(net.model({"sum_out": [2, 16, 5, 5]}))
        folded = fold_only(opened(model), plan_for(model, "x", axis=1))
        assert Counter(ops(folded)) == {"Pad": 1, "Sub": 1, "Mul": 1, "Conv": 2, "Add": 1}
        assert_same(model, folded, {"x": normal(2, 16, 5, 5)})

    def test_weight_and_bias_shared_by_layers_of_two_sites(self) -> None:
        net = GraphBuilder()
        x, y = net.input("x", [3, 16]), net.input("y", [3, 16])
        weight, bias = net.weight("weight", 16, 16), net.weight("bias", 16)
        first = net.op("Gemm", x, weight, bias, name="first")
        second = net.op("Gemm", y, weight, bias, name="second")
        net.op("Sub", first, second, name="apart")
        model = prepared(net.model({"apart_out": [3, 16]}))
        feeds = {"x": normal(3, 16), "y": normal(3, 16, seed=1)}
        one = fold_only(opened(model), plan_for(model, "x", layers=["first"]))
        assert_same(model, one, feeds)
        both = plan_for(model, "x", layers=["first"]), plan_for(model, "y", ["second"], seed=1)
        plan = replace(both[0], dense=both[0].dense + both[1].dense)
        assert_same(model, fold_only(opened(model), plan), feeds)

    def test_weight_shared_within_a_site(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [3, 16])
        weight = net.weight("weight", 16, 16)
        first = net.op("Gemm", x, weight, net.weight("bias", 16), name="first")
        second = net.op("MatMul", x, weight, name="second")
        net.op("Mul", first, second, name="product")
        model = prepared(net.model({"product_out": [3, 16]}))
        assert_same(model, fold_only(opened(model), plan_for(model, "x")), {"x": normal(3, 16)})

    @pytest.mark.parametrize("transposed", [0, 1])
    @pytest.mark.parametrize("bias", [True, False])
    def test_gemm(self, transposed: int, bias: bool) -> None:
        net = GraphBuilder()
        x = net.input("x", [3, 16])
        weight = net.weight("weight", *((8, 16) if transposed else (16, 8)))
        operands = [net.weight("bias", 8)] if bias else []
        net.op("Gemm", x, weight, *operands, name="gemm", transB=transposed)
        model = prepared(net.model({"gemm_out": [3, 8]}))
        folded = fold_only(opened(model), plan_for(model, "x"))
        assert ops(folded) == ["Sub", "Mul", "Gemm"]
        assert_same(model, folded, {"x": normal(3, 16)})

    @pytest.mark.parametrize("bias_shape", [(), (1,), (1, 8), (3, 1), (3, 8)])
    def test_gemm_bias_of_any_shape(self, bias_shape: tuple[int, ...]) -> None:
        net = GraphBuilder()
        x = net.input("x", [3, 16])
        net.op("Gemm", x, net.weight("weight", 16, 8), net.weight("bias", *bias_shape), name="gemm")
        model = prepared(net.model({"gemm_out": [3, 8]}))
        assert_same(model, fold_only(opened(model), plan_for(model, "x")), {"x": normal(3, 16)})

    def test_matmul_takes_the_bias_of_the_add_behind_it(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 5, 16])
        y = net.linear(x, 16, 8, "linear")
        model = prepared(net.model({y: ["batch", 5, 8]}))
        folded = fold_only(opened(model), plan_for(model, "x"))
        assert ops(folded) == ["Sub", "Mul", "MatMul", "Add"]
        assert_same(model, folded, {"x": normal(2, 5, 16)})

    def test_matmul_without_add_gets_one(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 5, 16])
        y = net.linear(x, 16, 8, "linear", bias=False)
        y = net.op("Sqrt", net.op("Abs", y, name="abs"), name="root")
        model = prepared(net.model({y: ["batch", 5, 8]}))
        folded = fold_only(opened(model), plan_for(model, "x"))
        assert ops(folded) == ["Sub", "Mul", "MatMul", "Add", "Abs", "Sqrt"]
        assert_same(model, folded, {"x": normal(2, 5, 16)})

    def test_matmul_that_is_a_graph_output(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 5, 16])
        y = net.linear(x, 16, 8, "linear", bias=False)
        z = net.op("Add", y, net.weight("bias", 8), name="add")
        model = prepared(net.model({y: ["batch", 5, 8], z: ["batch", 5, 8]}))
        folded = fold_only(opened(model), plan_for(model, "x"))
        assert [value.name for value in folded.graph.outputs] == [y, z]
        assert_same(model, folded, {"x": normal(2, 5, 16)})

    @pytest.mark.parametrize("shape", [(1,), (5, 1), (5, 8), (2, 1, 8)])
    def test_add_that_is_no_bias_stays(self, shape: tuple[int, ...]) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 5, 16])
        y = net.linear(x, 16, 8, "linear", bias=False)
        z = net.op("Add", net.weight("operand", *shape), y, name="add")
        model = prepared(net.model({z: [2, 5, 8]}))
        assert_same(model, fold_only(opened(model), plan_for(model, "x")), {"x": normal(2, 5, 16)})

    def test_matmul_whose_bias_is_shared(self) -> None:
        net = GraphBuilder()
        x, y = net.input("x", [3, 16]), net.input("y", [3, 16])
        bias = net.weight("bias", 8)
        rows = [
            net.op(
                "Add",
                net.op("MatMul", value, net.weight(f"{value}.weight", 16, 8), name=f"{value}_mm"),
                bias,
                name=f"{value}_add",
            )
            for value in (x, y)
        ]
        net.op("Mul", *rows, name="product")
        model = prepared(net.model({"product_out": [3, 8]}))
        feeds = {"x": normal(3, 16), "y": normal(3, 16, seed=1)}
        assert_same(model, fold_only(opened(model), plan_for(model, "x")), feeds)

    def test_norm_absorbs_the_map_of_query_key_value(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 5, 16])
        normal_x = net.layer_norm(x, 16, "norm")
        linears = [net.linear(normal_x, 16, 16, name, bias=name != "k") for name in "qkv"]
        net.op("Concat", *linears, name="qkv", axis=-1)
        model = prepared(net.model({"qkv_out": ["batch", 5, 48]}))
        folded = fold_only(opened(model), plan_for(model, normal_x))
        assert Counter(ops(folded)) == {
            "LayerNormalization": 1, "MatMul": 3, "Add": 3, "Concat": 1,
        }  # fmt: skip
        assert_same(model, folded, {"x": normal(2, 5, 16)})

    def test_norm_read_by_a_layer_outside_of_the_plan_stays(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 5, 16])
        normal_x = net.layer_norm(x, 16, "norm")
        linears = [net.linear(normal_x, 16, 16, name) for name in "qk"]
        net.op("Concat", *linears, name="qk", axis=-1)
        model = prepared(net.model({"qk_out": ["batch", 5, 32]}))
        folded = fold_only(opened(model), plan_for(model, normal_x, layers=["q"]))
        assert ops(folded)[:3] == ["LayerNormalization", "Sub", "Mul"]
        assert_same(model, folded, {"x": normal(2, 5, 16)})

    def test_norms_that_share_gamma_and_beta(self) -> None:
        net = GraphBuilder()
        x, y = net.input("x", [3, 16]), net.input("y", [3, 16])
        gamma, beta = net.weight("gamma", 16, mean=1.0), net.weight("beta", 16)
        rows = [
            net.linear(
                net.op("LayerNormalization", value, gamma, beta, name=f"{value}_norm"),
                16, 8, f"{value}_linear",
            )
            for value in (x, y)
        ]  # fmt: skip
        net.op("Mul", *rows, name="product")
        model = prepared(net.model({"product_out": [3, 8]}))
        folded = fold_only(opened(model), plan_for(model, "x_norm_out"))
        assert "Sub" not in ops(folded)
        assert_same(model, folded, {"x": normal(3, 16), "y": normal(3, 16, seed=1)})

    @pytest.mark.parametrize("padded", [True, False])
    def test_group_norm_absorbs_unless_padding_must_come_first(self, padded: bool) -> None:
        net = GraphBuilder()
        x = net.input("x", ["batch", 16, 6, 6])
        y = net.group_norm(x, 16, 4, ("batch", 16, 6, 6), "norm")
        net.conv(y, 16, 16, (3, 3), "conv", pads=[1, 1, 1, 1] if padded else [0, 0, 0, 0])
        model = prepared(net.model({"conv_out": ["batch", 16, "h", "w"]}))
        folded = fold_only(opened(model), plan_for(model, y, axis=1))
        assert ("Sub" in ops(folded)) == padded
        assert_same(model, folded, {"x": normal(2, 16, 6, 6)})

    def test_nothing_is_touched_without_a_map(self) -> None:
        model = prepared(every_form_net())
        plan = plan_for(model, "layer_norm_out", shift=False, smooth=False)
        assert ops(fold_only(opened(model), plan)) == ops(model)


class TestEveryForm:
    @pytest.mark.parametrize("seed", range(3))
    def test_all_sites_at_once(self, seed: int) -> None:
        model = prepared(every_form_net())
        plan = random_maps(sites_of(model), seed)
        assert len(plan.dense) == 7
        folded = fold_only(opened(model), plan)
        onnx.checker.check_model(ir.to_proto(folded), full_check=True)
        signature = read_signature(model.graph)
        for batch in (1, 2):
            feeds = noise_feeds(signature, seed, {"batch": batch, "tokens": 5})
            assert_same(model, folded, feeds)

    def test_the_model_itself_is_left_alone(self) -> None:
        model = prepared(every_form_net())
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        fold_only(opened(model), random_maps(sites_of(model), 0))
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


SHAPES: Mapping[str, tuple[dict[str, int], dict[str, int]]] = {
    name: (
        {"batch": 1, "frames": 3, "height": 8, "width": 12, "tokens": 7},
        {"batch": 2, "frames": 4, "height": 6, "width": 8, "tokens": 5},
    )
    for name in ("animatediff", "latte", "svd", "wan")
}


@pytest.mark.parametrize("name", sorted(SHAPES))
class TestArchitectures:
    def test_folded_model_is_the_original(
        self, name: str, model_path: Callable[[str], Any]
    ) -> None:
        model = prepared(model_path(name))
        plan = random_maps(sites_of(model), seed=3)
        assert len(plan.dense) >= 12
        folded = fold_only(opened(model), plan)
        sessions = session(model), session(folded)
        for extents in SHAPES[name]:
            feeds = noise_feeds(read_signature(model.graph), 1, extents)
            before, after = (s.run(None, feeds)[0] for s in sessions)
            assert difference(before, after) < TOLERANCE

    def test_maps_without_their_weights_show(
        self,
        name: str,
        model_path: Callable[[str], Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Negative control: the smallest possible mistake, one site without compensation."""
        model = prepared(model_path(name))
        plan = random_maps(sites_of(model), seed=3)
        plan = replace(plan, dense=plan.dense[len(plan.dense) // 2 :][:1])
        monkeypatch.setattr(fold_scri, "folded_weight", lambda layer, weight, activation: weight)
        feeds = noise_feeds(read_signature(model.graph), 1, SHAPES[name][0])
        assert (
            difference(run(model, feeds), run(fold_only(opened(model), plan), feeds))
            > 20 * TOLERANCE
        )


class TestNegativeControls:
    """Every part of the fold is needed."""

    @pytest.mark.parametrize(
        ("part", "broken"),
        [
            ("folded_weight", lambda layer, weight, activation: weight),
            ("shift_bias", lambda layer, weight, activation: None),
            ("reciprocal", lambda smooth: smooth),
        ],
    )
    def test_wrong_fold(
        self, part: str, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = prepared(every_form_net())
        monkeypatch.setattr(fold_scri, part, broken)
        folded = fold_only(opened(model), random_maps(sites_of(model), 0))
        feeds = noise_feeds(read_signature(model.graph), 0, {"batch": 2, "tokens": 5})
        assert difference(run(model, feeds), run(folded, feeds)) > 0.01


def sites_of(model: ir.Model) -> Sequence[Site]:
    return find_sites(opened(model)).dense


def random_maps(sites: Sequence[Site], seed: int) -> QuantPlan:
    """A shift and a scale, one far from ones, at every site."""
    rng = np.random.default_rng(seed)
    return plan_of(
        [
            dense_plan(site.tensor, site.channel_axis, site.channels, site.layers, rng)
            for site in sites
        ]
    )


def plan_for(
    model: ir.Model,
    tensor: str,
    layers: Sequence[str] | None = None,
    *,
    axis: int = -1,
    seed: int = 0,
    shift: bool = True,
    smooth: bool = True,
) -> QuantPlan:
    """The plan of one site: the layers that read a tensor, or those named."""
    nodes = {node.name: node for node in model.graph}
    found = []
    for layer in find_layers(model.graph)[0]:
        value = nodes[layer.name].inputs[0]
        if value is not None and value.name == tensor and (layers is None or layer.name in layers):
            found.append(layer)
    assert found
    weight_shape = static_shape(model.graph.initializers[found[0].weight])
    channels = weight_shape[found[0].in_axis] * found[0].groups
    rng = np.random.default_rng(seed)
    site = dense_plan(tensor, axis, channels, found, rng)
    assert site.activation is not None
    activation = replace(
        site.activation,
        shift=site.activation.shift if shift else None,
        smooth=site.activation.smooth if smooth else None,
    )
    return plan_of([replace(site, activation=activation)])


def dense_plan(
    tensor: str, axis: int, channels: int, layers: Sequence[Layer], rng: np.random.Generator
) -> DensePlan:
    activation = ActivationQuant(
        bits=8,
        scale=0.05,
        shift=rng.normal(size=channels).astype(np.float32),
        smooth=np.exp(rng.normal(size=channels)).astype(np.float32),
    )
    return DensePlan(
        tensor, axis, activation, tuple(LayerQuant(layer.name, None) for layer in layers)
    )


def plan_of(dense: Sequence[DensePlan]) -> QuantPlan:
    return QuantPlan("sha256:none", W8A8, "hand-made", tuple(dense), (), ())


def normal(*shape: int, seed: int = 9) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def graph_input(model: ir.Model) -> ir.Value:
    return model.graph.inputs[0]


def session(model: ir.Model) -> Any:
    return open_session(model)


def run(model: ir.Model, feeds: Mapping[str, Array]) -> Array:
    outputs: list[Array] = session(model).run(None, dict(feeds))
    return outputs[0]


def difference(expected: Array, found: Array) -> float:
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def assert_same(model: ir.Model, folded: ir.Model, feeds: Mapping[str, Array]) -> None:
    onnx.checker.check_model(ir.to_proto(folded), full_check=True)
    before = session(model).run(None, dict(feeds))
    after = session(folded).run(None, dict(feeds))
    for expected, found in zip(before, after, strict=True):
        assert difference(expected, found) < TOLERANCE
