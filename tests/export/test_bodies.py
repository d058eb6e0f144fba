"""Layers in bodies of If, Loop and Scan: listed, counted by what runs, and no end of the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import open_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import W8A8
from qvd_trt.tools.measure_held_out import measure
from tests.export.files_people_have import WIDTH, denoiser, feeds, without_value_infos
from tests.export.graphs import GraphBuilder
from tests.export.test_one_door import Calls

ROWS = 24
"""Tokens of one call of `feeds()`, which has batch 1."""


def product(x: str, columns: int, name: str) -> list[Any]:
    """Nodes of a body: a layer whose weight is stored flat, and back to the width."""
    rng = np.random.default_rng(columns)

    def constant(tensor: str, array: Any) -> Any:
        value = numpy_helper.from_array(array, tensor)
        return helper.make_node("Constant", [], [tensor], value=value)

    flat = rng.normal(0, 0.1, WIDTH * columns).astype(np.float32)
    return [
        constant(f"{name}.flat", flat),
        constant(f"{name}.extents", np.array([WIDTH, columns])),
        helper.make_node("Reshape", [f"{name}.flat", f"{name}.extents"], [f"{name}.weight"]),
        helper.make_node("MatMul", [x, f"{name}.weight"], [f"{name}.product"], name=name),
        helper.make_node("ReduceMean", [f"{name}.product"], [f"{name}.mean"], keepdims=1),
        helper.make_node("Add", [x, f"{name}.mean"], [f"{name}.result"]),
    ]


def graph(nodes: list[Any], result: str, *inputs: Any) -> Any:
    value = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "body", list(inputs), [value])


def late(net: GraphBuilder) -> str:
    """Whether the timestep is beyond 350."""
    limit = net.constant("limit", np.array([350], np.float32))
    at = net.op("Greater", "timestep", limit, name="later")
    return net.op("Squeeze", at, net.constant("at", np.array([0])), name="late")


def one_branch(net: GraphBuilder, x: str) -> str:
    """Both branches name their tensors and their layer alike; files list the else branch first."""
    branches = {
        "then_branch": graph(product(x, 48, "inner"), "inner.result"),
        "else_branch": graph(product(x, 16, "inner"), "inner.result"),
    }
    return net.op("If", late(net), name="choice", **branches)


def looped(net: GraphBuilder, x: str) -> str:
    nodes = product("carried", 48, "inner")
    nodes.append(helper.make_node("Identity", ["again"], ["go"]))
    body = graph(
        nodes,
        "inner.result",
        helper.make_tensor_value_info("trip", TensorProto.INT64, []),
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried", TensorProto.FLOAT, [None, None, WIDTH]),
    )
    body.output.insert(0, helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    return net.op("Loop", net.constant("trips", np.array(3)), "", x, name="repeat", body=body)


def scanned(net: GraphBuilder, x: str) -> str:
    """Over the tokens; the collected axis is given."""
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, WIDTH])
    body = graph(product("row", 48, "inner"), "inner.result", row)
    body.output[0].CopyFrom(
        helper.make_tensor_value_info("inner.result", TensorProto.FLOAT, [None, WIDTH])
    )
    axes: dict[str, Any] = {"scan_input_axes": [1], "scan_output_axes": [1]}
    return net.op("Scan", x, name="rows", body=body, num_scan_inputs=1, **axes)


def loop_in_branch(net: GraphBuilder, x: str) -> str:
    inner = GraphBuilder()
    result = looped(inner, x)
    held = inner.unchecked({}).graph
    taken = graph(list(held.node), result)
    taken.initializer.extend(held.initializer)
    passed = graph([helper.make_node("Identity", [x], ["passed"])], "passed")
    return net.op("If", late(net), name="choice", then_branch=taken, else_branch=passed)


def opened(middle: Callable[[GraphBuilder, str], str], folder: Path) -> FloatModel:
    path = folder / "model.onnx"
    onnx.save(without_value_infos(denoiser(middle=middle)), path)
    return open_model(path)


EACH = ROWS * WIDTH * 48
"""Multiply-accumulates of the wide layer, once."""


@pytest.mark.parametrize(
    ("middle", "timesteps", "costs"),
    [
        (one_branch, (100, 300), {"inner": EACH / 3, "inner_2": 0}),
        (one_branch, (400, 700), {"inner": 0, "inner_2": EACH}),
        (one_branch, (300, 400), {"inner": EACH / 6, "inner_2": EACH / 2}),
        (looped, (100, 700), {"inner": 3 * EACH}),
        (scanned, (100, 700), {"inner": EACH}),
        (loop_in_branch, (400, 700), {"inner": 3 * EACH}),
        (loop_in_branch, (300, 400), {"inner": 3 * EACH / 2}),
    ],
)
def test_what_runs_is_counted(
    middle: Callable[[GraphBuilder, str], str],
    timesteps: tuple[int, int],
    costs: dict[str, float],
    tmp_path: Path,
) -> None:
    model = opened(middle, tmp_path)
    sites = find_sites(model)
    calls = [{**feeds(time), "timestep": np.array([time], np.float32)} for time in timesteps]
    stats = calibrate(model, sites, Calls(calls), CalibrationOptions())
    inner = [layer for layer in model.odd_layers if "body" in layer.reason]
    found = {e.name: stats.output_elements[e.name] * e.macs_per_output for e in inner}
    assert found == costs
    assert {layer.name for layer in inner} <= {layer.name for layer in sites.all_layers}


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (one_branch, "inside the body of If choice"),
        (looped, "inside the body of Loop repeat"),
        (scanned, "inside the body of Scan rows"),
        (loop_in_branch, "inside the body of Loop repeat"),
    ],
)
def test_are_listed(
    middle: Callable[[GraphBuilder, str], str], reason: str, tmp_path: Path
) -> None:
    kept = find_sites(opened(middle, tmp_path)).kept
    assert {layer.reason for layer in kept if layer.name.startswith("inner")} == {reason}


@pytest.mark.parametrize("middle", [one_branch, looped, scanned, loop_in_branch])
@pytest.mark.parametrize("timestep", [100, 700])
def test_folding_their_weights_changes_nothing(
    middle: Callable[[GraphBuilder, str], str], timestep: int, tmp_path: Path
) -> None:
    model = opened(middle, tmp_path)
    call = {**feeds(), "timestep": np.array([timestep], np.float32)}
    (expected,) = open_session(model.path).run(None, call)
    for rewritten in (model.source, model.prepared):
        (found,) = open_session(rewritten).run(None, call)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def offset(net: GraphBuilder, x: str) -> str:
    """A branch adds what is stored outside of it in fp16, through a Reshape and a Cast."""
    stored = net.constant("offset", np.full((WIDTH, 1), 0.5, np.float16))
    row = net.constant("row", np.array([WIDTH]))
    nodes = [
        helper.make_node("Reshape", [stored, row], ["offset.row"]),
        helper.make_node("Cast", ["offset.row"], ["offset.wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", [x, "offset.wide"], ["moved"]),
    ]
    branches = {
        "then_branch": graph(nodes, "moved"),
        "else_branch": graph([helper.make_node("Identity", [x], ["passed"])], "passed"),
    }
    return net.op("If", late(net), name="choice", **branches)


@pytest.mark.parametrize("middle", [one_branch, offset])
def test_constants_stored_in_16_bits_leave_the_file_in_32(
    middle: Callable[[GraphBuilder, str], str], tmp_path: Path
) -> None:
    """Around an If only float32 is measured."""
    model = denoiser(middle=middle)
    (bias,) = (t for t in model.graph.initializer if t.name == "down.bias")
    half = numpy_helper.to_array(bias).astype(np.float16)
    bias.CopyFrom(numpy_helper.from_array(half, "half"))
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["down.bias"], to=1))
    onnx.save(model, tmp_path / "model.onnx")
    opened = open_model(tmp_path / "model.onnx")
    sites = find_sites(opened)
    stats = calibrate(opened, sites, Calls([feeds(s) for s in range(6)]), CalibrationOptions())
    plan = solve(sites, stats, opened.weight, SolveOptions(W8A8, ALGORITHMS["qvd"]))
    assert all(score.sqnr > 20 for score in measure(opened, plan, stats.held_out))


class TestWaysThroughBodies:
    """An If reads tensors that are no inputs of its node."""

    def model(self, folder: Path) -> FloatModel:
        """Layers a, b, c in a row, an If without layers behind each end: `x -> If -> a`."""
        net = GraphBuilder()
        sample, time = net.input("sample", [1, 24, 32]), net.input("timestep", [1])

        def gate(x: str, name: str) -> str:
            branches = {
                f"{kind}_branch": graph([helper.make_node(op, [x], [kind])], kind)
                for kind, op in (("then", "Abs"), ("else", "Neg"))
            }
            at = net.op("Cast", time, name=f"{name}_at", to=TensorProto.BOOL)
            return net.op("If", at, name=name, **branches)

        x = gate(sample, "in")
        for name in "abc":
            x = net.op("Tanh", net.linear(x, 32, 32, name), name=f"{name}_act")
        onnx.save(net.model({gate(x, "out"): [1, 24, 32]}), folder / "model.onnx")
        return open_model(folder / "model.onnx")

    def test_lead_to_the_first_and_the_last_layer(self, tmp_path: Path) -> None:
        kept = find_sites(self.model(tmp_path)).kept
        assert {e.name: e.reason for e in kept} == {"a": "first layer", "c": "last layer"}

    def test_extents_are_no_values(self, tmp_path: Path) -> None:
        """A body that takes nothing but the latent's extents is on the time path all the same."""

        def shaped(net: GraphBuilder, x: str) -> str:
            nodes = [
                helper.make_node("Shape", ["sample"], ["extents"]),
                helper.make_node("Size", ["extents"], ["rank"]),
                helper.make_node("Cast", ["rank"], ["number"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["time_2_out", "number"], ["scaled"]),
            ]
            passed = [helper.make_node("Identity", ["time_2_out"], ["passed"])]
            branches = {
                "then_branch": graph(nodes, "scaled"),
                "else_branch": graph(passed, "passed"),
            }
            chosen = net.op("If", late(net), name="choice", **branches)
            scale = net.gemm(net.op("Tanh", chosen, name="squash"), WIDTH, WIDTH, "project")
            axis = net.constant("new_axis", np.array([1]))
            return net.op("Mul", x, net.op("Unsqueeze", scale, axis, name="wide"), name="scaling")

        sites = find_sites(opened(shaped, tmp_path))
        assert [site.tensor for site in sites.temporal] == ["squash_out"]
        first = [layer.name for layer in sites.kept if layer.reason == "first layer"]
        assert first == ["first"]
