"""`qvd-build` never writes over what it reads, whichever option names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.small_unet import write_small_unet
from tests.tools.command import contents
from tests.tools.engine_build.command import PRINT, SHAPES, BuildCommand

READ = {
    "trt.onnx": (),
    "big.onnx.data": (),
    "lib.so": ("--plugin", "lib.so"),
    "shapes.toml": ("--recipe", "shapes.toml"),
}
"""Every file that the command may read, and the options that name it."""

WRITES = ("--output", "--timing-cache", "--log")


@pytest.mark.parametrize("option", WRITES)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("linked", [False, True])
def test_refused(build_command: BuildCommand, option: str, name: str, linked: bool) -> None:
    folder = build_command.folder
    write_small_unet(folder / "big.onnx", external_data=True)
    (folder / "shapes.toml").write_text("optimization-level = 1\n")
    written = Path(name)
    if linked:
        written = Path("link")
        (folder / written).symlink_to(name)
    model = "big.onnx" if name == "big.onnx.data" else "trt.onnx"
    line = build_command.refused(model, *SHAPES, *READ[name], option, written)
    assert f"{option} {written} would overwrite the input {name}" in line


@pytest.mark.parametrize("name", ["trt.onnx", "lib.so"])
def test_report_beside_the_engine(build_command: BuildCommand, name: str) -> None:
    """`x.build.json` is written with `x.engine`."""
    (build_command.folder / "x.build.json").symlink_to(name)
    arguments = ("trt.onnx", *SHAPES, "--plugin", "lib.so", "-o", "x.engine")
    line = build_command.refused(*arguments)
    assert f"x.build.json would overwrite the input {name}" in line


def test_printed_command(build_command: BuildCommand) -> None:
    """trtexec would replace the file, too."""
    line = build_command.refused("trt.onnx", *PRINT, "10", "-o", "trt.onnx")
    assert "--output trt.onnx would overwrite the input trt.onnx" in line


def test_current_folder_is_no_model(build_command: BuildCommand) -> None:
    before = contents(build_command.folder)
    assert ". is a folder; name an ONNX model" in build_command.refused(".", *SHAPES)
    assert contents(build_command.folder) == before
