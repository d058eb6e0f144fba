"""Files of the oldest and newest opsets through the whole command, for every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qvd_trt.export.targets import TARGETS
from tests.export.files_people_have import WIDTH, denoiser, feeds, without_value_infos
from tests.export.graphs import GraphBuilder
from tests.tools.command import Command

ATTENTION_SINCE, SWISH_SINCE = 23, 24


def attend(net: GraphBuilder, x: str) -> str:
    """Self-attention, a gate, and operators that opsets 24 and 25 list anew."""
    normal = net.layer_norm(x, WIDTH, "norm")
    operands = [net.linear(normal, WIDTH, WIDTH, f"to_{name}") for name in "qkv"]
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    operands[1:] = [
        net.op("Slice", value, *cut(net, name), name=f"half_{name}")
        for value, name in zip(operands[1:], "kv", strict=True)
    ]
    y = net.op("Attention", *operands, name="attend", scale=0.1, **heads)
    y = net.linear(y, WIDTH, WIDTH, "to_out")
    if net.opset >= SWISH_SINCE:
        y = net.op("Swish", y, name="gate", alpha=1.5)
    y = net.op("Identity", net.reshape(y, [0, -1, WIDTH], "same_rows"), name="same")
    y = net.op("Transpose", net.op("Transpose", y, name="there", perm=[0, 2, 1]), name="back",
               perm=[0, 2, 1])  # fmt: skip
    return net.op("Add", x, y, name="residual")


def cut(net: GraphBuilder, name: str) -> list[str]:
    """Bounds of a Slice to the first half of the channels."""
    bounds = {"start": 0, "end": WIDTH // 2, "axis": -1}
    return [net.constant(f"{name}.{key}", np.array([value])) for key, value in bounds.items()]


def write(folder: Path, opset: int) -> tuple[Path, Path]:
    """The model, old ones without shapes as legacy exporters write them, and recorded calls."""
    path, calls = folder / "model.onnx", folder / "calls"
    new = opset >= ATTENTION_SINCE
    onnx.save(denoiser(opset, attend) if new else without_value_infos(denoiser(opset)), path)
    calls.mkdir()
    for index in range(2):
        steps = [feeds(4 * index + step) for step in range(4)]
        arrays: dict[str, Any] = {
            name: np.stack([step[name] for step in steps]) for name in steps[0]
        }
        np.savez(calls / f"trajectory_{index}.npz", **arrays)
    return path, calls


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [13, 15, 16, 23, 24, 25])
def test_every_target_is_written(opset: int, target: str, tmp_path: Path, command: Command) -> None:
    source, calls = write(tmp_path, opset)
    output = tmp_path / "out.onnx"
    command.done(source, "--target", target, "-o", output, "--calib", calls)
    written, profile = ir.load(output), TARGETS[target]
    expected_opset = min(max(opset, profile.base_opset), profile.max_opset)
    assert written.opset_imports[""] == expected_opset
    operators = {node.op_type for node in written.graph}
    assert ("Attention" in operators) == (target == "ort" and opset >= ATTENTION_SINCE)
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    onnx.checker.check_model(output, full_check=True)
    given = feeds(4)
    expected = ReferenceEvaluator(str(source)).run(None, given)
    assert isinstance(expected, list)
    session = ort.InferenceSession(output, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, given)
    noise = np.square(actual - expected[0]).sum() / np.square(expected[0]).sum()
    assert noise < 0.03


@pytest.mark.parametrize("gain", [1, 300])
def test_products_beyond_fp16_are_measured_and_stay_float32(
    gain: int, tmp_path: Path, command: Command
) -> None:
    path, calls = write(tmp_path, 23)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in ("to_q.weight", "to_k.weight"):
            array = gain * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(model, path)
    output = tmp_path / "out.onnx"
    command.done(path, "--target", "trt", "--calib", calls, "-o", output)
    (softmax,) = (node for node in ir.load(output).graph if node.op_type == "Softmax")
    logits = softmax.inputs[0]
    assert logits is not None
    listed = json.loads((tmp_path / "out.plan.json").read_text()).get("float32", [])
    assert listed == ([] if gain == 1 else [logits.name])
    assert logits.dtype == (ir.DataType.FLOAT16 if gain == 1 else ir.DataType.FLOAT)
    command.done(path, "--target", "ort", "--dtype", "fp16", "--calib", calls, "-o", output)
    assert "Attention" in {node.op_type for node in ir.load(output).graph}


def test_what_has_no_older_equal_is_refused_by_name(tmp_path: Path, command: Command) -> None:
    path, calls = write(tmp_path, 25)
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.name == "attend")
    node.attribute.append(onnx.helper.make_attribute("left_window_size", 3))
    onnx.save(model, path)
    message = command.refused(path, "--target", "ort", "--calib", calls)
    assert "opset 25 to 23: node 'attend' (Attention)" in message
    assert "left_window_size" in message
