from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu import has_gpu
from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

Arrays = dict[str, npt.NDArray[np.generic]]


def trajectory(steps: int = 4) -> Arrays:
    sample = np.random.default_rng(0).standard_normal((steps, 1, 16, 8, 8)).astype(np.float32)
    timesteps = np.linspace(999, 0, steps).astype(np.int64).reshape(steps, 1)
    return {"sample": sample, "timestep": timesteps}


def with_value(value: float) -> Arrays:
    arrays = trajectory()
    arrays["sample"][2, 0, 0, 0, 0] = value
    return arrays


WRONG: dict[str, tuple[Arrays, str]] = {
    "missing": ({"sample": trajectory()["sample"]}, "no array for the model's input 'timestep'"),
    "extra": ({**trajectory(), "prompt": np.zeros(3)}, "'prompt' is no input of the model"),
    "shape": ({**trajectory(), "sample": np.zeros((4, 1, 3, 8, 8), np.float32)}, "has shape"),
    "rank": ({**trajectory(), "sample": np.zeros((16, 8), np.float32)}, "has shape"),
    "dtype": (
        {**trajectory(), "timestep": trajectory()["timestep"].astype(np.float32)},
        "convert it with .astype('int64')",
    ),
    "steps": ({**trajectory(), "timestep": np.zeros((3, 1), np.int64)}, "same leading extent"),
    "no-steps": ({**trajectory(0)}, "has no steps"),
    "nan": (with_value(np.nan), "holds NaN or Inf"),
    "inf": (with_value(np.inf), "holds NaN or Inf"),
    "objects": ({**trajectory(), "sample": np.array([None])}, "convert it to a numeric dtype"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(command: Command, case: str) -> None:
    arrays, mend = WRONG[case]
    np.savez(command.folder / "calls.npz", **arrays)  # type: ignore[arg-type]
    line = command.refused("model.onnx", "--calib", "calls.npz", "--stats", "new.npz")
    assert "calls.npz" in line
    assert mend in line


def test_one_wrong_file_of_a_folder(command: Command) -> None:
    (command.folder / "calls").mkdir()
    np.savez(command.folder / "calls/a.npz", **trajectory())  # type: ignore[arg-type]
    np.savez(command.folder / "calls/b.npz", **with_value(np.nan))  # type: ignore[arg-type]
    assert "b.npz, step 2" in command.refused("model.onnx", "--calib", "calls")


def test_empty_folder(command: Command) -> None:
    (command.folder / "calls").mkdir()
    assert "holds no .npz file" in command.refused("model.onnx", "--calib", "calls")


@pytest.mark.parametrize("name", ["calls.npz", "calls.json", "calls.py"])
@pytest.mark.parametrize("content", [b"", b"neither {", b"[1]", b"\xff\xfe"])
def test_damaged_files(command: Command, name: str, content: bytes) -> None:
    (command.folder / name).write_bytes(content)
    assert name in command.refused("model.onnx", "--calib", name)


def test_truncated_npz(command: Command) -> None:
    np.savez(command.folder / "calls.npz", **trajectory())  # type: ignore[arg-type]
    whole = (command.folder / "calls.npz").read_bytes()
    (command.folder / "calls.npz").write_bytes(whole[: len(whole) // 2])
    line = command.refused("model.onnx", "--calib", "calls.npz")
    assert "is not a complete .npz file" in line


def test_script_that_fails(command: Command) -> None:
    (command.folder / "calls.py").write_text("def load_data():\n    return 1 / 0\n")
    line = command.refused("model.onnx", "--calib", "calls.py")
    assert "calls.py, line 2: ZeroDivisionError" in line


def test_too_few_calls(command: Command) -> None:
    """A single call gives statistics, and nothing to measure on."""
    np.savez(command.folder / "calls.npz", **trajectory(1))  # type: ignore[arg-type]
    assert "not measured" in command.done("model.onnx", "--calib", "calls.npz").out


class TestGivenInputs:
    """The arrays of --inputs, for a model with a context."""

    SHAPES = ("--sampler", "flow", "--steps", "3", "--shapes", "sample:1x16x8x8")

    @pytest.mark.parametrize(
        ("array", "mend"),
        [
            (np.zeros((2, 1, 5, 32), np.float64), "convert it with .astype('float32')"),
            (np.zeros((2, 1, 5, 31), np.float32), "the model takes"),
            (np.zeros((5, 32), np.float32), "the model takes"),
            (np.zeros((0, 1, 5, 32), np.float32), "has no rows"),
            (np.full((2, 1, 5, 32), np.nan, np.float32), "holds NaN or Inf"),
        ],
        ids=["dtype", "shape", "rank", "no rows", "nan"],
    )
    def test_wrong(self, command: Command, array: npt.NDArray[np.generic], mend: str) -> None:
        write_small_unet(command.folder / "context.onnx", context=True)
        np.savez(command.folder / "prompts.npz", encoder_hidden_states=array)
        line = command.refused("context.onnx", *self.SHAPES, "--inputs", "prompts.npz")
        assert "--inputs" in line
        assert mend in line

    def test_of_no_input(self, command: Command) -> None:
        np.savez(command.folder / "prompts.npz", prompt=np.zeros((1, 32), np.float32))
        line = command.refused("model.onnx", *self.SHAPES, "--inputs", "prompts.npz")
        assert "'prompt' is no input of the model" in line

    def test_unknown_extent(self, command: Command) -> None:
        write_small_unet(command.folder / "context.onnx", context=True)
        line = command.refused("context.onnx", *self.SHAPES)
        assert "--shapes encoder_hidden_states:1x1x32" in line.replace("batchx", "1x")


class TestStatistics:
    @pytest.fixture
    def stats(self, command: Command) -> Path:
        command.done("model.onnx", *FAST, "--stats", "model.stats.npz")
        return command.folder / "model.stats.npz"

    def test_of_another_model(self, command: Command, stats: Path) -> None:
        write_small_unet(command.folder / "other.onnx", seed=1)
        line = command.refused("other.onnx", "--stats", stats.name)
        assert "belongs to another model" in line
        assert "delete it or give another path" in line

    @pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
    def test_truncated(self, command: Command, stats: Path, fraction: float) -> None:
        whole = stats.read_bytes()
        stats.write_bytes(whole[: int(len(whole) * fraction)])
        line = command.refused("model.onnx", "--stats", stats.name)
        assert "delete it and calibrate again" in line

    def test_flipped_bytes(self, command: Command, stats: Path) -> None:
        whole = bytearray(stats.read_bytes())
        for position in range(0, len(whole), 97):
            whole[position] ^= 0x55
        stats.write_bytes(bytes(whole))
        assert model_is_refused(command, stats)

    @pytest.mark.parametrize("array", ["site0.maximum", "site0.window0.values", "temporal0.values"])
    def test_nan(self, command: Command, stats: Path, array: str) -> None:
        edit(stats, array, lambda values: np.full_like(values, np.nan))
        line = command.refused("model.onnx", "--stats", stats.name)
        assert "NaN" in line
        assert "calibrate again" in line

    def test_wrong_channels(self, command: Command, stats: Path) -> None:
        edit(stats, "site0.maximum", lambda values: values[:, :-1])
        assert model_is_refused(command, stats)

    def test_that_lack_a_layer(self, command: Command, stats: Path) -> None:
        """As a version that did not look into bodies wrote them."""

        def without(header: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            held = json.loads(str(header))
            del held["output_elements"]["down.conv1"]
            return np.array(json.dumps(held))

        edit(stats, "header", without)
        line = command.refused("model.onnx", "--stats", stats.name)
        assert "knows nothing of layer 'down.conv1'" in line

    def test_other_npz(self, command: Command) -> None:
        np.savez(command.folder / "calls.npz", **trajectory())  # type: ignore[arg-type]
        line = command.refused("model.onnx", "--stats", "calls.npz")
        assert "is not a complete statistics file" in line

    def test_folder(self, command: Command) -> None:
        (command.folder / "stats").mkdir()
        assert "stats" in command.refused("model.onnx", *FAST, "--stats", "stats")

    def test_of_other_sites(self, command: Command) -> None:
        """Statistics made with fewer layers serve no run with more."""
        command.done("model.onnx", *FAST, "--keep", "down.conv1", "--stats", "fewer.npz")
        line = command.refused("model.onnx", "--stats", "fewer.npz", "-o", "out.onnx")
        assert "calibrate again" in line


def model_is_refused(command: Command, stats: Path) -> bool:
    line = command.refused("model.onnx", "--stats", stats.name)
    return stats.name in line and "calibrate again" in line


def edit(stats: Path, name: str, change: object) -> None:
    with np.load(stats) as data:
        arrays = {key: data[key] for key in data.files}
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    np.savez(stats, **arrays)
    assert json.loads(str(arrays["header"]))


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_no_gpu(command: Command) -> None:
    assert "use --provider cpu" in command.refused("model.onnx", *FAST, "--provider", "cuda")
