"""A hand-made token denoiser whose values can be driven out of what 16 bits or calibration hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.export.graphs import GraphBuilder

CHANNELS, WIDTH, TOKENS = 16, 48, 20


def token_denoiser(
    *, massive: float = 1.0, tiny: float = 1.0, control: bool = False, seed: int = 3
) -> onnx.ModelProto:
    """Build it: sample [batch, 16, length], timestep [batch], control [batch, length, 48] in.

    Args:
        massive: Factor of the weights that write the first channel of the residual stream.
        tiny: Factor of the weights of a projection whose output a norm brings back.
        control: Take the third input too, which is added to the stream through two layers.
        seed: Seed of the weights.
    """
    g = GraphBuilder(seed, opset=18)
    g.input("sample", ["batch", CHANNELS, "length"])
    g.input("timestep", ["batch"], "int64")
    tokens = g.op("Transpose", "sample", name="tokens", perm=[0, 2, 1])
    stream = g.linear(tokens, CHANNELS, WIDTH, "embed")
    stream = g.op("Add", stream, _time(g), name="timed")
    if control:
        g.input("control", ["batch", "length", WIDTH])
        inner = g.linear("control", WIDTH, WIDTH, "control_in", bias=False)
        gate = g.op("Sigmoid", inner, name="control_gate")
        inner = g.op("Mul", inner, gate, name="control_act")
        inner = g.linear(inner, WIDTH, WIDTH, "control_out", bias=False)
        stream = g.op("Add", stream, inner, name="controlled")
    inner = g.layer_norm(stream, WIDTH, "norm1")
    weight = g.rng.normal(0, 0.15, (WIDTH, WIDTH)).astype(np.float32)
    weight[:, 0] *= massive
    g.constant("up.weight", weight)
    stream = g.op("Add", stream, g.op("MatMul", inner, "up.weight", name="up"), name="stream")
    inner = g.layer_norm(stream, WIDTH, "norm2")
    inner = g.linear(inner, WIDTH, WIDTH, "mid")
    stream = g.op("Add", stream, inner, name="stream2")
    inner = g.layer_norm(stream, WIDTH, "norm3")
    g.constant("small.weight", (tiny * g.rng.normal(0, 0.2, (WIDTH, WIDTH))).astype(np.float32))
    thousand = g.constant("thousand", np.float32(1000))
    inner = g.op("Mul", inner, thousand, name="loud")
    inner = g.op("MatMul", inner, "small.weight", name="small")
    inner = g.op("Mul", inner, g.constant("gain", np.float32(1 / tiny / 1000)), name="gained")
    inner = g.layer_norm(inner, WIDTH, "norm4")
    out = g.linear(inner, WIDTH, CHANNELS, "last")
    out = g.op("Transpose", out, name="prediction", perm=[0, 2, 1])
    return g.model({out: ["batch", CHANNELS, "length"]})


def _time(g: GraphBuilder) -> str:
    half = CHANNELS // 2
    steps = g.op("Cast", "timestep", name="steps", to=onnx.TensorProto.FLOAT)
    column = g.op("Unsqueeze", steps, g.constant("one", np.array([1])), name="column")
    scale = g.constant("frequencies", np.exp(-np.arange(half)).astype(np.float32))
    angles = g.op("Mul", column, scale, name="angles")
    waves = [g.op(kind, angles, name=kind.lower()) for kind in ("Sin", "Cos")]
    embedding = g.op("Concat", *waves, name="waves", axis=-1)
    embedding = g.linear(embedding, CHANNELS, WIDTH, "time_embed")
    return g.op("Unsqueeze", embedding, "one", name="time_row")


def write_calls(
    folder: Path, *, control: float | None = None, trajectories: int = 2, seed: int = 5
) -> Path:
    """Write trajectories of four calls; ``control`` is the spread of that input."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(trajectories):
        arrays: dict[str, Any] = {
            "sample": random.standard_normal((4, 1, CHANNELS, TOKENS)).astype(np.float32),
            "timestep": np.array([[900], [600], [300], [0]]),
        }
        if control is not None:
            noise = random.standard_normal((4, 1, TOKENS, WIDTH))
            arrays["control"] = (control * noise).astype(np.float32)
        np.savez(folder / f"trajectory_{index}.npz", **arrays)
    return folder
