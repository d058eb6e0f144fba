"""What the graph analysis finds: layers, sites, the temporal path, the interface, norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.affine_producer import AffineProducer, find_affine_producer
from qvd_trt.export.graph.find_layers import NAME_SCOPES, find_layers
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec, read_signature
from qvd_trt.export.graph.values import input_dependence
from qvd_trt.export.plan.site_types import GraphSites, Layer, LayerOp, Site, Window
from tests.export.every_form import every_form_net
from tests.export.graphs import GraphBuilder, opened, prepared


class TestLayers:
    def test_forms(self) -> None:
        layers, kept = find_layers(prepared(every_form_net()).graph)
        found = {layer.name: layer for layer in layers}
        assert kept == []
        assert [layer.name for layer in layers] == [
            "time_mlp_1", "time_mlp_2", "conv_in", "time_proj_1", "padded", "shortcut", "grouped",
            "time_proj_2", "over_time", "query", "key", "text", "widen", "narrow", "conv_out",
        ]  # fmt: skip
        assert found["padded"].window == Window((3, 3), (1, 1), (1, 1), (2, 1), (0, 1))
        assert found["over_time"].window == Window((3, 1, 1), (1,) * 3, (1,) * 3, (1, 0, 0), (1, 0, 0))  # fmt: skip # noqa: E501
        assert found["grouped"] == Layer(
            name="grouped",
            op=LayerOp.CONV,
            weight="grouped.weight",
            output="grouped_out",
            out_axis=0,
            in_axis=1,
            out_channels=64,
            weight_size=64 * 16 * 9,
            window=Window((3, 3), (1, 1), (2, 2), (2, 2), (2, 2)),
            groups=2,
        )
        assert found["grouped"].macs_per_output == 16 * 9
        query, narrow = found["query"], found["narrow"]
        assert (query.op, query.out_axis, query.in_axis) == (LayerOp.MATMUL, 1, 0)
        assert (narrow.op, narrow.out_axis, narrow.in_axis) == (LayerOp.GEMM, 0, 1)
        assert narrow.out_channels == 32
        assert query.window == Window()

    def test_products_without_a_weight_are_no_layers(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 4, 4])
        given = net.input("given", [4, 4])
        net.op("MatMul", x, x, name="both")
        net.op("MatMul", x, given, name="given_weight")
        net.op("MatMul", net.weight("left", 4, 4), x, name="weight_on_the_left")
        model = prepared(net.model({"both_out": [2, 4, 4]}))
        layers, odd = find_layers(model.graph)
        assert layers == []
        assert [(layer.name, layer.reason) for layer in odd] == [
            ("weight_on_the_left", "its weight is the left operand")
        ]

    @pytest.mark.parametrize(
        ("op", "weight", "attributes", "reason"),
        [
            ("ConvTranspose", (16, 16, 2, 2), {}, "no INT8 kernel"),
            (
                "Conv",
                (16, 16, 3, 3),
                {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
                "auto_pad SAME",
            ),
            ("MatMul", (2, 16, 4, 4), {}, "rank 4"),
        ],
    )
    def test_odd_forms_stay_float(
        self, op: str, weight: tuple[int, ...], attributes: dict[str, Any], reason: str
    ) -> None:
        net = GraphBuilder()
        x = net.input("x", [2, 16, "h", "w"])
        net.op(op, x, net.weight("weight", *weight), name="odd", **attributes)
        model = prepared(net.model({"odd_out": ["b", "c", "h", "w"]}))
        layers, kept = find_layers(model.graph)
        assert layers == []
        assert [(layer.name, layer.op) for layer in kept] == [("odd", op)]
        assert reason in kept[0].reason

    @pytest.mark.parametrize("attributes", [{"transA": 1}, {"alpha": 0.5}, {"beta": 2.0}])
    def test_odd_gemms_stay_float(self, attributes: dict[str, Any]) -> None:
        net = GraphBuilder()
        x = net.input("x", [16, 16])
        net.op("Gemm", x, net.weight("w", 16, 16), net.weight("b", 16), name="odd", **attributes)
        layers, kept = find_layers(prepared(net.model({"odd_out": [16, 16]})).graph)
        assert layers == []
        assert "transA, alpha or beta" in kept[0].reason

    @pytest.mark.parametrize(
        ("op", "shapes", "attributes", "macs"),
        [
            ("MatMul", ["w", (5, 40), "x", (40, 8)], {}, 40),
            ("MatMul", ["w", (40,), "x", (40, 8)], {}, 40),
            ("MatMul", ["x", (8, 40), "w", (40,)], {}, 40),
            ("MatMul", ["x", (3, 8, 40), "w", (3, 40, 5)], {}, 40),
            ("Gemm", ["w", (5, 40), "x", (40, 8)], {}, 40),
            ("Gemm", ["w", (5, 40), "x", (5, 8)], {"transA": 1}, 5),
            ("Gemm", ["x", (40, 8), "w", (40, 5)], {"transA": 1}, 40),
            ("Gemm", ["x", (8, 40), "w", (5, 40)], {"transB": 1, "alpha": 2.0}, 40),
            ("Einsum", ["x", (2, 8, 6), "w", (6, 4, 10)], {"equation": "bsk,khd->bhsd"}, 6),
            ("Einsum", ["w", (4, 10, 6), "x", (2, 8, 4, 10)], {"equation": "hdm,bshd->bsm"}, 40),
            ("Einsum", ["x", (2, 8, 6), "w", (3, 6)], {"equation": "...k,nk->n..."}, 6),
            ("Einsum", ["x", (8, 6), "w", (6, 3)], {"equation": "ij, jk"}, 6),
            ("ConvTranspose", ["x", (2, 8, 5, 5), "w", (8, 6, 2, 2)], {"strides": [2, 2]}, 8),
            ("ConvTranspose", ["x", (2, 8, 5, 5), "w", (8, 3, 3, 3)], {"group": 2}, 36),
        ],
    )
    def test_what_odd_forms_cost(
        self, op: str, shapes: list[Any], attributes: dict[str, Any], macs: int
    ) -> None:
        """Per output element: the extent that is summed over, or taps times input channels."""
        net = GraphBuilder()
        operands = [
            net.input("x", shape) if name == "x" else net.weight("w", *shape)
            for name, shape in zip(shapes[::2], shapes[1::2], strict=True)
        ]
        net.op(op, *operands, name="odd", **attributes)
        model = prepared(net.unchecked({"odd_out": ["a"]}))
        (layer,) = find_layers(model.graph)[1]
        assert layer.macs_per_output == macs

    def test_a_weight_that_is_an_output_too(self) -> None:
        net = GraphBuilder()
        x = net.input("x", [8, 16])
        stored = numpy_helper.from_array(np.ones((16, 16), np.float32))
        net.op("MatMul", x, net.op("Constant", name="stored", value=stored), name="layer")
        model = prepared(net.model({"layer_out": [8, 16], "stored_out": [16, 16]}))
        layers, odd = find_layers(model.graph)
        assert layers == []
        assert [(e.name, e.macs_per_output) for e in odd] == [("layer", 16)]

    @pytest.mark.parametrize("op", ["Gemm", "Conv"])
    def test_layers_with_a_computed_bias_stay_float(self, op: str) -> None:
        """Neither the shift nor the bias correction could be added to it."""
        net = GraphBuilder()
        spatial = [1, 1] if op == "Conv" else []
        x = net.input("x", [16, 16, *spatial])
        bias = net.op("Tanh", net.input("given", [16]), name="computed")
        net.op(op, x, net.weight("w", 16, 16, *spatial), bias, name="odd")
        model = prepared(net.model({"odd_out": [16, 16, *spatial]}))
        layers, kept = find_layers(model.graph)
        assert layers == []
        assert "bias is computed" in kept[0].reason


class TestSites:
    def test_a_layer_that_stays_float_is_the_first_one(self) -> None:
        net = GraphBuilder()
        sample = net.input("sample", [1, 16, 8, 8])
        net.input("timestep", [1])
        weight = net.weight("patch.weight", 16, 32, 2, 2)
        x = net.op("ConvTranspose", sample, weight, name="patch", strides=[2, 2])
        for name in "ab":
            x = net.op("Tanh", net.conv(x, 32, 32, (1, 1), name), name=f"{name}_act")
        weight = net.weight("last.weight", 32, 16, 1, 1)
        x = net.op("ConvTranspose", x, weight, name="last", strides=[1, 1])
        sites = find_sites(opened(prepared(net.model({x: [1, 16, 16, 16]}))))
        assert [layer.name for site in sites.dense for layer in site.layers] == ["a", "b"]
        assert sites.excluded == {"patch", "last"}

    def test_layers_are_grouped_by_what_they_read(self) -> None:
        sites = sites_of(prepared(every_form_net()))
        assert {site.tensor: names(site) for site in sites.dense} == {
            "scattered_out": ["padded", "shortcut"],
            "group_norm_add_out": ["grouped"],
            "video_out": ["over_time"],
            "layer_norm_out": ["query", "key"],
            "encoder_hidden_states": ["text"],
            "rows_out": ["widen"],
            "positive_rows_out": ["narrow"],
        }
        found = {site.tensor: site for site in sites.dense}
        assert found["group_norm_add_out"].channels == 32  # not the 16 of a group
        assert [found[t].channel_axis for t in ("video_out", "rows_out")] == [1, -1]
        assert len(found["scattered_out"].windows) == 2

    def test_ends_and_time_path_are_kept(self) -> None:
        sites = sites_of(prepared(every_form_net()))
        assert {layer.name: layer.reason for layer in sites.kept} == {
            "time_mlp_1": "time embedding MLP",
            "time_mlp_2": "time embedding MLP",
            "conv_in": "first layer",
            "conv_out": "last layer",
        }
        assert sites.excluded == {
            "time_mlp_1", "time_mlp_2", "conv_in", "conv_out", "time_proj_1", "time_proj_2",
        }  # fmt: skip
        assert len(sites.all_layers) == 15

    def test_one_tensor_read_along_two_axes_makes_two_sites(self) -> None:
        net = denoiser()
        x = net.conv("sample", 16, 16, (1, 1), "first")
        x = net.op("Relu", x, name="relu")
        a = net.conv(x, 16, 16, (1, 1), "conv")
        b = net.linear(x, 16, 16, "linear", bias=False)
        x = net.op("Add", a, b, name="sum")
        x = net.conv(x, 16, 16, (1, 1), "last")
        sites = sites_of(prepared(net.model({x: ["batch", 16, 16, 16]})))
        assert [(s.tensor, s.channel_axis, names(s)) for s in sites.dense] == [
            ("relu_out", 1, ["conv"]),
            ("relu_out", -1, ["linear"]),
        ]

    @pytest.mark.parametrize(
        ("channels", "filters", "groups", "reason"),
        [
            (12, 16, 1, "12 input channels per group"),
            (32, 32, 4, "8 input channels per group"),
            (16, 12, 1, "12 output channels"),
            (16, 16, 1, None),
        ],
    )
    def test_narrow_layers_are_kept(
        self, channels: int, filters: int, groups: int, reason: str | None
    ) -> None:
        net = denoiser()
        x = net.conv("sample", 16, channels, (1, 1), "first")
        x = net.conv(x, channels, filters, (3, 3), "middle", group=groups)
        x = net.conv(x, filters, 16, (1, 1), "wide")
        x = net.conv(x, 16, 16, (1, 1), "last")
        model = prepared(net.model({x: ["batch", 16, 14, 14]}))
        if filters == 12:
            with pytest.raises(UserError, match="no layer is left to quantize"):
                sites_of(model)
            return
        kept = {layer.name: layer.reason for layer in sites_of(model).kept}
        if reason is None:
            assert "middle" not in kept
        else:
            assert reason in kept["middle"]

    def test_every_path_to_the_ends_counts(self) -> None:
        """A latent that enters twice, an output that is the sum of two layers."""
        net = denoiser()
        a = net.conv("sample", 16, 16, (1, 1), "first_a")
        b = net.conv(net.op("Sigmoid", "sample", name="gate"), 16, 16, (1, 1), "first_b")
        x = net.op("Mul", a, b, name="product")
        x = net.conv(x, 16, 16, (1, 1), "middle")
        y = net.conv(x, 16, 16, (1, 1), "last_a")
        z = net.conv(net.op("Relu", x, name="relu"), 16, 16, (1, 1), "last_b")
        out = net.op("Add", y, net.op("Tanh", z, name="tanh"), name="out")
        kept = sites_of(prepared(net.model({out: ["batch", 16, 16, 16]}))).kept
        assert {layer.name: layer.reason for layer in kept} == {
            "first_a": "first layer", "first_b": "first layer",
            "last_a": "last layer", "last_b": "last layer",
        }  # fmt: skip

    def test_the_shape_of_the_latent_makes_no_first_layer(self) -> None:
        net = denoiser()
        shape = net.op("Shape", "sample", name="shape")
        table = net.op("Expand", net.weight("table", 16, 1, 1), shape, name="expanded")
        x = net.conv(table, 16, 16, (1, 1), "positions")
        x = net.op("Add", x, net.conv("sample", 16, 16, (1, 1), "first"), name="sum")
        x = net.conv(x, 16, 16, (1, 1), "last")
        sites = sites_of(prepared(net.model({x: ["batch", 16, 16, 16]})))
        assert [names(site) for site in sites.dense] == [["positions"]]


class TestKeep:
    @pytest.fixture
    def model(self) -> ir.Model:
        net = denoiser()
        x = net.conv("sample", 16, 16, (1, 1), "first")
        for name in ("node_linear", "node_linear_1", "node_linear_12"):
            x = net.conv(x, 16, 16, (1, 1), name)
        return prepared(net.model({net.conv(x, 16, 16, (1, 1), "last"): ["batch", 16, 16, 16]}))

    @pytest.mark.parametrize(
        ("pattern", "hits"),
        [
            ("node_linear", {"node_linear"}),
            ("node_linear_1", {"node_linear_1"}),
            ("node_linear_?", {"node_linear_1"}),
            ("node_linear_*", {"node_linear_1", "node_linear_12"}),
            ("node_linear_1.weight", {"node_linear_1"}),
            ("*_12.w*", {"node_linear_12"}),
            ("node_linear_[!1]", None),
            ("linear", None),
            ("NODE_LINEAR", None),
            ("conv_in", None),
        ],
    )
    def test_whole_names(self, model: ir.Model, pattern: str, hits: set[str] | None) -> None:
        if hits is None:
            with pytest.raises(UserError, match=r"--keep .* matches no layer"):
                sites_of(model, [pattern])
            return
        kept = {layer.name: layer.reason for layer in sites_of(model, [pattern]).kept}
        found = {name for name, reason in kept.items() if reason.startswith("--keep")}
        assert found == hits
        assert all(kept[name] == f"--keep {pattern}" for name in hits)

    def test_module_paths(self, model: ir.Model) -> None:
        """As torch's exporter notes them: the scopes from the root down, then its own node."""
        for node in model.graph:
            if node.name == "node_linear":
                scopes = ["", "blocks.0", "blocks.0.attn1", "blocks.0.attn1.to_q", "linear_3"]
                node.metadata_props[NAME_SCOPES] = str(scopes)
            if node.name == "node_linear_1":
                node.metadata_props[NAME_SCOPES] = "no list"
        kept = {layer.name: layer.reason for layer in sites_of(model, ["*.attn1.*"]).kept}
        assert [name for name in kept if kept[name].startswith("--keep")] == ["node_linear"]
        with pytest.raises(UserError, match="of modules"):
            sites_of(model, ["linear_3"])

    def test_one_unused_pattern_among_used_ones(self, model: ir.Model) -> None:
        with pytest.raises(UserError, match="'ff_down'"):
            sites_of(model, ["node_linear_1", "ff_down"])

    def test_keeping_everything_is_refused(self, model: ir.Model) -> None:
        with pytest.raises(UserError, match="no layer is left to quantize"):
            sites_of(model, ["*"])


class TestTemporalPath:
    def test_strict(self) -> None:
        """The embedding MLP is the trunk; the projections of the blocks are the sites."""
        sites = sites_of(prepared(unet()))
        assert [(s.tensor, names(s)) for s in sites.temporal] == [
            ("act_out", ["proj_0", "proj_1", "proj_2"])
        ]
        assert sites.strict_temporal == {"act_out"}
        kept = {layer.name for layer in sites.kept if layer.reason == "time embedding MLP"}
        assert kept == {"trunk_1", "trunk_2"}
        assert {"middle_0", "middle_1", "middle_2"} <= {n for s in sites.dense for n in names(s)}

    def test_one_activation_per_block_makes_one_site_per_block(self) -> None:
        sites = sites_of(prepared(unet(shared_activation=False)))
        assert [names(site) for site in sites.temporal] == [["proj_0"], ["proj_1"], ["proj_2"]]
        assert len(sites.strict_temporal) == 3

    def test_pooled_conditioning_is_relaxed(self) -> None:
        sites = sites_of(prepared(unet(conditioning="pooled")))
        assert [names(site) for site in sites.temporal] == [["proj_0", "proj_1", "proj_2"]]
        assert sites.strict_temporal == frozenset()

    def test_token_sequences_are_no_temporal_features(self) -> None:
        sites = sites_of(prepared(unet(conditioning="tokens")))
        assert not any(name.startswith("proj") for site in sites.temporal for name in names(site))
        assert ["proj_0", "proj_1", "proj_2"] in [names(site) for site in sites.dense]

    def test_mean_of_a_token_sequence_is_relaxed(self) -> None:
        sites = sites_of(prepared(unet(conditioning="mean of tokens")))
        assert [names(site) for site in sites.temporal] == [["proj_0", "proj_1", "proj_2"]]
        assert sites.strict_temporal == frozenset()

    def test_the_shape_of_the_latent_is_no_dependence(self) -> None:
        """A scalar timestep is expanded to the latent's batch."""
        sites = sites_of(prepared(unet(expanded_to="shape of the latent")))
        assert [names(site) for site in sites.temporal] == [["proj_0", "proj_1", "proj_2"]]
        assert sites.strict_temporal == {"act_out"}

    def test_the_value_of_the_latent_is_one(self) -> None:
        """Negative control of the test above."""
        sites = sites_of(prepared(unet(expanded_to="mean of the latent")))
        assert sites.temporal == ()

    def test_dependence_follows_subgraphs(self) -> None:
        text = """<ir_version: 10, opset_import: ["" : 20]>
            g (float[2] t, float[2] x, bool c) => (float[2] y) {
                y = If (c) <
                    then_branch = a () => (float[2] p) { p = Identity(t) },
                    else_branch = b () => (float[2] q) { q = Identity(x) }
                >
            }"""
        graph = ir.from_onnx_text(text).graph
        assert input_dependence(graph)[graph.outputs[0]] == {"t", "x", "c"}

    def test_architectures(self, calibrated: Callable[[str], Any]) -> None:
        expected = {"animatediff": 1, "latte": 1, "svd": 0, "wan": 1}
        for name, strict in expected.items():
            sites: GraphSites = calibrated(name).sites
            assert len(sites.strict_temporal) == strict
            assert sites.temporal
            reasons = [layer.reason for layer in sites.kept]
            assert reasons.count("time embedding MLP") >= 2
            assert {"first layer", "last layer"} <= set(reasons)


class TestInterface:
    def test_usual_names(self) -> None:
        signature = read_signature(prepared(every_form_net()).graph)
        assert signature == ModelSignature(
            inputs=(
                TensorSpec("sample", "float32", ("batch", 4, 6, 6)),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 20)),
            ),
            output=TensorSpec("prediction_out", "float32", ("batch", 4, 6, 6)),
            timestep="timestep",
            latent="sample",
        )

    def test_odd_names_are_found_by_the_graph(self) -> None:
        signature = read_signature(interface_graph())
        assert (signature.timestep, signature.latent) == ("when", "noisy")

    def test_options_override(self) -> None:
        signature = read_signature(interface_graph(), timestep="mask", latent="text")
        assert (signature.timestep, signature.latent) == ("mask", "text")

    @pytest.mark.parametrize("option", ["timestep", "latent"])
    def test_unknown_option(self, option: str) -> None:
        with pytest.raises(UserError, match=rf"--{option}-input 'nope' is no input.*noisy"):
            read_signature(interface_graph(), **{option: "nope"})

    def test_one_input_cannot_be_both(self) -> None:
        with pytest.raises(UserError, match="both the timestep and the latent"):
            read_signature(interface_graph(), timestep="noisy", latent="noisy")

    def test_no_timestep(self) -> None:
        with pytest.raises(UserError, match=r"timestep among noisy.*--timestep-input"):
            read_signature(interface_graph(waves=0))

    def test_two_candidates_for_the_timestep(self) -> None:
        with pytest.raises(UserError, match="--timestep-input"):
            read_signature(interface_graph(waves=2))

    def test_two_candidates_for_the_latent(self) -> None:
        with pytest.raises(UserError, match="--latent-input"):
            read_signature(interface_graph(latents=2))

    def test_no_latent(self) -> None:
        with pytest.raises(UserError, match="--latent-input"):
            read_signature(interface_graph(latents=0))

    def test_no_inputs(self) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
        with pytest.raises(UserError, match="no inputs or no outputs"):
            read_signature(graph)


class TestAffineProducer:
    def test_layer_norm(self) -> None:
        net = GraphBuilder()
        y = net.layer_norm(net.input("x", ["b", 5, 16]), 16, "norm")
        found = producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8])
        assert constants(found) == ("norm.gamma", "norm.beta")

    def test_group_norm_through_transpose_and_reshape(self) -> None:
        """GroupNorm of a video's frames, then rows of channels, as spatial attention reads them."""
        net = GraphBuilder()
        x = net.input("x", ["b", 16, 4, 6])
        y = net.group_norm(x, 16, 4, ("b", 16, 4, 6), "norm")
        y = net.op("Transpose", y, name="rows", perm=[0, 2, 3, 1])
        y = net.reshape(y, [0, 24, 16], "flat")
        found = producer(net, y, net.linear(y, 16, 8, "q"), ["b", 24, 8])
        assert constants(found) == ("norm.gamma", "norm.beta")

    def test_layer_norm_transposed_for_a_convolution(self) -> None:
        net = GraphBuilder()
        y = net.layer_norm(net.input("x", ["b", 5, 16]), 16, "norm")
        y = net.op("Transpose", y, name="turned", perm=[0, 2, 1])
        found = producer(net, y, net.conv(y, 16, 16, (3,), "conv"), ["b", 16, 3], axis=1)
        assert constants(found) == ("norm.gamma", "norm.beta")

    def test_group_normalization_operator(self) -> None:
        net = GraphBuilder(opset=21)
        x = net.input("x", ["b", 16, 4, 4])
        gamma, beta = net.weight("gamma", 16), net.weight("beta", 16)
        y = net.op("GroupNormalization", x, gamma, beta, name="norm", num_groups=4)
        net.declare(y, ["b", 16, 4, 4])
        found = producer(net, y, net.conv(y, 16, 16, (1, 1), "conv"), ["b", 16, 4, 4], axis=1)
        assert constants(found) == ("gamma", "beta")

    def test_several_readers_of_one_site(self) -> None:
        net = GraphBuilder()
        y = net.layer_norm(net.input("x", ["b", 5, 16]), 16, "norm")
        rows = [net.linear(y, 16, 8, name, bias=False) for name in "qkv"]
        total = net.op("Sum", *rows, name="sum")
        model = prepared(net.model({total: ["b", 5, 8]}))
        assert find(model, y, ["q", "k", "v"]) is not None
        assert find(model, y, ["q", "k"]) is None

    def test_second_reader_of_the_norm(self) -> None:
        net = GraphBuilder()
        y = net.layer_norm(net.input("x", ["b", 5, 16]), 16, "norm")
        z = net.op("Add", y, net.linear(y, 16, 16, "q"), name="residual")
        assert producer(net, y, z, ["b", 5, 16]) is None

    @pytest.mark.parametrize("where", ["before the transpose", "between gamma and beta"])
    def test_second_reader_on_the_way(self, where: str) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 16, 4, 6])
        norm = net.group_norm(x, 16, 4, ("b", 16, 4, 6), "norm")
        y = net.op("Transpose", norm, name="rows", perm=[0, 2, 3, 1])
        z = net.linear(y, 16, 16, "q")
        other = norm if where == "before the transpose" else "norm_mul_out"
        mean = net.op("ReduceMean", other, name="mean", keepdims=0)
        z = net.op("Mul", z, mean, name="scaled")
        assert producer(net, y, z, ["b", 4, 6, 16]) is None

    @pytest.mark.parametrize("exposed", ["norm_add_out", "norm_mul_out", None])
    def test_graph_output_on_the_way(self, exposed: str | None) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 16, 4, 6])
        y = net.group_norm(x, 16, 4, ("b", 16, 4, 6), "norm")
        outputs: dict[str, Sequence[int | str]] = {
            net.conv(y, 16, 16, (1, 1), "q"): ["b", 16, 4, 6]
        }
        if exposed:
            outputs[exposed] = ["b", 16, 4, 6]
        model = prepared(net.model(outputs))
        assert (find(model, y, ["q"], axis=1) is None) == (exposed is not None)

    @pytest.mark.parametrize(
        ("shape", "merged"),
        [
            ([0, 10, 8], True),  # channels split
            ([0, 80], True),  # merged with the rows
            ([0, 16, 5], True),  # another order
            ([-1, 16], False),
            ([0, 1, 5, 16], False),
        ],
    )
    def test_reshape_that_mixes_channels(self, shape: list[int], merged: bool) -> None:
        net = GraphBuilder()
        y = net.layer_norm(net.input("x", [2, 5, 16]), 16, "norm")
        y = net.reshape(y, shape, "reshaped")
        width = shape[-1]
        z = net.linear(y, width, 8, "q")
        z = net.reshape(z, [-1], "flat")
        assert (producer(net, y, z, ["n"], channels=width) is None) == merged

    def test_reshape_with_the_channels_in_the_middle(self) -> None:
        def found(shape: list[int], channels: int) -> AffineProducer | None:
            net = GraphBuilder()
            x = net.input("x", [2, 16, 4, 6])
            y = net.group_norm(x, 16, 4, (2, 16, 4, 6), "norm")
            y = net.reshape(y, shape, "reshaped")
            z = net.conv(y, channels, 16, (1, 1), "conv")
            return producer(net, y, z, [2, 16, "h", "w"], axis=1, channels=channels)

        assert found([2, 16, 4, 6], 16) is not None
        assert found([2, 16, 6, 4], 16) is None  # safe to refuse: the extents are other ones
        assert found([2, 32, 2, 6], 32) is None

    def test_norm_without_beta(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 5, 16])
        y = net.op("LayerNormalization", x, net.weight("gamma", 16), name="norm")
        assert producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8]) is None

    def test_norm_over_two_axes(self) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 5, 16])
        gamma, beta = net.weight("gamma", 5, 16), net.weight("beta", 5, 16)
        y = net.op("LayerNormalization", x, gamma, beta, name="norm", axis=1)
        assert producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8]) is None

    def test_computed_gamma(self) -> None:
        """AdaLN: scale and shift come from the timestep."""
        net = GraphBuilder()
        x = net.input("x", ["b", 5, 16])
        scale = net.input("scale", ["b", 1, 16])
        y = net.op("Mul", x, scale, name="mul")
        y = net.op("Add", y, net.weight("beta", 16), name="add")
        assert producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8]) is None

    @pytest.mark.parametrize("shape", [(16,), (1, 16), (1, 1, 16)])
    def test_mul_add_along_the_last_axis(self, shape: tuple[int, ...]) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 5, 16])
        y = net.op("Mul", net.weight("gamma", *shape), x, name="mul")
        y = net.op("Add", net.weight("beta", *shape), y, name="add")
        found = producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8])
        assert constants(found) == ("gamma", "beta")

    @pytest.mark.parametrize("shape", [(1,), (5, 1), (5, 16)])
    def test_operands_of_other_shapes(self, shape: tuple[int, ...]) -> None:
        net = GraphBuilder()
        x = net.input("x", ["b", 5, 16])
        y = net.op("Mul", net.weight("gamma", *shape), x, name="mul")
        y = net.op("Add", net.weight("beta", *shape), y, name="add")
        assert producer(net, y, net.linear(y, 16, 8, "q"), ["b", 5, 8]) is None


def denoiser() -> GraphBuilder:
    """A net with the inputs `sample` [batch, 16, 16, 16] and `timestep` [batch]."""
    net = GraphBuilder()
    net.input("sample", ["batch", 16, 16, 16])
    net.input("timestep", ["batch"])
    return net


def unet(
    conditioning: str | None = None,
    expanded_to: str | None = None,
    *,
    shared_activation: bool = True,
) -> Any:
    """Three blocks that a timestep embedding is added to."""
    net = GraphBuilder()
    sample = net.input("sample", ["batch", 16, 8, 8])
    tokens = conditioning == "tokens"
    if expanded_to is None:
        time = net.input("timestep", ["batch"])
    else:
        scalar = net.input("timestep", [])
        if expanded_to == "shape of the latent":
            shape = net.op("Shape", sample, name="shape")
            first = net.constant("first", np.array([0]))
            batch = net.op("Gather", shape, first, name="batch", axis=0)
            time = net.op("Expand", scalar, batch, name="expanded")
        else:
            axes = net.constant("spatial", np.array([1, 2, 3]))
            mean = net.op("ReduceMean", sample, axes, name="mean", keepdims=0)
            time = net.op("Add", scalar, mean, name="expanded")
    frequencies = net.constant("frequencies", np.geomspace(1, 1e-3, 32, dtype=np.float32)[None])
    column = net.op("Unsqueeze", time, net.constant("last", np.array([1])), name="column")
    x = net.op("Sin", net.op("Mul", column, frequencies, name="angles"), name="waves")
    x = net.gemm(x, 32, 32, "trunk_1")
    x = net.op("Relu", x, name="act_1")
    x = net.gemm(x, 32, 32, "trunk_2")
    if conditioning == "pooled":
        x = net.op("Add", x, net.gemm(net.input("pooled", ["batch", 16]), 16, 32, "text"), name="e")
    elif conditioning is not None:
        text = net.linear(net.input("text", ["batch", 9, 16]), 16, 32, "text")
        if tokens:
            x = net.op("Unsqueeze", x, net.constant("middle", np.array([1])), name="row")
        else:
            axes = net.constant("token_axis", np.array([1]))
            text = net.op("ReduceMean", text, axes, name="pooled", keepdims=0)
        x = net.op("Add", x, text, name="embedding")
    if shared_activation:
        x = net.op("Relu", x, name="act")
    y = net.conv(sample, 16, 32, (3, 3), "conv_in", pads=[1, 1, 1, 1])
    for block in range(3):
        active = x if shared_activation else net.op("Relu", x, name=f"act_{block}_in_block")
        added = net.linear(active, 32, 32, f"proj_{block}")
        if tokens:
            axes = net.constant(f"axis_{block}", np.array([1]))
            added = net.op("ReduceMean", added, axes, name=f"mean_{block}", keepdims=0)
        axes = net.constant(f"axes_{block}", np.array([2, 3]))
        y = net.op("Add", y, net.op("Unsqueeze", added, axes, name=f"t_{block}"), name=f"y_{block}")
        y = net.conv(y, 32, 32, (3, 3), f"middle_{block}", pads=[1, 1, 1, 1])
    y = net.conv(y, 32, 16, (3, 3), "conv_out", pads=[1, 1, 1, 1])
    return net.model({y: ["batch", 16, 8, 8]})


def interface_graph(waves: int = 1, latents: int = 1) -> ir.Graph:
    """Inputs without usual names: `noisy` (rank 4), `text` (rank 2), `mask`, and `when` (Sin)."""
    net = GraphBuilder()
    parts = [
        net.op("ReduceMean", net.input(name, [2, 16, 4, 4]), name=f"mean_{name}", keepdims=0)
        for name in ("noisy", "noisy_2")[:latents]
    ]
    plain = [("text", "Tanh"), ("mask", "Abs")]
    for name, op in (*plain, *[("when", "Sin"), ("when_2", "Cos")][:waves]):
        value = net.op(op, net.input(name, [2, 8] if name == "text" else [2]), name=f"{op}_{name}")
        parts.append(net.op("ReduceMean", value, name=f"mean_{name}", keepdims=0))
    total = net.op("Sum", *parts, name="total")
    return prepared(net.model({total: []})).graph


def sites_of(model: ir.Model, keep: Sequence[str] = ()) -> GraphSites:
    return find_sites(opened(model), keep)


def names(site: Site) -> list[str]:
    return [layer.name for layer in site.layers]


def producer(
    net: GraphBuilder,
    tensor: str,
    output: str,
    shape: Sequence[int | str],
    *,
    axis: int = -1,
    channels: int = 16,
) -> AffineProducer | None:
    """What is found above the one layer that reads `tensor`."""
    model = prepared(net.model({output: shape}))
    nodes = {node.name: node for node in model.graph}
    layers = [layer.name for layer in find_layers(model.graph)[0]]
    readers = [name for name in layers if (v := nodes[name].inputs[0]) and v.name == tensor]
    assert len(readers) == 1
    return find(model, tensor, readers, axis=axis, channels=channels)


def find(
    model: ir.Model, tensor: str, readers: Sequence[str], *, axis: int = -1, channels: int = 16
) -> AffineProducer | None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    nodes = [node for node in model.graph if node.name in readers]
    return find_affine_producer(values[tensor], axis, channels, nodes)


def constants(found: AffineProducer | None) -> tuple[str | None, str | None]:
    """Names of gamma and beta."""
    assert found is not None
    gamma = found.gamma.node.inputs[found.gamma.index]
    beta = found.beta.node.inputs[found.beta.index]
    assert gamma is not None
    assert beta is not None
    return gamma.name, beta.name
