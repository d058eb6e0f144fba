"""What `qvd-validate` refuses, always in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

from tests.models.small_unet import write_small_unet
from tests.tools.validate.validated import OUTPUT, Validate, calls, run, write_trtexec


@pytest.fixture
def outputs(validate: Validate, tmp_path: Path) -> list[Path]:
    return [
        write_trtexec(tmp_path / f"{index}.json", output)
        for index, output in enumerate(run(validate.models.qdq, calls()))
    ]


class TestRecordedOutputs:
    def test_too_few(self, validate: Validate, outputs: list[Path]) -> None:
        line = validate.refused("--engine-outputs", *outputs[:2])
        assert "2 outputs for 3 calls" in line

    def test_too_many(self, validate: Validate, outputs: list[Path]) -> None:
        assert "4 outputs for 3 calls" in validate.refused("--engine-outputs", *outputs, outputs[0])

    def test_too_few_for_a_script(self, validate: Validate, outputs: list[Path]) -> None:
        """A script does not say beforehand how many calls it makes."""
        script = outputs[0].with_name("loader.py")
        script.write_text(
            "import numpy as np\n\ndef load_data():\n    for step in (900, 500, 100):\n"
            "        yield {'sample': np.zeros((1, 16, 8, 8), np.float32),"
            " 'timestep': np.array([step])}\n"
        )
        arguments = ["--calib", script, "--engine-outputs", *outputs]
        assert validate(*arguments, calib=False).code == 0
        assert "2 outputs for 3 calls" in validate.refused(*arguments[:-1], calib=False)
        line = validate.refused(*arguments, outputs[0], calib=False)
        assert "4 outputs for 3 calls" in line

    def test_other_name(self, validate: Validate, outputs: list[Path]) -> None:
        write_trtexec(outputs[1], np.zeros((1, 16, 8, 8), np.float32), "else")
        line = validate.refused("--engine-outputs", *outputs)
        assert f"no output '{OUTPUT}'" in line
        assert "['else']" in line

    def test_other_shape(self, validate: Validate, outputs: list[Path]) -> None:
        write_trtexec(outputs[1], np.zeros((1, 16, 4, 4), np.float32))
        line = validate.refused("--engine-outputs", *outputs)
        assert "[1, 16, 4, 4]" in line
        assert "[1, 16, 8, 8]" in line

    def test_values_that_do_not_fill_the_dimensions(
        self, validate: Validate, outputs: list[Path]
    ) -> None:
        outputs[0].write_text(outputs[0].read_text().replace("1x16x8x8", "2x16x8x8"))
        assert "as many values" in validate.refused("--engine-outputs", *outputs)

    def test_nan_as_trtexec_writes_it(self, validate: Validate, outputs: list[Path]) -> None:
        text = outputs[2].read_text()
        outputs[2].write_text(text.replace('"values" : [ ', '"values" : [ -nan, '))
        assert "holds NaN or Inf" in validate.refused("--engine-outputs", *outputs)

    @pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"lst": 1}', "\x80"])
    def test_other_files(self, validate: Validate, outputs: list[Path], text: str) -> None:
        outputs[0].write_text(text, encoding="latin-1")
        assert "trtexec --exportOutput" in validate.refused("--engine-outputs", *outputs)

    def test_missing_file(self, validate: Validate) -> None:
        assert "none.json does not exist" in validate.refused("--engine-outputs", "none.json")

    def test_outputs_of_two_runners(self, validate: Validate, tmp_path: Path) -> None:
        results = RunResults()
        for name in ("onnxrt", "trt"):
            arrays = run(validate.models.qdq, calls())
            results.add([{OUTPUT: array} for array in arrays], runner_name=name)
        save_json(results, str(tmp_path / "two.json"))
        line = validate.refused("--engine-outputs", tmp_path / "two.json")
        assert "2 runners, ['onnxrt', 'trt']" in line


class TestModels:
    def test_swapped(self, validate: Validate) -> None:
        line = validate.refused(qdq=validate.models.float_model)
        assert "holds no DequantizeLinear" in line

    def test_of_other_inputs(self, validate: Validate, tmp_path: Path) -> None:
        other = write_small_unet(tmp_path / "other.onnx", context=True)
        assert "encoder_hidden_states" in validate.refused(qdq=other)

    def test_missing(self, validate: Validate) -> None:
        assert "none.onnx does not exist" in validate.refused(qdq=Path("none.onnx"))

    def test_missing_engine(self, validate: Validate) -> None:
        assert "none.plan does not exist" in validate.refused("--engine", "none.plan")

    def test_engine_that_is_a_folder(self, validate: Validate, tmp_path: Path) -> None:
        line = validate.refused("--engine", tmp_path)
        assert f"{tmp_path} is a folder; give an engine of qvd-build or trtexec" in line


class TestCalls:
    def test_shapes_that_the_graph_cannot_run(self, validate: Validate, tmp_path: Path) -> None:
        sample = np.zeros((1, 1, 16, 0, 8), np.float32)
        np.savez(tmp_path / "odd.npz", sample=sample, timestep=np.array([[5]]))
        line = validate.refused("--calib", tmp_path / "odd.npz", calib=False)
        assert "does not run on shapes {'sample': [1, 16, 0, 8]" in line

    def test_sampler_is_checked_before_the_calls(self, validate: Validate) -> None:
        line = validate.refused("--free-run", "--sampler", "none", "--shapes", "sample:1x16x8x8")
        assert "--sampler" in line


class TestOptions:
    def test_nothing_to_compare_on(self, validate: Validate) -> None:
        assert "--calib" in validate.refused(calib=False)

    @pytest.mark.parametrize(
        "arguments",
        [["--min-sqnr", "3"], ["--save-raw", "raw"], ["--engine-outputs", "out.json"]],
    )
    def test_that_need_calls(self, validate: Validate, arguments: list[str]) -> None:
        line = validate.refused("--free-run", *arguments, calib=False)
        assert f"{arguments[0]} needs recorded calls" in line

    @pytest.mark.parametrize("option", [["--steps", "3"], ["--shapes", "sample:1x16x8x8"]])
    def test_sampling_without_a_run(self, validate: Validate, option: list[str]) -> None:
        assert f"{option[0]} is for sampling; give --free-run" in validate.refused(*option)

    def test_engine_twice(self, validate: Validate) -> None:
        line = validate.refused("--engine", "a.plan", "--engine-outputs", "b.json")
        assert "exclude each other" in line

    @pytest.mark.parametrize("value", ["nan", "0", "-1", "inf"])
    def test_limits(self, validate: Validate, value: str) -> None:
        line = validate.refused("--max-implementation-error", value)
        assert "--max-implementation-error" in line

    def test_limit_without_an_engine(self, validate: Validate) -> None:
        assert "needs --engine" in validate.refused("--max-implementation-error", "0.1")

    def test_raw_folder_with_files(self, validate: Validate, tmp_path: Path) -> None:
        (tmp_path / "old.bin").write_text("")
        assert "is not empty" in validate.refused("--save-raw", tmp_path)

    def test_int32_of_nothing(self, validate: Validate) -> None:
        assert "--save-raw" in validate.refused("--raw-int32")
