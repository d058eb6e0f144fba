from __future__ import annotations

import pytest

from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

WRONG = [
    (["--bits", "int8"], "write it as w8a8"),
    (["--bits", "w1a8"], "use 2 to 8, or 16"),
    (["--bits", "w8a9"], "use 2 to 8, or 16"),
    (["--bits", ""], "write it as w8a8"),
    (["--algorithm", "magic"], "use one of qvd, shift"),
    (["--algorithm", ""], "use one of qvd, shift"),
    (["--temporal", "magic"], "use one of"),
    (["--target", "tpu"], "use one of trt, rtx, trt8, ort"),
    (["--dtype", "fp64"], "use one of fp32, fp16, bf16"),
    (["--htdq", "magic"], "use one of function, inline, plugin"),
    (["--htdq", ""], "use one of function, inline, plugin"),
    (["--target", "trt8", "--dtype", "fp16"], "trtexec --int8 --fp16"),
    (["--target", "ort", "--dtype", "bf16"], "takes fp32, fp16"),
    (["--target", "ort", "--htdq", "plugin"], "ort cannot load the plugin; give --htdq function"),
    (["--target", "rtx", "--htdq", "plugin"], "rtx cannot load the plugin; give --htdq function"),
    (["--target", "trt8", "--htdq", "function"], "cannot read functions in a file; give --htdq in"),
    (["--steps", "0"], "use 1 to 1000"),
    (["--samples", "0"], "use 1 or more"),
    (["--seed", "-1"], "use 0 or more"),
    (["--guidance", "nan"], "use a finite number"),
    (["--guidance", "7.5"], "uncond_"),
    (["--sampler", "euler"], "use ddim, flow, edm"),
    (["--sampler", "ddim", "--prediction", "velocity"], "use epsilon, v_prediction or sample"),
    (["--sampler", "ddim", "--schedule", "steep"], "--schedule"),
    (["--sampler", "ddim", "--spacing", "wide"], "--spacing"),
    (["--shift", "0"], "--shift"),
    (["--shift", "nan"], "--shift"),
    (["--shapes", "sample"], "write it as sample:1x4x16x32x32"),
    (["--shapes", "noise:1x16x8x8"], "is no input of the model"),
    (["--shapes", "sample:1x17x8x8"], "the model takes"),
    (["--inputs", "absent.npz"], "does not exist"),
    (["--calib", "absent.npz"], "does not exist"),
    (["--calib", "model.onnx"], "is no known kind of calibration data"),
    (["--min-sqnr", "20", "--algorithm", "minmax"], "--min-sqnr needs an algorithm"),
    (["--min-sqnr", "nan"], "--min-sqnr"),
    (["--min-sqnr", "500", "--temporal", "float"], "quantizes no layer; see --keep, --min-sqnr"),
]


@pytest.mark.parametrize(("arguments", "mend"), WRONG, ids=[" ".join(value) for value, _ in WRONG])
def test_wrong_value(command: Command, arguments: list[str], mend: str) -> None:
    assert mend in command.refused("model.onnx", *FAST, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["--bit", "w8a8"], ["--steps", "many"], ["--provider", "tpu"], ["--calib"]],
    ids=" ".join,
)
def test_usage_error(command: Command, arguments: list[str]) -> None:
    line = command.refused("model.onnx", *arguments)
    assert line.endswith("; see qvd-export --help")
    assert arguments[0] in line


def test_no_model(command: Command) -> None:
    assert command().code == 2


class TestOutput:
    def test_is_the_input(self, command: Command) -> None:
        mend = "would overwrite the input"
        assert mend in command.refused("model.onnx", *FAST, "-o", "model.onnx")
        assert mend in command.refused("model.onnx", *FAST, "-o", command.folder / "model.onnx")
        (command.folder / "sub").mkdir()
        assert mend in command.refused("model.onnx", *FAST, "-o", "sub/../model.onnx")

    def test_is_the_input_through_links(self, command: Command) -> None:
        mend = "would overwrite the input"
        (command.folder / "link.onnx").symlink_to("model.onnx")
        assert mend in command.refused("model.onnx", *FAST, "-o", "link.onnx")
        assert mend in command.refused("link.onnx", *FAST, "-o", "model.onnx")
        (command.folder / "hard.onnx").hardlink_to(command.folder / "model.onnx")
        assert mend in command.refused("model.onnx", *FAST, "-o", "hard.onnx")

    def test_side_files_are_inputs(self, command: Command) -> None:
        """What is written beside the output overwrites no input either."""
        for name in ("calls.report.json", "calls.plan.json"):
            (command.folder / name).write_text("[]")
            line = command.refused("model.onnx", "--calib", name, "-o", "calls.onnx")
            assert f"would overwrite the input {name}" in line

    def test_is_the_external_data(self, command: Command) -> None:
        write_small_unet(command.folder / "big.onnx", external_data=True)
        line = command.refused("model.onnx", *FAST, "-o", "big.onnx", "--calib", "big.onnx.data")
        assert "big.onnx.data would overwrite the input big.onnx.data" in line
        (command.folder / "big.w8a8.onnx.data").hardlink_to(command.folder / "big.onnx.data")
        line = command.refused("big.onnx", *FAST)
        assert "big.w8a8.onnx.data would overwrite the input big.onnx.data" in line

    def test_is_a_statistics_file(self, command: Command) -> None:
        line = command.refused("model.onnx", *FAST, "--stats", "out.onnx", "-o", "out.onnx")
        assert "out.onnx" in line
        line = command.refused("model.onnx", *FAST, "--stats", "model.onnx")
        assert "model.onnx" in line

    def test_has_another_suffix(self, command: Command) -> None:
        assert "must end in .onnx" in command.refused("model.onnx", *FAST, "-o", "model.engine")

    def test_is_a_folder(self, command: Command) -> None:
        (command.folder / "out.onnx").mkdir()
        assert "is a folder; give a file name" in command.refused(
            "model.onnx", *FAST, "-o", "out.onnx"
        )

    def test_folder_cannot_be_made(self, command: Command) -> None:
        (command.folder / "file").write_text("")
        line = command.refused("model.onnx", *FAST, "-o", "file/below/out.onnx")
        assert "file/below" in line
        line = command.refused("model.onnx", *FAST, "--stats", "file/stats.npz")
        assert "file" in line

    def test_folder_is_read_only(self, command: Command) -> None:
        line = command.refused("model.onnx", *FAST, "-o", "/proc/none/out.onnx")
        assert "/proc" in line

    def test_folder_is_made(self, command: Command) -> None:
        result = command.done("model.onnx", *FAST, "-o", "new/folder/out.onnx")
        assert "new/folder/out.onnx" in result.written
