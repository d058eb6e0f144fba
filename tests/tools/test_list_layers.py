"""What `--keep` matches can be found out, and a forgotten model is told where to stand."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx
import pytest

from tests.tools.command import FAST, Command

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture
def traced(command: Command) -> Command:
    """The model as torch's exporter notes modules."""
    path = command.folder / "model.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        if node.name == "up.conv1":
            node.metadata_props.add(key=SCOPES, value="['', 'blocks.0.conv', 'conv2d']")
    onnx.save(model, path)
    return command


def row(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
    return line.split()


def test_lists_every_name(traced: Command) -> None:
    result = traced.done("model.onnx", "--list-layers")
    assert result.out.split("\n")[1].split() == ["node", "operator", "torch", "module", "weight"]
    model = onnx.load(traced.folder / "model.onnx")
    node = next(node for node in model.graph.node if node.name == "up.conv1")
    assert row(result.out, "up.conv1") == ["up.conv1", "Conv", "blocks.0.conv", node.input[1]]
    assert not result.written
    assert result.err == ""


def test_lists_them_as_json(traced: Command) -> None:
    result = traced.done("model.onnx", "--list-layers", "--json")
    assert not result.written
    assert result.err == ""
    report = traced.done("model.onnx", *FAST, "--json").json()
    assert result.json() == {"layers": report["layers"]}
    (entry,) = (layer for layer in report["layers"] if layer["name"] == "up.conv1")
    assert entry["module"] == "blocks.0.conv"


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_keep_matches_what_is_listed(traced: Command, column: int) -> None:
    name = row(traced.done("model.onnx", "--list-layers").out, "up.conv1")[column]
    report = traced.done("model.onnx", *FAST, "--keep", name, "--json").json()
    assert {"name": "up.conv1", "op": "Conv", "reason": f"--keep {name}"} in report["kept"]


def test_verbose_lists_them_too(traced: Command) -> None:
    out = traced.done("model.onnx", *FAST, "-v").out
    assert "blocks.0.conv" in row(out, "up.conv1")
    report = json.loads((traced.folder / "model.w8a8.report.json").read_text())
    (entry,) = (layer for layer in report["layers"] if layer["name"] == "up.conv1")
    assert (entry["op"], entry["module"]) == ("Conv", "blocks.0.conv")


@pytest.mark.parametrize(
    "arguments",
    [("--calib", "calls", "model.onnx"), ("--shapes", "sample:1x16x8x8", "model.onnx")],
)
def test_model_behind_an_option_of_many(command: Command, arguments: Sequence[str]) -> None:
    for more in ((), ("--recipe", "r.toml")):
        (command.folder / "r.toml").write_text("json = true\n")
        result = command(*more, *arguments)
        assert result.code == 2
        assert (
            "put them first, before the options: --calib, --merge-stats and --shapes take all"
            in result.err
        )


def test_model_behind_other_options(command: Command) -> None:
    """Negative control."""
    command.done(*FAST, "--bits", "w8a8", "--", "model.onnx")
    command.done("--steps", "2", "model.onnx", *FAST)
