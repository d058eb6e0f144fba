"""Every form that ONNX Runtime accepts gets in, and computes and quantizes as the plain one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.calls import (
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.temporal.timestep_sweep import TemporalSweep, training_timesteps
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan, check_target, fold_only
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.export.plan.quant_plan import W8A8
from qvd_trt.export.targets import TARGETS, FloatType
from qvd_trt.tools.measure_held_out import measure
from tests.export.files_people_have import FORMS, WIDTH, denoiser, feeds
from tests.export.graphs import GraphBuilder


class Calls:
    """Calls on noise, each a step of its own."""

    def __init__(self, feeds_of_calls: list[dict[str, Any]]) -> None:
        self._feeds = feeds_of_calls

    def describe(self) -> str:
        return "noise"

    def trajectories(self) -> int | None:
        return None

    def settings(self) -> dict[str, str]:
        return {}

    def needs_predictions(self) -> bool:
        return False

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        return len(self._feeds)

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        for step, inputs in enumerate(self._feeds):
            denoise(DenoiserCall(inputs, 0, step))


def written(model: onnx.ModelProto, folder: Path, **save: Any) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, **save)
    return path


def calibrated(model: FloatModel, calls: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    sites = find_sites(model)
    stats = calibrate(model, sites, Calls(calls), CalibrationOptions())
    options = SolveOptions(W8A8, ALGORITHMS["qvd"])
    return sites, stats, solve(sites, stats, model.weight, options)


def output(session_of: Any, inputs: dict[str, Any], folder: Path | None = None) -> Any:
    session = open_session(session_of, folder)
    return run_session(session, None, inputs)[0]


@pytest.mark.parametrize("form", FORMS)
def test_same_function_same_layers(form: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    original = open_model(written(denoiser(), plain))
    path = written(FORMS[form](denoiser()), tmp_path)
    model = open_model(path)
    expected = output(path, feeds())
    tolerance = 1e-5 * np.abs(expected).max()
    for rewritten in (model.source, model.prepared):
        assert np.abs(output(rewritten, feeds()) - expected).max() <= tolerance
    assert len(model.layers) == len(original.layers)
    assert not model.odd_layers
    found, wanted = find_sites(model), find_sites(original)
    assert len(found.dense) == len(wanted.dense)
    assert len(found.temporal) == len(wanted.temporal)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["trt", "ort"])
def test_is_quantized_and_loads(form: str, target: str, tmp_path: Path) -> None:
    model = open_model(written(FORMS[form](denoiser()), tmp_path))
    _, stats, plan = calibrated(model, [feeds(seed, 24 + 8 * (seed % 2)) for seed in range(6)])
    path = tmp_path / "out.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS[target])), path)
    expected = output(model.path, feeds(9))
    actual = output(path, feeds(9))
    assert np.square(actual - expected).sum() < 0.01 * np.square(expected).sum()
    assert all(score.sqnr > 20 for score in measure(model, plan, stats.held_out))


def test_domains_of_two_opsets_are_refused(tmp_path: Path) -> None:
    model = denoiser()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 19))
    with pytest.raises(UserError, match="imports the default domain twice"):
        open_model(written(model, tmp_path))


@pytest.mark.parametrize("opset", [12, 26])
def test_opsets_that_are_not_read(opset: int, tmp_path: Path) -> None:
    model = denoiser()
    model.opset_import[0].version = opset
    with pytest.raises(UserError, match=rf"has opset {opset}; opsets 13 to 25 are read"):
        open_model(written(model, tmp_path))


def test_a_nan_weight_is_named_at_load(tmp_path: Path) -> None:
    model = denoiser()
    (tensor,) = (t for t in model.graph.initializer if t.name == "up.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 5] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(UserError, match=r"1 numbers of the weight 'up\.weight' \(node 'up'\)"):
        open_model(written(model, tmp_path))


def test_a_branch_of_identities_stays_valid(tmp_path: Path) -> None:
    def branch(net: GraphBuilder, x: str) -> str:
        shape = [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
        then = helper.make_graph([helper.make_node("Abs", [x], ["chosen"])], "then", [], shape)
        other = [helper.make_tensor_value_info("passed", TensorProto.FLOAT, None)]
        passing = helper.make_node("Identity", [x], ["passed"])
        otherwise = helper.make_graph([passing], "otherwise", [], other)
        extent = net.op(
            "Gather",
            net.op("Shape", x, name="shape"),
            net.constant("at", np.array(1)),
            name="extent",
        )
        long = net.op("Greater", extent, net.constant("limit", np.array(1000)), name="long")
        return net.op("If", long, name="if", then_branch=then, else_branch=otherwise)

    path = written(denoiser(middle=branch), tmp_path)
    model = open_model(path)
    _, stats, plan = calibrated(model, [feeds(seed) for seed in range(6)])
    assert all(score.sqnr > 20 for score in measure(model, plan, stats.held_out))
    with pytest.raises(UserError, match="--dtype fp32"):
        check_target(model, ApplyOptions(TARGETS["trt"], FloatType.FP16))
    check_target(model, ApplyOptions(TARGETS["trt"], FloatType.FP32))


class TestCacheLinks:
    """A hub's cache: links in `snapshots/REVISION` to files of one folder of blobs."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        onnx.save(
            denoiser(), blobs / "m", save_as_external_data=True, location="model.data",
            size_threshold=64,
        )  # fmt: skip
        (blobs / "model.data").rename(blobs / "w")
        (snapshot / "model.onnx").symlink_to(os.path.relpath(blobs / "m", snapshot))
        (snapshot / "model.data").symlink_to(os.path.relpath(blobs / "w", snapshot))
        return snapshot / "model.onnx"

    def test_are_followed(self, cache: Path, tmp_path: Path) -> None:
        model = open_model(cache)
        _, stats, plan = calibrated(model, [feeds(seed) for seed in range(6)])
        assert all(score.sqnr > 20 for score in measure(model, plan, stats.held_out))
        out = tmp_path / "out" / "model.onnx"
        save_model(apply_plan(model, plan, ApplyOptions(TARGETS["trt"])), out, external=True)
        assert np.isfinite(output(out, feeds())).all()

    def test_anything_else_is_refused(self, cache: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (tmp_path / "blobs" / "w").rename(elsewhere / "w")
        (cache.parent / "model.data").unlink()
        (cache.parent / "model.data").symlink_to(elsewhere / "w")
        with pytest.raises(UserError, match="a link out of the model's folder"):
            open_model(cache)


@pytest.mark.parametrize("target", TARGETS)
def test_what_no_output_needs_is_dropped(target: str, tmp_path: Path) -> None:
    """A layer that nothing reads, and a time embedding that nobody takes up."""

    def forgotten(net: GraphBuilder, x: str) -> str:
        net.linear(x, WIDTH, WIDTH, "left_over")
        net.gemm("time_1_out", 32, WIDTH, "unread_projection")
        return x

    model = open_model(written(denoiser(17, middle=forgotten), tmp_path))
    assert set(model.layers) == set(open_model(written(denoiser(17), tmp_path)).layers)
    _, _, plan = calibrated(model, [feeds(seed) for seed in range(6)])
    path = tmp_path / "out.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS[target])), path)
    assert np.isfinite(output(path, feeds())).all()


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_an_output_left_out_needs_no_type(target: str, tmp_path: Path) -> None:
    """The mean of a LayerNormalization, in front of the deviation that is an output."""

    def normalized(net: GraphBuilder, x: str) -> str:
        gamma = net.weight("gamma", WIDTH, mean=1.0)
        beta = net.weight("beta", WIDTH)
        return net.op("LayerNormalization", x, gamma, beta, name="norm", outputs=3)

    model = denoiser(middle=normalized)
    (node,) = (node for node in model.graph.node if node.name == "norm")
    node.output[1] = ""
    value = helper.make_tensor_value_info("norm_out2", TensorProto.FLOAT, ["b", "n", 1])
    model.graph.output.append(value)
    opened = open_model(written(model, tmp_path))
    check_target(opened, ApplyOptions(TARGETS[target], FloatType.FP16))


class TestTwoAxesOnOneTensor:
    def model(self, tmp_path: Path, kernel: int = 3) -> FloatModel:
        def two_readers(net: GraphBuilder, x: str) -> str:
            x = net.op("Transpose", x, name="channels_first", perm=[0, 2, 1])
            pads = [kernel // 2] * 2
            along = net.conv(x, WIDTH, WIDTH, (kernel,), "along", pads=pads)
            square = net.linear(x, 24, 24, "across")
            both = net.op("Add", along, square, name="both")
            return net.op("Transpose", both, name="channels_last", perm=[0, 2, 1])

        model = denoiser(middle=two_readers)
        return open_model(written(model, tmp_path))

    @pytest.mark.parametrize("algorithm", ["qvd", "minmax", "shift"])
    @pytest.mark.parametrize("target", ["trt", "trt8", "ort"])
    def test_works(self, algorithm: str, target: str, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        sites = find_sites(model)
        twice = [site for site in sites.dense if site.tensor == "channels_first_out"]
        assert [(site.channel_axis, len(site.layers)) for site in twice] == [(1, 1), (-1, 1)]
        stats = calibrate(
            model, sites, Calls([feeds(seed) for seed in range(6)]), CalibrationOptions()
        )
        low = [stats.sites[site.key].ranges.minimum.shape[1] for site in twice]
        assert low == [WIDTH, 24]
        plan = solve(sites, stats, model.weight, SolveOptions(W8A8, ALGORITHMS[algorithm]))
        path = tmp_path / "out.onnx"
        save_model(apply_plan(model, plan, ApplyOptions(TARGETS[target])), path)
        names = [node.name for node in ir.load(path).graph]
        assert len(set(names)) == len(names)
        expected = output(model.path, feeds(9))
        error = np.square(output(path, feeds(9)) - expected).sum()
        assert error < 0.01 * np.square(expected).sum()

    def test_both_maps_fold(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, kernel=1)
        calls = [feeds(seed) for seed in range(6)]
        stats = calibrate(model, find_sites(model), Calls(calls), CalibrationOptions())
        options = SolveOptions(W8A8, ALGORITHMS["shift"])
        folded = fold_only(model, solve(find_sites(model), stats, model.weight, options))
        names = [node.name for node in folded.graph]
        assert len([n for n in names if (n or "").startswith("channels_first_out/qvd")]) >= 2
        assert len(set(names)) == len(names)
        expected = output(model.path, feeds(9))
        difference = np.abs(output(folded, feeds(9)) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max()


def test_the_prediction_is_the_float_output_of_the_latents_rank(tmp_path: Path) -> None:
    model = denoiser()
    mask = helper.make_node("Cast", ["timestep"], ["when"], name="when", to=TensorProto.INT64)
    model.graph.node.append(mask)
    model.graph.output.insert(0, helper.make_tensor_value_info("when", TensorProto.INT64, ["b"]))
    model.graph.output.insert(
        0, helper.make_tensor_value_info("time_1_out", TensorProto.FLOAT, ["b", 32])
    )
    opened = open_model(written(model, tmp_path))
    assert opened.signature.output.name == "prediction_out"
    assert open_model(opened.path, prediction_output="time_1_out").signature.output.shape[1] == 32
    with pytest.raises(UserError, match=r"--prediction-output 'x' is no output"):
        open_model(opened.path, prediction_output="x")
    _, stats, plan = calibrated(opened, [feeds(seed) for seed in range(6)])
    assert {call.prediction.shape for call in stats.held_out} == {(1, 16, 24)}
    assert all(20 < score.sqnr < 80 for score in measure(opened, plan, stats.held_out))


def test_only_the_prediction_has_a_last_layer(tmp_path: Path) -> None:
    model = denoiser()
    cached = helper.make_tensor_value_info("up_bias_out", TensorProto.FLOAT, None)
    plain = {k.name for k in find_sites(open_model(written(model, tmp_path))).kept}
    model.graph.output.append(cached)
    assert "up_bias_out" in {name for node in model.graph.node for name in node.output}
    assert {k.name for k in find_sites(open_model(written(model, tmp_path))).kept} == plain


def test_a_shape_in_the_head_makes_no_last_layers(tmp_path: Path) -> None:
    def reshaped(net: GraphBuilder, x: str) -> str:
        return net.op("Reshape", x, net.op("Shape", "act_1_out", name="head_shape"), name="shaped")

    kept = find_sites(open_model(written(denoiser(middle=reshaped), tmp_path))).kept
    assert {layer.name for layer in kept if layer.reason == "last layer"} == {"last"}


def test_operators_of_the_runtime_stay_with_it(tmp_path: Path) -> None:
    def fused(net: GraphBuilder, x: str) -> str:
        return net.op("FastGelu", x, name="fused", domain="com.microsoft")

    net_model = denoiser(middle=lambda net, x: net.op("Gelu", x, name="fused"))
    (node,) = (node for node in net_model.graph.node if node.name == "fused")
    node.op_type, node.domain = "FastGelu", "com.microsoft"
    net_model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = open_model(written(net_model, tmp_path))
    check_target(model, ApplyOptions(TARGETS["ort"]))
    for target in ("trt", "rtx", "trt8"):
        with pytest.raises(UserError, match=r"com\.microsoft::FastGelu, which only ONNX"):
            check_target(model, ApplyOptions(TARGETS[target]))


@pytest.mark.parametrize("opset", [13, 14, 16])
def test_old_opsets_reach_tensorrt8(opset: int, tmp_path: Path) -> None:
    model = open_model(written(denoiser(opset), tmp_path))
    check_target(model, ApplyOptions(TARGETS["trt8"]))
    _, stats, plan = calibrated(model, [feeds(seed) for seed in range(6)])
    assert all(score.sqnr > 20 for score in measure(model, plan, stats.held_out))
    path = tmp_path / "out.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS["trt8"])), path)
    assert ir.load(path).opset_imports[""] == 17
    assert np.isfinite(output(path, feeds())).all()


def test_old_group_norms_need_no_plugin(tmp_path: Path) -> None:
    """TensorRT 8.6 builds an InstanceNormalization with a plugin; opset 13 has nothing else."""

    def normal(net: GraphBuilder, x: str) -> str:
        x = net.op("Transpose", x, name="channels_first", perm=[0, 2, 1])
        x = net.group_norm(x, WIDTH, 8, ["b", WIDTH, "n"], "norm")
        x = net.conv(x, WIDTH, WIDTH, (3,), "window", pads=[1, 1])
        return net.op("Transpose", x, name="channels_last", perm=[0, 2, 1])

    model = open_model(written(denoiser(13, normal), tmp_path))
    _, _, plan = calibrated(model, [feeds(seed) for seed in range(6)])
    path = tmp_path / "out.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS["trt8"])), path)
    operators = {node.op_type for node in ir.load(path).graph}
    assert "LayerNormalization" in operators
    assert "InstanceNormalization" not in operators
    expected = output(model.path, feeds(9))
    noise = np.square(output(path, feeds(9)) - expected).sum()
    assert noise < 0.01 * np.square(expected).sum()


def test_shapes_behind_a_group_normalization_are_inferred(tmp_path: Path) -> None:
    def two_norms(net: GraphBuilder, x: str) -> str:
        x = net.op("Transpose", x, name="channels_first", perm=[0, 2, 1])
        for name in ("norm_1", "norm_2"):
            affine = [net.weight(f"{name}.{part}", WIDTH, mean=1.0) for part in ("scale", "bias")]
            x = net.op("GroupNormalization", x, *affine, name=name, num_groups=8)
            net.declare(x, ["b", WIDTH, "n"])
            x = net.conv(x, WIDTH, WIDTH, (3,), f"{name}_window", pads=[1, 1])
        return net.op("Transpose", x, name="channels_last", perm=[0, 2, 1])

    graph = FORMS["without_value_infos"](denoiser(21, two_norms))
    model = open_model(written(graph, tmp_path))
    norms = [node for node in model.graph if node.op_type == "GroupNormalization"]
    assert len(norms) == 2
    shapes = [node.outputs[0].shape for node in norms]
    assert all(shape is not None and shape[1] == WIDTH for shape in shapes)
    check_target(model, ApplyOptions(TARGETS["trt8"]))


def test_an_empty_condition_gives_no_ranges_and_no_error(tmp_path: Path) -> None:
    def conditioned(net: GraphBuilder, x: str) -> str:
        extra = net.linear(net.input("extra", ["b", "m", WIDTH]), WIDTH, WIDTH, "condition")
        return net.op("Concat", x, extra, name="with_extra", axis=1)

    def back(net: GraphBuilder, x: str) -> str:
        rows = net.op("Shape", x, name="rows")
        both = conditioned(net, x)
        length = net.op("Gather", rows, net.constant("one", np.array([1])), name="length")
        zero = net.constant("zero", np.array([0]))
        return net.op("Slice", both, zero, length, net.constant("axis", np.array([1])), name="cut")

    model = open_model(written(denoiser(middle=back), tmp_path))
    rng = np.random.default_rng(3)
    calls = []
    for seed in range(6):
        tokens = 0 if seed in (0, 2, 3) else 5
        extra = rng.normal(size=(1, tokens, WIDTH)).astype(np.float32)
        calls.append({**feeds(seed), "extra": extra})
    _, stats, _ = calibrated(model, calls)
    seen = np.concatenate([call["extra"][0] for step, call in enumerate(calls) if step != 2])
    np.testing.assert_array_equal(stats.sites["extra"].ranges.minimum.min(axis=0), seen.min(axis=0))
    assert stats.samples == 3
    assert [call.inputs["extra"].shape for call in stats.held_out] == [(1, 0, WIDTH)]


@pytest.mark.parametrize("rows", [300, 500])
def test_timesteps_end_where_their_table_does(rows: int, tmp_path: Path) -> None:
    net = GraphBuilder(seed=2)
    sample = net.input("sample", ["b", 16, "n"])
    time = net.input("timestep", ["b"], "int64")
    x = net.linear(net.op("Transpose", sample, name="turned", perm=[0, 2, 1]), 16, 32, "first")
    wave = net.op("Gather", net.weight("table", rows, 32), time, name="embedding")
    shift = net.gemm(net.op("Relu", net.gemm(wave, 32, 32, "time_1"), name="act"), 32, 32, "time_2")
    axis = net.constant("axis", np.array([1]))
    x = net.op("Add", x, net.op("Unsqueeze", shift, axis, name="spread"), name="timed")
    x = net.linear(net.linear(x, 32, 32, "middle"), 32, 16, "last")
    path = written(
        net.model({net.op("Transpose", x, name="p", perm=[0, 2, 1]): ["b", 16, "n"]}), tmp_path
    )
    model = open_model(path)
    sites = find_sites(model)
    sweep = TemporalSweep(model, sites.temporal)
    assert sweep.table_rows == rows
    steps = training_timesteps(np.array([3.0, 250.0]), sweep.table_rows)
    np.testing.assert_array_equal(steps, np.arange(rows))
    template = {"sample": feeds()["sample"], "timestep": np.array([3])}
    (feature,) = sweep.run(template, steps).values()
    assert len(feature.values) == rows
