"""What stands in for the files that only a user has: models, recorded calls, prompts.

The model is a video denoiser of a few layers of every kind that the README's options speak of. Its
inputs have the names and the widths of the README's command lines; frames and sizes are free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32
TOKENS = 77
TOKEN_WIDTH = 768
TRAJECTORIES, STEPS = 2, 4


class _Graph:
    """Nodes, each named as its output, and their weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: Any = np.int64) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        values = self._random.standard_normal(shape) / np.sqrt(fan_in)
        return self.constant(f"{name}.weight", values, np.float32)

    def conv(self, value: str, name: str, out: int, inner: int, patch: int = 1) -> str:
        """3 x 3 within each frame, or one product for each patch of that size."""
        size, pad = (3, 1) if patch == 1 else (patch, 0)
        weight = self.weight(name, out, inner, 1, size, size, fan_in=inner * size * size)
        return self.add(
            "Conv", [value, weight], name, pads=[0, pad, pad] * 2, strides=[1, patch, patch]
        )

    def linear(self, value: str, name: str, out: int, inner: int) -> str:
        return self.add("MatMul", [value, self.weight(name, inner, out, fan_in=inner)], name)

    def silu(self, value: str, name: str) -> str:
        return self.add("Mul", [value, self.add("Sigmoid", [value], f"{name}.gate")], name)


def write_denoiser(path: Path, latent: str, channels: int, patch: int) -> None:
    """Write a denoiser, float32 but for the timestep.

    Args:
        path: The file.
        latent: Name of the input [batch, channels, frames, height, width]; the output is like it.
        channels: Of the latent.
        patch: Edge of the patches that it works on; height and width are multiples of it.
    """
    graph = _Graph()
    embedding = _time_embedding(graph)
    hidden = graph.conv(latent, "conv_in", WIDTH, channels, patch)
    for block in ("down_blocks.0", "up_blocks.0"):
        hidden = _resnet(graph, hidden, embedding, f"{block}.resnets.0")
        hidden = _transformer(graph, hidden, f"{block}.attentions.0.transformer_blocks.0")
    hidden = graph.silu(hidden, "conv_act")
    weight = graph.weight("conv_out", WIDTH, channels, 1, patch, patch, fan_in=10 * WIDTH)
    graph.add("ConvTranspose", [hidden, weight], "out_sample", strides=[1, patch, patch])
    shape: list[str | int | None] = ["batch", channels, "frames", "height", "width"]
    tokens: list[str | int | None] = ["batch", TOKENS, TOKEN_WIDTH]
    inputs = [
        helper.make_tensor_value_info(latent, TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("timestep", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, tokens),
    ]
    outputs = [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, shape)]
    proto = helper.make_graph(graph.nodes, "denoiser", inputs, outputs, graph.weights)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _time_embedding(graph: _Graph) -> str:
    steps = graph.add("Cast", ["timestep"], "time_float", to=TensorProto.FLOAT)
    column = graph.add("Unsqueeze", [steps, graph.constant("last", [1])], "time_column")
    frequencies = np.exp(-np.log(10_000) * np.arange(WIDTH // 2) / (WIDTH // 2))
    angles = graph.add(
        "Mul", [column, graph.constant("frequencies", frequencies, np.float32)], "angles"
    )
    waves = [graph.add("Sin", [angles], "sin"), graph.add("Cos", [angles], "cos")]
    embedding = graph.add("Concat", waves, "time_proj", axis=-1)
    embedding = graph.linear(embedding, "time_embedding.linear_1", WIDTH, WIDTH)
    embedding = graph.silu(embedding, "time_embedding.act")
    embedding = graph.linear(embedding, "time_embedding.linear_2", WIDTH, WIDTH)
    return graph.silu(embedding, "time_act")


def _resnet(graph: _Graph, hidden: str, embedding: str, name: str) -> str:
    inner = graph.conv(graph.silu(hidden, f"{name}.act1"), f"{name}.conv1", WIDTH, WIDTH)
    shift = graph.linear(embedding, f"{name}.time_emb_proj", WIDTH, WIDTH)
    axes = graph.constant(f"{name}.axes", [2, 3, 4])
    planes = graph.add("Unsqueeze", [shift, axes], f"{name}.planes")
    inner = graph.add("Add", [inner, planes], f"{name}.with_time")
    inner = graph.conv(graph.silu(inner, f"{name}.act2"), f"{name}.conv2", WIDTH, WIDTH)
    return graph.add("Add", [hidden, inner], f"{name}.out")


def _transformer(graph: _Graph, hidden: str, name: str) -> str:
    """A projection of every position, and the mean of the tokens, without the softmax."""
    positions = graph.add("Transpose", [hidden], f"{name}.positions", perm=[0, 2, 3, 4, 1])
    value = graph.linear(positions, f"{name}.attn1.to_v", WIDTH, WIDTH)
    tokens = graph.linear("encoder_hidden_states", f"{name}.attn2.to_v", WIDTH, TOKEN_WIDTH)
    axis = graph.constant(f"{name}.axis", [1])
    mean = graph.add("ReduceMean", [tokens, axis], f"{name}.mean", keepdims=0)
    axes = graph.constant(f"{name}.axes", [1, 2, 3])
    everywhere = graph.add("Unsqueeze", [mean, axes], f"{name}.everywhere")
    joined = graph.add("Add", [value, everywhere], f"{name}.joined")
    planes = graph.add("Transpose", [joined], f"{name}.planes", perm=[0, 4, 1, 2, 3])
    return graph.add("Add", [hidden, planes], f"{name}.out")


def write_recordings(folder: Path, seed: int) -> None:
    """Write `.npz` trajectories of the `sample` denoiser, as a user's pipeline records them."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index in range(TRAJECTORIES):
        np.savez(
            folder / f"{index}.npz",
            sample=random.standard_normal((STEPS, 1, 4, 2, 8, 8), np.float32),
            timestep=np.linspace(999, 39, STEPS).astype(np.int64)[:, None],
            encoder_hidden_states=random.standard_normal((1, TOKENS, TOKEN_WIDTH), np.float32),
        )


def write_prompts(path: Path, **latent_shapes: tuple[int, ...]) -> None:
    """Write the other inputs, a row per sample; the named arrays only tell their shapes."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((3, 1, TOKENS, TOKEN_WIDTH), np.float32)
    arrays: dict[str, Any] = {
        "encoder_hidden_states": rows,
        "uncond_encoder_hidden_states": np.zeros((1, TOKENS, TOKEN_WIDTH), np.float32),
        **{name: np.zeros(shape, np.float32) for name, shape in latent_shapes.items()},
    }
    np.savez(path, **arrays)
