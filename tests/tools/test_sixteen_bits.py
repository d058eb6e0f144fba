"""`qvd-export` and `qvd-validate` on models whose files are fp16 or bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.model_file import load_model, normalize
from qvd_trt.tools.cli.validate import main as validate_main
from qvd_trt.tools.validation.models import write_lowered
from tests.models.sixteen_bits import BF16, FLOAT, FP16, in_16_bits, rounded_weights
from tests.models.small_unet import small_unet
from tests.models.token_denoiser import token_denoiser, write_calls
from tests.tools.command import Command
from tests.tools.test_opsets import write

KINDS = {"fp16": FP16, "bf16": BF16}
CHOSEN = {"trt": None, "rtx": None, "trt8": "fp32", "ort": "fp32"}
"""What each target makes of 16-bit weights where no type is given; None follows them."""


@pytest.fixture
def files(command: Command) -> Command:
    """The small UNet in fp16 and bf16, and in float32 with the same weights."""
    for name, kind in KINDS.items():
        onnx.save(in_16_bits(small_unet(), kind), command.folder / f"{name}.onnx")
        onnx.save(rounded_weights(small_unet(), kind), command.folder / f"{name}-wide.onnx")
    (command.folder / "calls").mkdir()
    for seed in range(3):
        np.savez(command.folder / f"calls/{seed}.npz", **calls(np.float32, seed))  # type: ignore[arg-type]
    return command


def calls(dtype: Any, seed: int = 0) -> dict[str, AnyArray]:
    """A trajectory of four steps whose numbers every float type holds."""
    noise = np.random.default_rng(seed).normal(size=(4, 1, 16, 8, 8))
    whole = noise.astype(ml_dtypes.bfloat16).astype(np.float32)
    return {"sample": whole.astype(dtype), "timestep": np.array([[900], [600], [300], [0]])}


def exported(command: Command, name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report and the plan of one export."""
    output = command.folder / f"{name}.out.onnx"
    command.done(f"{name}.onnx", "--calib", "calls", *options, "-o", output)
    report, plan = output.with_suffix(".report.json"), output.with_suffix(".plan.json")
    return json.loads(report.read_text()), json.loads(plan.read_text())


def interface(path: Path) -> list[int]:
    graph = onnx.load(path).graph
    values = [graph.input[0], graph.output[0]]
    return [value.type.tensor_type.elem_type for value in values]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("target", CHOSEN)
def test_as_the_float32_file(files: Command, name: str, target: str) -> None:
    chosen = CHOSEN[target] or name
    report, plan = exported(files, name, "--target", target)
    wide_report, wide_plan = exported(files, f"{name}-wide", "--target", target, "--dtype", chosen)
    assert report["dtype"] == chosen
    assert plan["model_hash"] != wide_plan["model_hash"]
    assert [site["layers"][0]["name"] for site in plan["dense"]] == [
        site["layers"][0]["name"] for site in wide_plan["dense"]
    ]
    for site, wide in zip(plan["dense"], wide_plan["dense"], strict=True):
        assert site["tensor"] == wide["tensor"]
        activation, expected = site["activation"], wide["activation"]
        assert activation["scale"] == pytest.approx(expected["scale"], rel=0.01)
        for vector in ("shift", "smooth"):
            assert (activation[vector] is None) == (expected[vector] is None)
    assert plan["kept"] == wide_plan["kept"]
    scores, expected_scores = (
        [score["sqnr"] for score in found["held_out"]] for found in (report, wide_report)
    )
    assert len(scores) == 4
    assert scores == pytest.approx(expected_scores, abs=1)
    kept = KINDS[name] if name == "fp16" else FLOAT
    assert interface(files.folder / f"{name}.out.onnx") == [kept, kept]


def test_a_plain_session_runs_the_written_file(files: Command) -> None:
    exported(files, "fp16", "--target", "ort")
    feed = {name: array[0] for name, array in calls(np.float16).items()}
    found, expected = (
        ort.InferenceSession(files.folder / name).run(None, feed)[0].astype(np.float64)
        for name in ("fp16.out.onnx", "fp16.onnx")
    )
    assert 0 < np.square(found - expected).mean() < np.square(expected).mean() / 300  # 25 dB


@pytest.mark.parametrize("opset", [13, 23, 25])
@pytest.mark.parametrize("kind", [FP16, BF16])
def test_oldest_and_newest_opsets(command: Command, opset: int, kind: int) -> None:
    """Attention from 23 on, which stays for ``ort``; older files state no shapes inside."""
    path, recorded = write(command.folder, opset)
    onnx.save(in_16_bits(onnx.load(path), kind), path)
    result = command.done(path, "--target", "ort", "--calib", recorded, "-o", "o.onnx", "--json")
    assert result.json()["held_out_mean_sqnr"] > 25
    operators = {node.op_type for node in onnx.load(command.folder / "o.onnx").graph.node}
    assert ("Attention" in operators) == (opset >= 23)


@pytest.mark.parametrize("target", ["trt", "rtx", "ort"])
def test_no_idle_cast_is_left(files: Command, target: str) -> None:
    exported(files, "fp16", "--target", target)
    model = ir.load(files.folder / "fp16.out.onnx")
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert casts
    idle = [
        node.name
        for node in casts
        if node.inputs[0] is not None
        and node.inputs[0].dtype is not None
        and int(node.inputs[0].dtype) == node.attributes.get_int("to", 0)
    ]
    assert not idle


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_any_type_can_be_asked_for(files: Command, name: str, dtype: str) -> None:
    report, _ = exported(files, name, "--dtype", dtype)
    assert report["dtype"] == dtype
    assert report["held_out_mean_sqnr"] > 25


def test_layers_and_plans(files: Command) -> None:
    listed = files.done("fp16.onnx", "--list-layers").out
    assert listed == files.done("fp16-wide.onnx", "--list-layers").out
    _, kept = exported(files, "fp16", "--keep", "up.conv1", "--stats", "calls.npz")
    assert "up.conv1" in {layer["name"] for layer in kept["kept"]}
    first = (files.folder / "fp16.out.onnx").read_bytes()
    plan = files.folder / "edited.json"
    plan.write_text((files.folder / "fp16.out.plan.json").read_text())
    files.done("fp16.onnx", "--plan", plan, "--stats", "calls.npz", "-o", "again.onnx")
    assert (files.folder / "again.onnx").read_bytes() == first


@pytest.mark.parametrize("name", KINDS)
def test_recordings_of_any_width(files: Command, name: str) -> None:
    reports = []
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        np.savez(files.folder / "calls.npz", **calls(dtype))  # type: ignore[arg-type]
        result = files.done(f"{name}.onnx", "--calib", "calls.npz", "--json")
        reports.append((result.json()["seen"], result.json()["held_out"]))
    assert reports[0] == reports[1] == reports[2]
    np.savez(files.folder / "calls.npz", **calls(np.float64))  # type: ignore[arg-type]
    assert "'sample' is float64" in files.refused(f"{name}.onnx", "--calib", "calls.npz")


def test_a_value_beyond_fp16_is_refused(files: Command) -> None:
    arrays = calls(np.float32)
    arrays["sample"][1, 0, 0, 0, 0] = 1e5
    np.savez(files.folder / "calls.npz", **arrays)  # type: ignore[arg-type]
    assert "holds NaN or Inf" in files.refused("fp16.onnx", "--calib", "calls.npz")
    files.done("bf16.onnx", "--calib", "calls.npz")


def test_a_stream_that_the_source_overflows_on_is_float32(command: Command) -> None:
    onnx.save(in_16_bits(token_denoiser(massive=1e5), FP16), command.folder / "model.onnx")
    stored = onnx.load(command.folder / "model.onnx")
    assert all(np.isfinite(onnx.numpy_helper.to_array(w)).all() for w in stored.graph.initializer)
    folder = write_calls(command.folder / "calls")
    report = command.done("model.onnx", "--calib", folder, "-o", "out.onnx", "--json").json()
    plan = json.loads((command.folder / "out.plan.json").read_text())
    assert "stream_out" in plan["float32"]
    assert report["held_out_mean_sqnr"] > 25


@pytest.mark.parametrize("name", KINDS)
def test_validation_reads_the_source_alike(
    files: Command, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(files, name, "--target", "ort")
    found = []
    for reference in (name, f"{name}-wide"):
        capsys.readouterr()
        arguments = [f"{reference}.onnx", f"{name}.out.onnx", "--calib", "calls", "--json"]
        assert validate_main(arguments) == 0
        found.append(json.loads(capsys.readouterr().out)["summary"])
    for comparison in ("quantization", "rounding_floor"):
        low, wide = (summary[comparison]["mean_sqnr"] for summary in found)
        assert low == pytest.approx(wide, abs=0.1)
    assert found[0]["quantization"]["mean_sqnr"] > 25


def test_the_noise_floor_lowers_the_source_alike(files: Command) -> None:
    feed = calls(np.float32)
    found = []
    for name in ("fp16", "fp16-wide"):
        path = files.folder / f"{name}.onnx"
        model = load_model(path)
        normalize(model, path)
        write_lowered(model, files.folder / "lowered.onnx")
        session = ort.InferenceSession(files.folder / "lowered.onnx")
        dtype = {"tensor(float16)": np.float16}.get(session.get_inputs()[0].type, np.float32)
        sample = feed["sample"][0].astype(dtype)
        (output,) = session.run(None, {"sample": sample, "timestep": feed["timestep"][0]})
        found.append(output.astype(np.float32))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3, atol=2e-3)
