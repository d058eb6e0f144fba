"""An export does not lose a plan that somebody edited where it writes its own."""

from __future__ import annotations

import json

import pytest

from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

PLAN, BACKUP = "model.w8a8.plan.json", "model.w8a8.plan.json.bak"


def edit(command: Command, reason: str) -> str:
    """Change the text of the plan; returns it."""
    path = command.folder / PLAN
    plan = json.loads(path.read_text())
    plan["kept"][0]["reason"] = reason
    path.write_text(json.dumps(plan))
    return path.read_text()


@pytest.fixture
def exported(command: Command) -> Command:
    command.done("model.onnx", *FAST, "--stats", "s.npz")
    return command


def again(command: Command, *arguments: str) -> str:
    """Export to the same place; returns what it says on stderr."""
    return command.done("model.onnx", "--stats", "s.npz", *arguments).err


def test_is_kept(exported: Command) -> None:
    edited = edit(exported, "mine")
    result = exported.done("model.onnx", "--stats", "s.npz", "--json")
    assert f"{PLAN} is not what the last export wrote there, and is kept as {BACKUP}" in result.err
    assert (exported.folder / BACKUP).read_text() == edited
    assert "mine" not in (exported.folder / PLAN).read_text()
    assert BACKUP in result.json()["written"]
    report = json.loads((exported.folder / "model.w8a8.report.json").read_text())
    assert any(BACKUP in warning for warning in report["warnings"])
    assert again(exported) == ""
    second = edit(exported, "mine again")
    assert f"kept as {BACKUP}2" in again(exported)
    assert (exported.folder / f"{BACKUP}2").read_text() == second
    assert (exported.folder / BACKUP).read_text() == edited


def test_is_kept_without_a_report_that_tells(exported: Command) -> None:
    edit(exported, "mine")
    (exported.folder / "model.w8a8.report.json").write_text("{}")
    assert BACKUP in again(exported)


def test_is_kept_when_another_plan_is_given(exported: Command) -> None:
    (exported.folder / "other.plan.json").write_bytes((exported.folder / PLAN).read_bytes())
    edited = edit(exported, "mine")
    told = exported.done("model.onnx", "--plan", "other.plan.json", "-o", "model.w8a8.onnx").err
    assert BACKUP in told
    assert (exported.folder / BACKUP).read_text() == edited


def test_ours_is_overwritten(exported: Command) -> None:
    """Negative control: other options, the same again, and no report to tell."""
    assert again(exported, "--algorithm", "minmax") == ""
    (exported.folder / "model.w8a8.report.json").unlink()
    assert again(exported, "--algorithm", "minmax") == ""
    assert not (exported.folder / BACKUP).exists()


def test_given_plan_stays_and_counts_as_ours(exported: Command) -> None:
    edited = edit(exported, "mine")
    exported.done("model.onnx", "--plan", PLAN, "-o", "model.w8a8.onnx")
    assert (exported.folder / PLAN).read_text() == edited
    assert not (exported.folder / BACKUP).exists()


def test_everything_written_is_listed(command: Command) -> None:
    write_small_unet(command.folder / "big.onnx", external_data=True)
    result = command.done("big.onnx", *FAST, "--stats", "s.npz", "-o", "out/x.onnx", "--json")
    written = result.json()["written"]
    assert set(written) == result.written - {"out"}
    assert {"out/x.onnx", "out/x.onnx.data", "s.npz"} < set(written)
    result = command.done("big.onnx", "--stats", "s.npz", "-o", "out/x.onnx")
    lines = result.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("written"))
    listed = [line.removeprefix("written").strip() for line in lines[start : start + 4]]
    assert set(listed) == {
        f"out/x{end}" for end in (".onnx", ".onnx.data", ".plan.json", ".report.json")
    }
