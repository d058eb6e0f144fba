"""`qvd-validate` never writes over what it reads, whichever option names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.models.small_unet import write_small_unet
from tests.tools.command import contents
from tests.tools.validate.validated import Models, Validate, calls, run, write_trtexec

OPTIONS = ("--report", "--save-inputs", "--save-outputs", "--save-raw")

READ = {
    "model.onnx": (),
    "big.onnx.data": (),
    "qdq.onnx": (),
    "calls.npz": (),
    "folder": ("--calib", "folder"),
    "folder/more.npz": ("--calib", "folder"),
    "model.engine": ("--engine", "model.engine"),
    "float.engine": ("--float-engine", "float.engine"),
    "plugin.so": ("--plugin", "plugin.so"),
    "outputs": ("--engine-outputs", "outputs"),
    "outputs/out_1.json": ("--engine-outputs", "outputs"),
    "prompts.npz": ("--free-run", "--inputs", "prompts.npz"),
    "farm.toml": ("--recipe", "farm.toml"),
}
"""Every file that the command may read, and the options that name it."""


@pytest.fixture
def folder(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with all that can be read."""
    for name in ("model.onnx", "qdq.onnx", "calls.npz"):
        shutil.copy(models.folder / name, tmp_path)
    write_small_unet(tmp_path / "big.onnx", external_data=True)
    (tmp_path / "folder").mkdir()
    shutil.copy(models.folder / "calls.npz", tmp_path / "folder" / "more.npz")
    (tmp_path / "outputs").mkdir()
    for index, output in enumerate(run(models.qdq, calls())):
        write_trtexec(tmp_path / "outputs" / f"out_{index}.json", output)
    for name in ("model.engine", "float.engine", "plugin.so"):
        (tmp_path / name).write_bytes(b"built")
    np.savez(tmp_path / "prompts.npz", sample=np.zeros((1, 16, 8, 8), np.float32))
    (tmp_path / "farm.toml").write_text("json = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(folder: Path, models: Models, capsys: pytest.CaptureFixture[str]) -> Validate:
    """The command on the copies."""
    return Validate(Models(folder), capsys)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link", "other spelling"])
def test_refused(here: Validate, folder: Path, option: str, name: str, way: str) -> None:
    if way == "hard link" and (folder / name).is_dir():
        pytest.skip("folders have no hard links")
    written = folder / name
    if way == "symbolic link":
        written = folder / "link"
        written.symlink_to(name)
    elif way == "hard link":
        written = folder / "link"
        written.hardlink_to(folder / name)
    elif way == "other spelling":
        written = folder / "folder" / ".." / name
    before = contents(folder)
    arguments: list[object] = [*READ[name], option, written]
    if name == "big.onnx.data":
        here = Validate(_Big(folder), here._capsys)
    # Again, as a second --calib replaces the first.
    line = here.refused(*arguments, calib="--calib" not in arguments)
    assert f"{option} {written} would overwrite the input" in line
    assert contents(folder) == before


class _Big(Models):
    """Its float model has its weights in a file of their own."""

    @property
    def float_model(self) -> Path:
        return self.folder / "big.onnx"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--report", "same"), ("--save-inputs", "same")),
        (("--save-inputs", "same"), ("--save-outputs", "folder/../same")),
        (("--report", "raw/load_inputs.txt"), ("--save-raw", "raw")),
    ],
)
def test_outputs_of_one_place(
    here: Validate, folder: Path, first: tuple[str, str], second: tuple[str, str]
) -> None:
    before = contents(folder)
    line = here.refused(*first, *second)
    assert f"{second[0]} {second[1]}" in line
    assert f"{first[0]}, too" in line
    assert contents(folder) == before


def test_raw_folder_that_is_a_file(here: Validate, folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    assert "--save-raw: notes.txt is no folder" in here.refused("--save-raw", "notes.txt")


@pytest.mark.parametrize("option", OPTIONS[:3])
def test_folder_is_known_before_the_calls(here: Validate, folder: Path, option: str) -> None:
    (folder / "taken").mkdir()
    assert f"{option} taken is a folder" in here.refused(option, "taken")
    assert f"{folder}/calls.npz" in here.refused(option, folder / "calls.npz" / "below")


def test_other_places_are_written(here: Validate, folder: Path) -> None:
    """Negative control: beside what is read, and over what a former run wrote."""
    options = [word for option in OPTIONS[:3] for word in (option, f"new{option}.json")]
    for _ in range(2):
        assert here(*options).code == 0
    assert here("--save-raw", "folder/raw").code == 0
    assert {path.name for path in folder.glob("new*")} == {*options[1::2]}
