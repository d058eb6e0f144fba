"""Calibration calls of every kind for a small model with conditions, and that model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from polygraphy.json import save_json

from tests.export.graphs import GraphBuilder

LOADER = """\
import numpy as np

def calls():
    random = np.random.default_rng(1)
    texts = random.standard_normal((4, 1, 16)).astype(np.float32)
    for step in range(11):
        for number in (0, 1, 2, 3) if step % 2 else (2, 0, 3):
            yield {
                "sample": random.standard_normal((1, 16, 6, 6)).astype(np.float32),
                "timestep": np.array([990 - 80 * step], np.int64),
                "text": texts[number],
            }
"""

OF_DICTS = LOADER + "\ndef load_data():\n    return calls()\n"
OF_LISTS = LOADER + "\ndef load_data():\n    every = list(calls())\n    "
OF_LISTS += "yield from (every[start : start + 7] for start in range(0, len(every), 7))\n"


def text_model() -> onnx.ModelProto:
    """A convolutional denoiser of a sample, a timestep and a text, with a temporal site."""
    net = GraphBuilder(seed=5)
    sample = net.input("sample", ["batch", 16, 6, 6])
    time = net.input("timestep", ["batch"], "int64")
    text = net.input("text", ["batch", 16])
    time = net.op("Cast", time, name="time", to=onnx.TensorProto.FLOAT)
    column = net.op("Unsqueeze", time, net.constant("last_axis", np.array([1])), name="column")
    waves = net.op(
        "Sin", net.op("Mul", column, net.weight("f", 1, 16), name="angles"), name="waves"
    )
    feature = net.op("Relu", net.gemm(waves, 16, 16, "time_1"), name="act")
    feature = net.op("Relu", net.gemm(feature, 16, 16, "time_2"), name="act_2")
    x = net.conv(sample, 16, 16, (1, 1), "first")
    for name, value in (("timed", feature), ("told", text)):
        bias = net.op(
            "Unsqueeze",
            net.gemm(value, 16, 16, f"{name}_proj"),
            net.constant(f"{name}_axes", np.array([2, 3])),
            name=f"{name}_column",
        )
        x = net.op("Relu", net.op("Add", x, bias, name=f"{name}_sum"), name=name)
    x = net.conv(x, 16, 16, (3, 3), "middle", pads=[1, 1, 1, 1])
    x = net.conv(net.op("Relu", x, name="late"), 16, 16, (3, 3), "late_conv", pads=[1, 1, 1, 1])
    x = net.conv(net.op("Relu", x, name="later"), 16, 16, (1, 1), "last")
    return net.model({x: ["batch", 16, 6, 6]})


def write_calls(folder: Path) -> None:
    """Write `text.onnx`, `recorded/`, `more.npz`, `calls.json`, `dicts.py` and `lists.py`."""
    onnx.save(text_model(), folder / "text.onnx")
    random = np.random.default_rng(0)
    (folder / "recorded").mkdir()
    for number in range(5):
        np.savez(folder / "recorded" / f"{number}.npz", **_trajectory(random, 4 + 5 * number))
    np.savez(folder / "more.npz", **_trajectory(random, 9))
    (folder / "dicts.py").write_text(OF_DICTS)
    (folder / "lists.py").write_text(OF_LISTS)
    space: dict[str, Any] = {}
    exec(OF_DICTS, space)
    save_json(list(space["load_data"]()), str(folder / "calls.json"))


def _trajectory(random: np.random.Generator, steps: int) -> dict[str, Any]:
    return {
        "sample": random.standard_normal((steps, 1, 16, 6, 6)).astype(np.float32),
        "timestep": np.linspace(990, 10, steps).astype(np.int64)[:, None],
        "text": random.standard_normal((1, 16)).astype(np.float32),
    }
