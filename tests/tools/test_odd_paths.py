"""Pipes, devices, dangling links, names that are no text, files that claim too much."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qvd_trt.calibrators.statistics.stats_file import load_stats
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.plan_json import load_plan
from tests.tools.command import FAST, Command


def test_pipes_are_told_and_not_waited_for(command: Command) -> None:
    for name in ("calls.npz", "calls.json", "load.py", "p.plan.json"):
        os.mkfifo(command.folder / name)
    (command.folder / "gone.npz").symlink_to("none.npz")
    for arguments, said in [
        (("--calib", "calls.npz"), "calls.npz is a pipe, which cannot be read twice"),
        (("--calib", "calls.json"), "calls.json is a pipe"),
        (("--calib", "load.py"), "load.py is a pipe"),
        (("--inputs", "calls.npz"), "calls.npz is a pipe"),
        (("--plan", "p.plan.json"), "--plan: p.plan.json is a pipe"),
        (("--calib", "/dev/null"), "/dev/null is a device"),
        (("--calib", "gone.npz"), "gone.npz is a link to none.npz, which does not exist"),
        (("--calib", "none.npz"), "none.npz does not exist"),
        (("--inputs", "."), ". is a folder"),
    ]:
        assert said in _refused(command, arguments)


def test_models_and_statistics_that_are_no_files(command: Command) -> None:
    os.mkfifo(command.folder / "pipe.onnx")
    (command.folder / "gone.onnx").symlink_to("none.onnx")
    for model, said in [
        ("pipe.onnx", "pipe.onnx is a pipe, which cannot be read twice; give"),
        ("/dev/null", "/dev/null is a device; give"),
        ("gone.onnx", "gone.onnx is a link to none.onnx, which does not exist; give"),
        ("model.onnx/x.onnx", "model.onnx/x.onnx cannot be reached (Not a directory); give"),
    ]:
        assert command.main([model, *FAST, "-o", "out.onnx"]) == 2
        assert said in command._capsys.readouterr().err
    for reader, said in [
        (load_stats, "--stats: pipe.onnx is a pipe"),
        (load_plan, "--plan: pipe.onnx is a pipe"),
    ]:
        with pytest.raises(UserError, match=said):
            reader(Path("pipe.onnx"))


def _refused(command: Command, arguments: Sequence[str]) -> str:
    """As `command.refused`, which would wait for the pipes to be written."""
    assert command.main(["model.onnx", *FAST, *arguments]) == 2
    err = command._capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_output_that_is_a_pipe(command: Command) -> None:
    os.mkfifo(command.folder / "model.w8a8.report.json")
    assert "is a pipe, which cannot be read twice; remove it" in _refused(command, ())
    assert not list(command.folder.glob("*.plan.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        (os.fsdecode(b"m\xff.onnx"),),
        ("model.onnx", "-o", os.fsdecode(b"m\xff.onnx")),
        ("model.onnx", "--calib", "a.npz", os.fsdecode(b"m\xff.npz")),
    ],
    ids=["model", "output", "calib"],
)
def test_names_that_are_no_text(command: Command, arguments: Sequence[str]) -> None:
    assert r"m\xff" in (line := command.refused(*arguments, *FAST))
    assert "is not UTF-8" in line


def test_other_alphabets_are_text(command: Command) -> None:
    """Negative control."""
    (command.folder / "模型").mkdir()
    result = command.done("model.onnx", *FAST, "-o", "模型/é.onnx")
    assert "模型/é.onnx" in result.out


def test_npz_that_claims_terabytes(command: Command) -> None:
    sample = np.zeros((2, 1, 16, 8, 8), np.float32)
    np.savez(command.folder / "a.npz", sample=sample, timestep=np.array([[9], [4]]))
    with (
        zipfile.ZipFile(command.folder / "a.npz") as honest,
        zipfile.ZipFile(command.folder / "b.npz", "w") as lying,
    ):
        for name in honest.namelist():
            content = honest.read(name)
            lying.writestr(name, content.replace(b"(2, 1, 16", b"(2, 9999999, 16", 1))
    line = command.refused("model.onnx", "--inputs", "b.npz")
    assert "b.npz is not a complete .npz file (sample.npy claims 81919991808 bytes and has" in line
    assert "claims" in command.refused("model.onnx", "--calib", "b.npz")


def test_report_path_is_a_device(command: Command) -> None:
    """Replaced by a file, it would be missing for everybody."""
    (command.folder / "x.report.json").symlink_to("/dev/null")
    assert "is a device" in _refused(command, ("-o", "x.onnx"))
    assert Path("/dev/null").is_char_device()
