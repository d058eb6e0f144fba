"""What the command makes of good inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from polygraphy.json import save_json

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST, Command

LOADER = """\
import numpy as np

def load_data():
    random = np.random.default_rng(0)
    for step in np.linspace(999, 0, 10).astype(np.int64):
        sample = random.standard_normal((1, 16, 8, 8)).astype(np.float32)
        yield {"sample": sample, "timestep": step.reshape(1)}
"""


def record(path: Path, steps: int = 5, seed: int = 0) -> Path:
    """Write one trajectory's calls to an `.npz` file."""
    random = np.random.default_rng(seed)
    np.savez(
        path,
        sample=random.standard_normal((steps, 1, 16, 8, 8)).astype(np.float32),
        timestep=np.linspace(999, 0, steps).astype(np.int64).reshape(steps, 1),
    )
    return path


def quantized_ops(model: onnx.ModelProto) -> set[str]:
    """Names of the layers whose weight comes out of a DequantizeLinear."""
    producers = {output: node for node in model.graph.node for output in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and (producer := producers.get(node.input[1])) is not None
        and producer.op_type == "DequantizeLinear"
    }


class TestCalibrationSources:
    def test_folder(self, command: Command) -> None:
        (command.folder / "calls").mkdir()
        for index in range(3):
            record(command.folder / "calls" / f"{index}.npz", seed=index)
        report = command.done("model.onnx", "--calib", "calls", "--json").json()
        assert report["calibration"] == "3 files of calls, 15 calls"
        assert len(report["held_out"]) == 5

    def test_single_file(self, command: Command) -> None:
        record(command.folder / "calls.npz", steps=10)
        report = command.done("model.onnx", "--calib", "calls.npz", "--json").json()
        assert report["calibration"] == "1 file of calls.npz, 10 calls"
        assert len(report["held_out"]) == 2

    def test_several_paths(self, command: Command) -> None:
        files = [record(command.folder / f"{index}.npz", seed=index) for index in range(2)]
        report = command.done("model.onnx", "--calib", *files, "--json").json()
        assert len(report["held_out"]) == 5

    def test_polygraphy_json(self, command: Command) -> None:
        random = np.random.default_rng(0)
        feeds = [
            {
                "sample": random.standard_normal((1, 16, 8, 8)).astype(np.float32),
                "timestep": np.array([step]),
            }
            for step in range(0, 1000, 100)
        ]
        save_json(feeds, str(command.folder / "calls.json"))
        report = command.done("model.onnx", "--calib", "calls.json", "--json").json()
        assert report["calibration"] == "calls.json, 10 calls"

    def test_loader_script(self, command: Command) -> None:
        (command.folder / "loader.py").write_text(LOADER)
        report = command.done("model.onnx", "--calib", "loader.py", "--json").json()
        assert report["calibration"] == "load_data() of loader.py"
        assert len(report["held_out"]) == 2

    @pytest.mark.parametrize(
        "options",
        [
            ["--sampler", "ddim", "--prediction", "v_prediction", "--schedule", "cosine"],
            ["--sampler", "ddim", "--prediction", "sample", "--spacing", "leading"],
            ["--sampler", "flow", "--shift", "3"],
        ],
        ids=" ".join,
    )
    def test_sampled_from_the_model(self, command: Command, options: list[str]) -> None:
        sampling = ["--steps", "6", "--samples", "3", "--shapes", "sample:2x16x8x8"]
        result = command.done("model.onnx", *options, *sampling, "--json")
        report = result.json()
        assert report["calibration"].startswith("3 self-sampled trajectories of 6 ")
        assert len(report["held_out"]) == 6
        assert report["warnings"] == []
        assert result.err == ""

    def test_drawn_inputs_are_told(self, command: Command) -> None:
        write_small_unet(command.folder / "context.onnx", context=True)
        shapes = ["--shapes", "sample:1x16x8x8", "encoder_hidden_states:1x5x32"]
        result = command.done("context.onnx", *FAST[:-2], *shapes)
        assert result.err.startswith(
            "qvd-export: warning: inputs drawn at random: encoder_hidden_states"
        )
        assert "--inputs FILE.npz" in result.err

    def test_given_inputs_and_guidance(self, command: Command) -> None:
        write_small_unet(command.folder / "context.onnx", context=True)
        random = np.random.default_rng(0)
        np.savez(
            command.folder / "prompts.npz",
            encoder_hidden_states=random.standard_normal((2, 1, 5, 32)).astype(np.float32),
            uncond_encoder_hidden_states=np.zeros((1, 5, 32), np.float32),
        )
        result = command.done(
            "context.onnx", *FAST, "--inputs", "prompts.npz", "--guidance", "3", "--json"
        )
        assert result.err == ""
        assert len(result.json()["held_out"]) == 6  # two calls a step


class TestStatistics:
    def test_reused(self, command: Command) -> None:
        record(command.folder / "calls.npz")
        record(command.folder / "more.npz", seed=1)
        first = command.done(
            *("model.onnx", "--calib", "calls.npz", "more.npz", "--stats", "model.stats.npz"),
            *("-o", "first.onnx", "--json"),
        )
        assert "model.stats.npz" in first.written
        (command.folder / "calls.npz").unlink()
        second = command.done(
            "model.onnx", "--stats", "model.stats.npz", "-o", "second.onnx", "--json"
        )
        assert "model.stats.npz" not in second.written
        assert second.json()["calibration"] == "statistics of model.stats.npz"
        for key in ("held_out", "temporal", "int8_share", "kept"):
            assert first.json()[key] == second.json()[key]
        for suffix in (".onnx", ".plan.json"):
            one, other = (command.folder / f"{name}{suffix}" for name in ("first", "second"))
            assert one.read_bytes() == other.read_bytes()

    def test_serve_every_algorithm(self, command: Command) -> None:
        command.done("model.onnx", *FAST, "--algorithm", "minmax", "--stats", "s.npz")
        for algorithm in ALGORITHMS:
            command.done("model.onnx", "--stats", "s.npz", "--algorithm", algorithm)

    def test_unused_calibration_is_told(self, command: Command) -> None:
        record(command.folder / "calls.npz")
        given = ("model.onnx", "--calib", "calls.npz", "--stats", "s.npz")
        assert command.done(*given).err == ""
        assert "warning: --calib is not used: s.npz exists" in command.done(*given).err


class TestQuantization:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w8a16", "w16a8"])
    def test_algorithms_and_bits(self, command: Command, algorithm: str, bits: str) -> None:
        result = command.done("model.onnx", *FAST, "--bits", bits, "--algorithm", algorithm)
        assert result.written == {
            f"model.{bits}.onnx",
            f"model.{bits}.plan.json",
            f"model.{bits}.report.json",
        }
        model = onnx.load(command.folder / f"model.{bits}.onnx")
        onnx.checker.check_model(model)
        assert bool(quantized_ops(model)) == (not bits.startswith("w16"))

    def test_fewer_bits_cost_accuracy(self, command: Command) -> None:
        # On a single trajectory only the ranges of whole tensors hold for another one.
        options = ("--algorithm", "minmax", "--json")
        means = [
            command.done("model.onnx", *FAST, *options, "--bits", bits).json()["held_out_mean_sqnr"]
            for bits in ("w8a16", "w8a8", "w6a6", "w4a4")
        ]
        assert means == sorted(means, reverse=True)
        assert means[1] - means[2] > 6

    def test_little_that_is_left_is_warned_of(self, command: Command) -> None:
        result = command.done("model.onnx", *FAST, "--bits", "w2a2", "--json")
        worst = min(result.json()["held_out"], key=lambda score: score["sqnr"])
        assert worst["sqnr"] < 10
        told = f"timestep {worst['timestep']:g} is only {worst['sqnr']:.1f} dB from the float model"
        assert told in result.err
        assert "--min-sqnr" in result.err
        assert "dB from the float" not in command.done("model.onnx", *FAST).err

    @pytest.mark.parametrize("name", [*CODEBOOKS, "float"])
    def test_temporal(self, command: Command, name: str) -> None:
        report = command.done("model.onnx", *FAST, "--temporal", name, "--json").json()
        assert [site["quantizer"] for site in report["temporal"]] == (
            [] if name == "float" else [name]
        )
        kept = {layer["reason"] for layer in report["kept"]}
        assert ("temporal site, kept float" in kept) == (name == "float")

    @pytest.mark.parametrize("htdq", ["function", "inline", "plugin"])
    def test_htdq_forms(self, command: Command, htdq: str) -> None:
        command.done("model.onnx", *FAST, "--htdq", htdq)
        model = onnx.load(command.folder / "model.w8a8.onnx")
        nodes = {node.op_type for node in model.graph.node}
        functions = {function.name for function in model.functions}
        assert ("HTDQ" in nodes) == (htdq != "inline")
        assert ("HTDQ" in functions) == (htdq == "function")

    @pytest.mark.parametrize(
        ("target", "dtype"),
        [
            *[("trt", dtype) for dtype in ("fp16", "bf16", "fp32")],
            *[("rtx", dtype) for dtype in ("fp16", "bf16", "fp32")],
            *[("ort", dtype) for dtype in ("fp16", "fp32")],
            ("trt8", "fp32"),
        ],
    )
    def test_targets(self, command: Command, target: str, dtype: str) -> None:
        result = command.done("model.onnx", *FAST, "--target", target, "--dtype", dtype, "--json")
        assert (result.json()["target"], result.json()["dtype"]) == (target, dtype)
        model = onnx.load(command.folder / "model.w8a8.onnx")
        onnx.checker.check_model(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert (metadata["qvd.target"], metadata["qvd.dtype"]) == (target, dtype)

    def test_keep(self, command: Command) -> None:
        options = ("--keep", "*.conv2", "--keep", "linear.weight")
        report = command.done("model.onnx", *FAST, *options, "--json").json()
        kept = {layer["name"]: layer["reason"] for layer in report["kept"]}
        assert kept["up.conv2"] == kept["down.conv2"] == "--keep *.conv2"
        assert kept["linear"] == "--keep linear.weight"
        model = onnx.load(command.folder / "model.w8a8.onnx")
        assert quantized_ops(model) == {
            "down.conv1",
            "down.time_emb_proj",
            "up.conv1",
            "up.time_emb_proj",
        }

    def test_keep_operator(self, command: Command) -> None:
        report = command.done("model.onnx", *FAST, "--keep", "MatMul", "--json").json()
        kept = {layer["name"]: layer["reason"] for layer in report["kept"]}
        assert kept["linear"] == "--keep MatMul"
        assert "down.conv1" not in kept

    def test_min_sqnr(self, command: Command) -> None:
        report = command.done("model.onnx", *FAST, "--json").json()
        threshold = report["weakest"][0]["sqnr"] + 0.01
        report = command.done("model.onnx", *FAST, "--min-sqnr", threshold, "--json").json()
        weak = [layer for layer in report["kept"] if "is below --min-sqnr" in layer["reason"]]
        assert len(weak) == 1

    def test_runs_like_the_float_model(self, command: Command) -> None:
        command.done("model.onnx", *FAST, "--target", "ort")
        feed = {
            "sample": np.random.default_rng(1).standard_normal((2, 16, 12, 8)).astype(np.float32),
            "timestep": np.array([10, 700]),
        }
        outputs = [
            ort.InferenceSession(str(command.folder / name)).run(None, feed)[0]
            for name in ("model.onnx", "model.w8a8.onnx")
        ]
        error = np.square(outputs[1] - outputs[0]).mean() / np.square(outputs[0]).mean()
        assert error < 0.02


class TestFiles:
    def test_input_is_only_read(self, command: Command) -> None:
        path = write_small_unet(command.folder / "big.onnx", external_data=True)
        files = [command.folder / "model.onnx", path, path.with_name("big.onnx.data")]
        before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
        command.done("model.onnx", *FAST)
        command.done("big.onnx", *FAST)
        assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before

    def test_external_data_stays_external(self, command: Command) -> None:
        write_small_unet(command.folder / "big.onnx", external_data=True)
        result = command.done("big.onnx", *FAST, "-o", "out/big.w8a8.onnx", "--json")
        written = {name for name in result.written if name != "out"}
        assert written == {
            f"out/big.w8a8.{suffix}" for suffix in ("onnx", "onnx.data", "plan.json", "report.json")
        }
        report, out = result.json(), command.folder / "out"
        sizes = [(out / f"big.w8a8.onnx{suffix}").stat().st_size for suffix in ("", ".data")]
        assert report["quantized_bytes"] == sum(sizes)
        command.done("model.onnx", *FAST)
        external = onnx.load(out / "big.w8a8.onnx").graph.initializer
        inline = onnx.load(command.folder / "model.w8a8.onnx").graph.initializer
        for one, other in zip(external, inline, strict=True):
            assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))

    @pytest.mark.parametrize("external_data", [False, True])
    def test_two_runs_are_equal(self, command: Command, external_data: bool) -> None:
        write_small_unet(command.folder / "twice.onnx", external_data=external_data)
        for name in ("a/out.onnx", "b/out.onnx"):
            command.done("twice.onnx", *FAST, "-o", name, "--stats", Path(name).with_name("s.npz"))
        for file in (command.folder / "a").iterdir():
            if file.name != "out.report.json":  # it holds times
                assert file.read_bytes() == (command.folder / "b" / file.name).read_bytes()

    def test_output_is_replaced(self, command: Command) -> None:
        command.done("model.onnx", *FAST)
        result = command.done("model.onnx", *FAST, "--keep", "linear")
        assert {"model.w8a8.onnx", "model.w8a8.plan.json"} <= result.written

    def test_linked_model_gives_its_output_beside_the_link(self, command: Command) -> None:
        (command.folder / "links").mkdir()
        (command.folder / "links/m.onnx").symlink_to("../model.onnx")
        result = command.done("links/m.onnx", *FAST)
        assert "links/m.w8a8.onnx" in result.written

    def test_names_with_blanks_and_brackets(self, command: Command) -> None:
        path = write_small_unet(command.folder / "my [bold] model.onnx")
        result = command.done(path.name, *FAST)
        assert "my [bold] model.w8a8.onnx" in result.out


def test_other_input_names(command: Command) -> None:
    write_small_unet(command.folder / "odd.onnx", timestep="clock")
    command.done("odd.onnx", *FAST)


def test_single_step(command: Command) -> None:
    """One timestep leaves nothing to tell apart, and the report is still JSON."""
    options = ("--sampler", "flow", "--steps", "1", "--shapes", "sample:1x16x8x8")
    result = command.done("model.onnx", *options, "--json")

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    json.loads(result.out, parse_constant=refuse)
