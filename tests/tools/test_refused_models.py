from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.models.small_unet import small_unet, write_small_unet
from tests.tools.command import FAST, Command


def test_missing_model(command: Command) -> None:
    line = command.refused("absent.onnx", *FAST)
    assert "absent.onnx does not exist; give the path of a float .onnx file" in line


def test_folder(command: Command) -> None:
    (command.folder / "folder.onnx").mkdir()
    assert "folder.onnx is a folder; give" in command.refused("folder.onnx", *FAST)


@pytest.mark.parametrize("content", [b"", b"not a model\n", b"\xff" * 100, b"\x00" * 100])
def test_not_a_model(command: Command, content: bytes) -> None:
    (command.folder / "other.onnx").write_bytes(content)
    line = command.refused("other.onnx", *FAST)
    assert line.startswith("other.onnx ")
    assert "export it again" in line


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_model(command: Command, fraction: float) -> None:
    whole = (command.folder / "model.onnx").read_bytes()
    (command.folder / "cut.onnx").write_bytes(whole[: int(len(whole) * fraction)])
    line = command.refused("cut.onnx", *FAST)
    assert line.startswith("cut.onnx ")
    assert "export it again" in line


def test_missing_external_data(command: Command) -> None:
    write_small_unet(command.folder / "big.onnx", external_data=True)
    (command.folder / "big.onnx.data").unlink()
    line = command.refused("big.onnx", *FAST)
    said = "big.onnx keeps its weights in big.onnx.data, which {}; copy the file beside the model"
    assert said.format("does not exist") in line
    (command.folder / "big.onnx.data").mkdir()
    assert said.format("is a folder") in command.refused("big.onnx", *FAST)


def test_truncated_external_data(command: Command) -> None:
    write_small_unet(command.folder / "big.onnx", external_data=True)
    data = command.folder / "big.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    line = command.refused("big.onnx", *FAST)
    assert "big.onnx.data is truncated" in line
    assert "copy it again" in line


def test_quantized_model(command: Command) -> None:
    command.done("model.onnx", *FAST)
    line = command.refused("model.w8a8.onnx", *FAST)
    assert "already quantized (" in line
    assert "give the float model" in line


def with_latent_of(kind: int) -> onnx.ModelProto:
    """The small UNet, which casts its latent to float32 first."""
    model = small_unet()
    latent = next(value for value in model.graph.input if value.name == "sample")
    latent.type.tensor_type.elem_type = kind
    for node in model.graph.node:
        node.input[:] = ["sample/float32" if name == "sample" else name for name in node.input]
    cast = helper.make_node("Cast", ["sample"], ["sample/float32"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    return model


@pytest.mark.parametrize("kind", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16])
def test_a_latent_in_16_bits(command: Command, kind: int) -> None:
    onnx.save(with_latent_of(kind), command.folder / "low.onnx")
    command.done("low.onnx", *FAST)


@pytest.mark.parametrize("in_nodes", [False, True], ids=["initializers", "Constant nodes"])
def test_float64(command: Command, in_nodes: bool) -> None:
    model = small_unet()
    kind = onnx.TensorProto.DOUBLE
    for index, value in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(value)
        if array.dtype == np.float32:
            converted = numpy_helper.from_array(array.astype(np.float64), value.name)
            model.graph.initializer[index].CopyFrom(converted)
    model.graph.input[0].type.tensor_type.elem_type = kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.attribute[0].i = kind
    if in_nodes:
        for value in model.graph.initializer:
            node = helper.make_node("Constant", [], [value.name], value=value)
            model.graph.node.insert(0, node)
        del model.graph.initializer[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, command.folder / "other.onnx")
    line = command.refused("other.onnx", *FAST)
    assert "export the model in float32" in line


def test_no_timestep(command: Command) -> None:
    model = small_unet(timestep="tick")
    # Without Sin and Cos nothing but its name tells what it is.
    for node in model.graph.node:
        if node.op_type in ("Sin", "Cos"):
            node.op_type = "Tanh"
    onnx.save(model, command.folder / "clockless.onnx")
    line = command.refused("clockless.onnx", *FAST)
    assert "no input looks like a timestep among sample, tick" in line
    assert "--timestep-input NAME" in line
    command.done("clockless.onnx", *FAST, "--timestep-input", "tick")


def test_wrong_interface_names(command: Command) -> None:
    line = command.refused("model.onnx", *FAST, "--timestep-input", "clock")
    assert "--timestep-input 'clock' is no input of the model; it has sample, timestep" in line
    line = command.refused("model.onnx", *FAST, "--latent-input", "noise")
    assert "--latent-input 'noise' is no input of the model; it has sample, timestep" in line
    line = command.refused("model.onnx", *FAST, "--latent-input", "timestep")
    assert "'timestep' cannot be both the timestep and the latent" in line


def test_nothing_to_quantize(command: Command) -> None:
    assert "no layer is left to quantize" in command.refused("model.onnx", *FAST, "--keep", "*")
    line = command.refused("model.onnx", *FAST, "--keep", "nothing*")
    assert "--keep 'nothing*' matches no layer" in line


def test_activations_that_overflow(command: Command) -> None:
    model = small_unet()
    weight = next(value for value in model.graph.initializer if value.name == "down.conv1.weight")
    array = numpy_helper.to_array(weight).copy()
    array[0] = 3e38  # finite, as weights must be; its products are not
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, command.folder / "inf.onnx")
    line = command.refused("inf.onnx", *FAST)
    assert "holds NaN or Inf" in line


@pytest.mark.parametrize("target", ["trt", "rtx", "trt8", "ort"])
def test_old_opsets(command: Command, target: str) -> None:
    write_small_unet(command.folder / "old.onnx", opset=18)
    command.done("old.onnx", *FAST, "--target", target)
