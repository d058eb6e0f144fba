from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

Plan = dict[str, Any]


@pytest.fixture
def planned(command: Command) -> Command:
    """The command after a first run, which wrote `model.w8a8.*`."""
    command.done("model.onnx", *FAST)
    return command


def edit(command: Command, change: Callable[[Plan], object]) -> None:
    """Write the first run's plan, changed, to `edited.plan.json`."""
    plan: Plan = json.loads((command.folder / "model.w8a8.plan.json").read_text())
    change(plan)
    (command.folder / "edited.plan.json").write_text(json.dumps(plan))


def nodes_before(model: onnx.ModelProto, name: str) -> list[str]:
    node = next(node for node in model.graph.node if node.name == name)
    producers = {output: other for other in model.graph.node for output in other.output}
    return [producers[value].op_type for value in node.input if value in producers]


def test_given_back_gives_the_same_files(planned: Command) -> None:
    planned.done("model.onnx", "--plan", "model.w8a8.plan.json", "-o", "again.onnx")
    for suffix in (".onnx", ".plan.json"):
        first = (planned.folder / f"model.w8a8{suffix}").read_bytes()
        assert (planned.folder / f"again{suffix}").read_bytes() == first


def test_needs_no_calibration(planned: Command) -> None:
    result = planned.done("model.onnx", "--plan", "model.w8a8.plan.json", "-o", "x.onnx", "--json")
    report = result.json()
    assert report["calibration"] == "none (plan given)"
    assert report["held_out"] == []
    assert report["int8_share"] is None


def test_is_measured_on_calibration(planned: Command) -> None:
    first = json.loads((planned.folder / "model.w8a8.report.json").read_text())
    planned.done("model.onnx", *FAST, "--stats", "model.stats.npz", "-o", "y.onnx")
    result = planned.done(
        *("model.onnx", "--plan", "model.w8a8.plan.json", "--stats", "model.stats.npz"),
        *("-o", "x.onnx", "--json"),
    )
    assert result.json()["held_out"] == first["held_out"]
    assert result.json()["int8_share"] == first["int8_share"]


def test_other_targets(planned: Command) -> None:
    for target in ("rtx", "trt8", "ort"):
        planned.done(
            *("model.onnx", "--plan", "model.w8a8.plan.json"),
            *("-o", f"{target}.onnx", "--target", target),
        )


def test_layer_moved_out(planned: Command) -> None:
    def keep_one(plan: Plan) -> None:
        site = next(site for site in plan["dense"] if site["layers"][0]["name"] == "up.conv1")
        plan["dense"].remove(site)
        plan["kept"].append({"name": "up.conv1", "op": "Conv", "reason": "edited by hand"})

    edit(planned, keep_one)
    result = planned.done("model.onnx", "--plan", "edited.plan.json", "-o", "edited.onnx", "-v")
    assert "1 layer: edited by hand" in result.out
    before = onnx.load(planned.folder / "model.w8a8.onnx")
    after = onnx.load(planned.folder / "edited.onnx")
    assert nodes_before(before, "up.conv1")[:2] == ["DequantizeLinear"] * 2
    assert "DequantizeLinear" not in nodes_before(after, "up.conv1")
    assert nodes_before(after, "up.conv2")[:2] == ["DequantizeLinear"] * 2


def test_scale_changed(planned: Command) -> None:
    edit(planned, lambda plan: plan["dense"][0]["activation"].update(scale=0.5))
    planned.done(
        *("model.onnx", "--plan", "edited.plan.json", "-o", "edited.onnx", "--target", "ort")
    )
    model = onnx.load(planned.folder / "edited.onnx")
    scales = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    assert scales[quantize.input[1]] == 0.5


OPTIONS = [
    ["--bits", "w8a8"],
    ["--algorithm", "qvd"],
    ["--temporal", "hidi"],
    ["--keep", "conv*"],
    ["--min-sqnr", "0"],
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option[0])
def test_excludes_other_decisions(planned: Command, option: list[str]) -> None:
    line = planned.refused("model.onnx", "--plan", "model.w8a8.plan.json", "-o", "x.onnx", *option)
    assert f"{option[0]} and --plan exclude each other" in line


def test_of_another_model(planned: Command) -> None:
    write_small_unet(planned.folder / "other.onnx", seed=1)
    line = planned.refused("other.onnx", "--plan", "model.w8a8.plan.json", *FAST)
    assert "was made for another model; make it again" in line


def test_missing(command: Command) -> None:
    assert "absent.json does not exist" in command.refused("model.onnx", "--plan", "absent.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 99}'])
def test_damaged(command: Command, content: bytes) -> None:
    (command.folder / "bad.plan.json").write_bytes(content)
    assert "bad.plan.json" in command.refused("model.onnx", "--plan", "bad.plan.json")


def activation(plan: Plan) -> Plan:
    found: Plan = next(
        site["activation"] for site in plan["dense"] if site["activation"]["smooth"] is not None
    )
    return found


def layer(plan: Plan) -> Plan:
    found: Plan = plan["dense"][0]["layers"][0]
    return found


EDITS: dict[str, tuple[Callable[[Plan], object], str]] = {
    "unknown layer": (lambda plan: layer(plan).update(name="conv_9"), "'conv_9' is no layer"),
    "unknown tensor": (
        lambda plan: plan["dense"][0].update(tensor="nowhere"),
        "site 'nowhere' is not what layer",
    ),
    "other tensor": (lambda plan: plan["dense"][0].update(tensor="sample"), "is not what layer"),
    "negative scale": (lambda plan: activation(plan).update(scale=-1), "positive number"),
    "zero scale": (lambda plan: activation(plan).update(scale=0), "positive number"),
    "text scale": (lambda plan: activation(plan).update(scale="big"), "positive number"),
    "shift of too few channels": (
        lambda plan: activation(plan).update(shift=[0.0] * 3, smooth=None),
        "channels",
    ),
    "smooth of too many channels": (
        lambda plan: activation(plan).update(shift=None, smooth=[1.0] * 33),
        "channels",
    ),
    "other axis": (
        lambda plan: plan["dense"][0].update(channel_axis=-1),
        "channel_axis of 'down.act1:0' must be 1",
    ),
    "weight scales": (
        lambda plan: layer(plan).update(
            weight={"bits": 8, "scales": [0.1] * 7}, bias_correction=None
        ),
        "7 weight scales",
    ),
    "bias of too few channels": (
        lambda plan: layer(plan).update(weight=None, bias_correction=[0.1] * 3),
        "bias_correction",
    ),
    "wide bits": (lambda plan: activation(plan).update(bits=9), "integer from 2 to 8"),
    "no layers": (lambda plan: plan["dense"][0].update(layers=[]), "layers"),
    "layer twice": (
        lambda plan: plan["dense"][1]["layers"].append(layer(plan)),
        "keep one",
    ),
    "layer kept too": (
        lambda plan: plan["kept"].append(
            {"name": layer(plan)["name"], "op": "Conv", "reason": "mine"}
        ),
        "keep one",
    ),
    "unknown field": (lambda plan: plan.update(temperature=1), "has no field"),
    "missing field": (lambda plan: plan.pop("kept"), "lacks the field"),
    "codebook out of order": (
        lambda plan: plan["temporal"][0]["codebook"]["levels"].reverse(),
        "must be above the one before it",
    ),
    "nothing left": (lambda plan: plan.update(dense=[], temporal=[]), "quantizes no layer"),
}


@pytest.mark.parametrize("case", EDITS)
def test_edited_wrongly(planned: Command, case: str) -> None:
    change, mend = EDITS[case]
    edit(planned, change)
    for more in ((), (*FAST, "--stats", "new.npz")):
        line = planned.refused("model.onnx", "--plan", "edited.plan.json", "-o", "x.onnx", *more)
        assert mend in line


def test_layer_that_is_kept_may_be_quantized(planned: Command) -> None:
    """A plan may go beyond our own rules: the first layer, in int8."""

    def quantize_first(plan: Plan) -> None:
        plan["kept"] = [entry for entry in plan["kept"] if entry["name"] != "conv_in"]
        plan["dense"].append(
            {
                "tensor": "sample",
                "channel_axis": 1,
                "activation": {"bits": 8, "scale": 0.05, "shift": None, "smooth": None},
                "layers": [
                    {
                        "name": "conv_in",
                        "weight": {"bits": 8, "scales": np.full(32, 0.01).tolist()},
                        "bias_correction": None,
                        "sqnr": None,
                    }
                ],
            }
        )

    edit(planned, quantize_first)
    planned.done("model.onnx", "--plan", "edited.plan.json", "-o", "edited.onnx")
    model = onnx.load(planned.folder / "edited.onnx")
    assert nodes_before(model, "conv_in")[:2] == ["DequantizeLinear"] * 2


def test_edited_in_place(planned: Command) -> None:
    """The plan beside the output may be the one that is given; it is left as it is."""
    edit(planned, lambda plan: plan["dense"][0]["activation"].update(scale=0.5))
    edited = (planned.folder / "edited.plan.json").read_bytes()
    (planned.folder / "model.w8a8.plan.json").write_bytes(edited)
    result = planned.done("model.onnx", "--plan", "model.w8a8.plan.json")
    assert result.written == {"model.w8a8.onnx", "model.w8a8.report.json"}
