"""`qvd-export` never writes over what it reads, whichever option names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvd_trt.export.atomic_files import refuse_overwriting
from qvd_trt.export.errors import UserError
from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

READ = {
    "big.onnx": (),
    "big.onnx.data": (),
    "calls": ("--calib", "calls"),
    "calls/one.npz": ("--calib", "calls"),
    "calls.json": ("--calib", "calls.json"),
    "load.py": ("--calib", "load.py"),
    "prompts.npz": ("--inputs", "prompts.npz"),
    "mine.plan.json": ("--plan", "mine.plan.json"),
    "mine.toml": ("--recipe", "mine.toml"),
}
"""Every file that the command may read, and the options that name it."""

WRITES = {
    "out.onnx": ("-o", "out.onnx"),
    "out.onnx.data": ("-o", "out.onnx"),
    "out.plan.json": ("-o", "out.onnx"),
    "out.report.json": ("-o", "out.onnx"),
    "out.npz": ("-o", "x.onnx", "--stats", "out.npz"),
}
"""Every file that it writes, and the option that it follows from."""


@pytest.fixture
def filled(command: Command) -> Command:
    """The command in a folder with all that can be read."""
    folder = command.folder
    write_small_unet(folder / "big.onnx", external_data=True)
    sample, timestep = np.zeros((2, 1, 16, 8, 8), np.float32), np.array([[9], [4]])
    (folder / "calls").mkdir()
    np.savez(folder / "calls" / "one.npz", sample=sample, timestep=timestep)
    np.savez(folder / "prompts.npz", sample=sample[0])
    (folder / "calls.json").write_text("[]")
    (folder / "load.py").write_text("def load_data():\n    return []\n")
    (folder / "mine.toml").write_text("verbose = true\n")
    (folder / "mine.plan.json").write_text("{}")
    return command


@pytest.mark.parametrize("written", WRITES)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("hard", [False, True])
def test_refused(filled: Command, written: str, name: str, hard: bool) -> None:
    link = filled.folder / written
    if not hard:
        link.symlink_to(name)
    elif (filled.folder / name).is_dir():
        pytest.skip("folders have no hard links")
    else:
        link.hardlink_to(filled.folder / name)
    if (written, name) == ("out.plan.json", "mine.plan.json"):
        pytest.skip("a given plan may lie where the output's does: it is left as it is")
    line = filled.refused("big.onnx", *FAST, *READ[name], *WRITES[written])
    assert f"{written} would overwrite the input {name}" in line


def test_outputs_of_one_place(filled: Command) -> None:
    line = filled.refused("big.onnx", *FAST, "-o", "x.onnx", "--stats", "x.npz/../x.onnx")
    assert "--stats" in line
    (filled.folder / "s.npz").symlink_to("x.report.json")
    line = filled.refused("big.onnx", *FAST, "-o", "x.onnx", "--stats", "s.npz")
    assert "--stats s.npz is the file of the report of --output, too" in line


class TestHelper:
    def test_dangling_link_to_an_output(self, tmp_path: Path) -> None:
        """Neither exists yet, and they would become one file."""
        (tmp_path / "a").symlink_to("b")
        with pytest.raises(UserError, match=r"--two .*b is the file of --one, too"):
            refuse_overwriting([("--one", tmp_path / "a"), ("--two", tmp_path / "b")], [])

    def test_folder_reached_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "x.npz").touch()
        (tmp_path / "link").symlink_to("real")
        with pytest.raises(UserError, match=r"would overwrite the input .*link/x.npz"):
            refuse_overwriting([("--one", tmp_path / "real" / "x.npz")], [tmp_path / "link"])

    def test_relative_and_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("x").touch()
        with pytest.raises(UserError, match="--one x would overwrite"):
            refuse_overwriting([("--one", Path("x"))], [tmp_path / "x"])

    def test_names_alone_do_not_count(self, tmp_path: Path) -> None:
        """Negative control: other files, new files beside inputs, options not given."""
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x").touch()
        (tmp_path / "x").touch()
        written = [("--one", tmp_path / "x"), ("--two", tmp_path / "in" / "new"), ("--no", None)]
        refuse_overwriting(written, [tmp_path / "in", None, tmp_path / "absent"])
        assert [path.name for path in (tmp_path / "in").iterdir()] == ["x"]
