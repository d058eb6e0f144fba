"""`qvd-build` with the real TensorRT-RTX compiler, on a CPU."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tensorrt_rtx")

from qvd_trt.export.errors import UserError
from qvd_trt.export.progress import SilentProgress
from qvd_trt.tools.cli.build import main
from qvd_trt.tools.engine.build_engine import BuildReport, build_engine
from qvd_trt.tools.engine.build_plan import BuildRequest
from qvd_trt.tools.engine.shape_ranges import parse_shape_range
from tests.models.small_unet import write_small_unet
from tests.tools.command import FAST

EXAMPLE = Path(__file__).parents[2] / "examples" / "pandigits_unet"
SHAPES = ("sample:1x16x16x16", "timestep:1")


def quantize(*arguments: str | Path) -> None:
    from qvd_trt.tools.cli.export import main as export

    assert export([str(argument) for argument in arguments]) == 0


def build(model: Path, *shapes: str, capabilities: tuple[str, ...] = ("8.9",)) -> BuildReport:
    request = BuildRequest(
        model=model,
        output=model.with_suffix(".engine"),
        runtime="rtx",
        shapes=tuple(map(parse_shape_range, shapes)),
        compute_capabilities=capabilities,
    )
    return build_engine(request, SilentProgress())


def quantized_nodes(model: Path) -> set[str]:
    """Nodes with a DequantizeLinear on both operands, counted here and not by the command."""
    graph = onnx.load(model).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type in {"Conv", "MatMul", "Gemm"}
        and [made_by.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small UNet, float and quantized."""
    folder = tmp_path_factory.mktemp("small")
    write_small_unet(folder / "float.onnx")
    quantize(folder / "float.onnx", *FAST, "--target", "rtx", "-o", folder / "w8a8.onnx")
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped example, quantized from one trajectory."""
    output = tmp_path_factory.mktemp("example") / "w8a8.onnx"
    calls = EXAMPLE / "calibration" / "trajectory_00.npz"
    options = ("--algorithm", "minmax", "--temporal-timesteps", "calibration")
    quantize(*(EXAMPLE / "model.onnx", "--calib", calls, *options, "--target", "rtx", "-o", output))
    return output


@pytest.fixture(scope="module")
def example_report(example: Path) -> BuildReport:
    return build(example, "sample:1x3x16x32x32", "timestep:1", "encoder_hidden_states:1x3x64")


class TestExample:
    def test_every_quantized_layer_is_int8(
        self, example: Path, example_report: BuildReport
    ) -> None:
        expected = quantized_nodes(example)
        assert len(expected) == 238
        assert {node.name for node in example_report.nodes if node.runs == "int8"} == expected
        assert example_report.lost_nodes == ()

    def test_every_float_layer_has_a_reason(self, example_report: BuildReport) -> None:
        floats = [node for node in example_report.nodes if node.runs != "int8"]
        assert len(floats) == 15
        reasons = [node.reason or "" for node in floats]
        assert sum("HTDQ codebook" in reason for reason in reasons) == 11
        assert sum("no DequantizeLinear on input" in reason for reason in reasons) == 4

    def test_layers_are_counted(self, example_report: BuildReport) -> None:
        assert example_report.counts.all == len(example_report.layers) > 500
        assert example_report.counts.int8_products > 150  # q, k and v are one
        assert example_report.counts.copies > 0
        assert example_report.counts.htdq_plugins == example_report.counts.opaque == 0


def test_files_are_written(folder: Path) -> None:
    report = build(folder / "w8a8.onnx", *SHAPES)
    engine = folder / "w8a8.engine"
    assert engine.stat().st_size == report.engine_bytes > 20_000
    written = json.loads((folder / "w8a8.build.json").read_text())
    assert written == json.loads(report.to_json())
    assert (written["runtime"], written["compute_capabilities"]) == ("rtx", ["8.9"])
    assert written["shapes"] == list(SHAPES)
    assert written["trtexec"].startswith(f"tensorrt_rtx --onnx={folder}/w8a8.onnx --saveEngine=")
    assert written["version"].startswith("1.")
    assert {n["name"] for n in written["nodes"] if n["runs"] == "int8"} == quantized_nodes(
        folder / "w8a8.onnx"
    )


def test_range_and_default_gpus(folder: Path) -> None:
    report = build(
        folder / "w8a8.onnx",
        "sample:1x16x8x8:1x16x16x16:2x16x32x32",
        "timestep:1:1:2",
        capabilities=(),
    )
    assert report.int8_nodes == len(quantized_nodes(folder / "w8a8.onnx"))


def test_float_model_has_no_int8(folder: Path) -> None:
    """Negative control."""
    report = build(folder / "float.onnx", *SHAPES)
    assert report.int8_nodes == report.counts.int8_products == 0
    assert len(report.nodes) == 11
    (note,) = report.notes
    assert "this float32 file is built as a float32 engine" in note


def conv(path: Path, scale_shape: tuple[int, ...]) -> Path:
    """One Conv with Q/DQ, whose activation scale has the given shape."""
    arrays: dict[str, Any] = {
        "w": np.random.default_rng(0).integers(-127, 128, (32, 32, 3, 3)).astype(np.int8),
        "w_scale": np.full(32, 0.01, np.float32),
        "x_scale": np.full(scale_shape, 0.05, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_dq"], axis=0),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["y"], name="conv", pads=[1] * 4),
    ]
    zero = numpy_helper.from_array(np.zeros(scale_shape, np.int8), "x_zero")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "conv",
        [value("x", TensorProto.FLOAT, [1, 32, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 32, 8, 8])],
        [zero, *(numpy_helper.from_array(array, name) for name, array in arrays.items())],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_lost_layer_is_explained(tmp_path: Path) -> None:
    report = build(conv(tmp_path / "lost.onnx", (1,)))
    (node,) = report.lost_nodes
    assert node.reason is not None
    assert node.reason.startswith("quantized in the file, but the engine runs it in ")
    assert "scale has shape [1]" in node.reason
    assert build(conv(tmp_path / "kept.onnx", ())).lost_nodes == ()


class TestFailures:
    def test_parser_names_the_node(self, folder: Path, tmp_path: Path) -> None:
        model = onnx.load(folder / "float.onnx")
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        node.op_type = "NoSuchOperator"
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(UserError, match=rf"cannot read .*bad.onnx: {node.name} \(NoSuchOp"):
            build(tmp_path / "bad.onnx", *SHAPES)
        assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]

    def test_builder_says_why(self, folder: Path, tmp_path: Path) -> None:
        model = tmp_path / "float.onnx"
        model.write_bytes((folder / "float.onnx").read_bytes())
        with pytest.raises(UserError, match=r"cannot build .*float.onnx: .*SM75"):
            build(model, *SHAPES, capabilities=("7.5",))
        assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]

    def test_unknown_gpu(self, folder: Path) -> None:
        with pytest.raises(UserError, match=r"does not build for SM90; use one of SM75, .*SM120"):
            build(folder / "w8a8.onnx", *SHAPES, capabilities=("9.0",))

    def test_death_of_the_child(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = subprocess.run

        def abort(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            done: subprocess.CompletedProcess[str] = run(
                [arguments[0], "-c", "import os; os.write(2, b'oh no'); os.abort()"], **options
            )
            return done

        monkeypatch.setattr(subprocess, "run", abort)
        model = tmp_path / "w8a8.onnx"
        model.write_bytes((folder / "w8a8.onnx").read_bytes())
        with pytest.raises(UserError, match=r"ended with code -6 while building .*: oh no"):
            build(model, *SHAPES)
        assert [path.name for path in tmp_path.iterdir()] == ["w8a8.onnx"]


class TestCommand:
    def test_summary(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [str(folder / "w8a8.onnx"), "--runtime", "rtx", "--shapes", *SHAPES]
        assert main([*arguments, "--ahead-of-time", "SM89", "-v"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "5 of 11 Conv, ConvTranspose, MatMul and Gemm nodes with weights (45%)" in out
        assert "2 Gemm behind the HTDQ codebook, by design" in out
        assert "strongly typed, for SM89" in out
        assert "correlation" in out

    def test_log(self, folder: Path, tmp_path: Path) -> None:
        log = tmp_path / "logs" / "build.log"
        arguments = [str(folder / "w8a8.onnx"), "--runtime", "rtx", "--shapes", *SHAPES]
        assert main([*arguments, "--ahead-of-time", "SM89", "--log", str(log)]) == 0
        found = re.findall(r"^ +(\d+\.\d) ", log.read_text(), re.MULTILINE)
        seconds = [float(text) for text in found]
        assert len(seconds) > 100
        assert seconds == sorted(seconds)

    def test_json(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [str(folder / "float.onnx"), "--runtime", "rtx", "--shapes", *SHAPES]
        assert main([*arguments, "--ahead-of-time", "8.9", "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["counts"]["int8_products"] == 0
        assert err.startswith("qvd-build: note: TensorRT-RTX 1.")
        assert err.count("\n") == 1
