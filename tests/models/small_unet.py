"""A hand-made UNet-like denoiser of 20 kB, for tests that need a file and not an architecture.

Two residual blocks with a time embedding, and a linear layer on the tokens between them. It takes a
few milliseconds to write and to run, and needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 32
LATENT_CHANNELS = 16


class _Graph:
    """Nodes and initializers in the order in which they are written."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        name = output.removesuffix(":0")
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def parameters(self, name: str, *shape: int, gain: float = 1.0) -> list[str]:
        """A weight ``[out, in, ...]`` that keeps the variance, times ``gain``, and a bias."""
        weight = self._random.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
        bias = self._random.standard_normal(shape[0]) * 0.1
        return [self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]

    def silu(self, value: str, name: str) -> str:
        gate = self.add("Sigmoid", [value], f"{name}.gate:0")
        return self.add("Mul", [value, gate], f"{name}:0")

    def conv(self, value: str, name: str, out: int, inner: int, gain: float = 1.0) -> str:
        parameters = self.parameters(name, out, inner, 3, 3, gain=gain)
        return self.add("Conv", [value, *parameters], f"{name}:0", pads=[1, 1, 1, 1])

    def gemm(self, value: str, name: str) -> str:
        parameters = self.parameters(name, CHANNELS, CHANNELS)
        return self.add("Gemm", [value, *parameters], f"{name}:0", transB=1)


def small_unet(
    *,
    timestep: str = "timestep",
    opset: int = 20,
    context: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Build the model: sample float32 [batch, 16, h, w], timestep int64 [batch] -> like sample.

    Args:
        timestep: Name of the timestep input.
        opset: Version of the standard operators, 17 or more.
        context: Take a third input, ``encoder_hidden_states`` float32 [batch, tokens, 32], whose
            mean is added to the latent features.
        seed: Seed of the weights.
    """
    graph = _Graph(seed)
    embedding = _time_embedding(graph, timestep)
    hidden = graph.conv("sample", "conv_in", CHANNELS, LATENT_CHANNELS)
    hidden = _residual_block(graph, hidden, embedding, "down")
    hidden = _token_layer(graph, hidden)
    if context:
        axes = graph.constant("context_axes", [1], np.int64)
        mean = graph.add("ReduceMean", ["encoder_hidden_states", axes], "context_mean:0")
        last = graph.constant("last_axis", [3], np.int64)
        flat = graph.add("Transpose", [mean], "context_channels:0", perm=[0, 2, 1])
        planes = graph.add("Unsqueeze", [flat, last], "context_planes:0")
        hidden = graph.add("Add", [hidden, planes], "with_context:0")
    hidden = _residual_block(graph, hidden, embedding, "up")
    hidden = graph.silu(hidden, "act_out")
    graph.conv(hidden, "conv_out", LATENT_CHANNELS, CHANNELS, gain=0.3)
    latent: list[str | int | None] = ["batch", LATENT_CHANNELS, "h", "w"]
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, latent),
        helper.make_tensor_value_info(timestep, TensorProto.INT64, ["batch"]),
    ]
    if context:
        tokens: list[str | int | None] = ["batch", "tokens", CHANNELS]
        inputs.append(
            helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, tokens)
        )
    proto = helper.make_graph(
        graph.nodes,
        "small_unet",
        inputs,
        [helper.make_tensor_value_info("conv_out:0", TensorProto.FLOAT, latent)],
        graph.initializers,
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests"
    )
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def write_small_unet(path: Path, *, external_data: bool = False, **options: Any) -> Path:
    """Write :func:`small_unet` to a file, with its weights in ``<path>.data`` if wanted."""
    onnx.save(
        small_unet(**options),
        path,
        save_as_external_data=external_data,
        location=f"{path.name}.data",
        size_threshold=1024,
    )
    return path


def _time_embedding(graph: _Graph, timestep: str) -> str:
    half = CHANNELS // 2
    frequencies = np.exp(-np.log(10_000) * np.arange(half) / half)
    steps = graph.add("Cast", [timestep], "time_float:0", to=TensorProto.FLOAT)
    axes = graph.constant("time_axes", [1], np.int64)
    column = graph.add("Unsqueeze", [steps, axes], "time_column:0")
    angles = graph.add("Mul", [column, graph.constant("frequencies", frequencies)], "angles:0")
    waves = [graph.add("Sin", [angles], "sin:0"), graph.add("Cos", [angles], "cos:0")]
    embedding = graph.add("Concat", waves, "time_proj:0", axis=-1)
    embedding = graph.silu(graph.gemm(embedding, "time_embedding.linear_1"), "time_act_1")
    return graph.silu(graph.gemm(embedding, "time_embedding.linear_2"), "time_act_2")


def _residual_block(graph: _Graph, hidden: str, embedding: str, name: str) -> str:
    inner = graph.conv(graph.silu(hidden, f"{name}.act1"), f"{name}.conv1", CHANNELS, CHANNELS)
    shift = graph.gemm(embedding, f"{name}.time_emb_proj")
    axes = graph.constant(f"{name}.plane_axes", [2, 3], np.int64)
    planes = graph.add("Unsqueeze", [shift, axes], f"{name}.planes:0")
    inner = graph.add("Add", [inner, planes], f"{name}.with_time:0")
    inner = graph.conv(graph.silu(inner, f"{name}.act2"), f"{name}.conv2", CHANNELS, CHANNELS)
    return graph.add("Add", [hidden, inner], f"{name}:0")


def _token_layer(graph: _Graph, hidden: str) -> str:
    tokens = graph.add("Transpose", [hidden], "tokens:0", perm=[0, 2, 3, 1])
    weight, bias = graph.parameters("linear", CHANNELS, CHANNELS)
    product = graph.add("MatMul", [tokens, weight], "linear:0")
    shifted = graph.add("Add", [product, bias], "linear.shifted:0")
    return graph.add("Transpose", [shifted], "planes:0", perm=[0, 3, 1, 2])
