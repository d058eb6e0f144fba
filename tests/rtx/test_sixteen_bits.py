"""What torch writes of a half or bfloat16 module, exported, quantized and compiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import torch

from qvd_trt.export.model_file import open_model
from qvd_trt.tools.cli.export import main

CHANNELS, WIDTH = 16, 64
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Denoiser(torch.nn.Module):
    """A convolution, tokens with a norm and an MLP, and a time embedding computed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.middle = torch.nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.time = torch.nn.Sequential(
            torch.nn.Linear(32, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.down = torch.nn.Linear(2 * WIDTH, WIDTH)
        self.last = torch.nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None].float() * torch.exp(-torch.arange(16) / 3)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).to(sample.dtype)
        hidden = self.first(sample) + self.time(features)[:, :, None, None]
        hidden = hidden + self.middle(torch.nn.functional.silu(hidden))
        tokens = hidden.flatten(2).transpose(1, 2)
        normal = self.norm(tokens.float()).to(sample.dtype)  # a float32 island
        tokens = tokens + self.down(torch.nn.functional.gelu(self.up(normal)))
        output: torch.Tensor = self.last(tokens.transpose(1, 2).reshape(hidden.shape))
        return output


class MixedNorm(torch.nn.LayerNorm):
    """Its weights stay float32 in a 16-bit module."""

    def _apply(self, fn: object, recurse: bool = True) -> MixedNorm:
        del fn, recurse
        return self


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fp16.onnx`, `bf16.onnx`, the float32 files of the same weights, and three trajectories."""
    folder = tmp_path_factory.mktemp("torch")
    shape = {"sample": {2: "height", 3: "width"}, "timestep": None}
    for name, dtype in TYPES.items():
        for suffix, final in (("", dtype), ("-wide", torch.float32)):
            torch.manual_seed(0)
            module = Denoiser()
            module.norm = MixedNorm(WIDTH)
            module = module.to(dtype).to(final).eval()
            example = (torch.randn(1, CHANNELS, 8, 8).to(final), torch.tensor([500]))
            path = folder / f"{name}{suffix}.onnx"
            torch.onnx.export(
                module, example, path, dynamo=True, opset_version=20, dynamic_shapes=shape
            )
    (folder / "calls").mkdir()
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(size=(4, 1, CHANNELS, 8, 8))
        sample = torch.from_numpy(noise).to(torch.bfloat16).float().numpy()
        steps = np.array([[900], [600], [300], [0]])
        np.savez(folder / f"calls/{seed}.npz", sample=sample, timestep=steps)
    return folder


def exported(folder: Path, name: str, *options: str) -> tuple[dict, dict]:  # type: ignore[type-arg]
    output = folder / f"{name}.out.onnx"
    arguments = [folder / f"{name}.onnx", "--calib", folder / "calls", "-o", output, *options]
    assert main([str(argument) for argument in arguments]) == 0
    report, plan = output.with_suffix(".report.json"), output.with_suffix(".plan.json")
    return json.loads(report.read_text()), json.loads(plan.read_text())


@pytest.mark.parametrize("name", TYPES)
def test_the_layers_of_the_float32_file(folder: Path, name: str) -> None:
    low, wide = (open_model(folder / f"{name}{suffix}.onnx") for suffix in ("", "-wide"))
    assert low.stored.value == name
    assert [layer.op for layer in low.layers.values()] == [
        layer.op for layer in wide.layers.values()
    ]
    assert [low.weight(layer.weight).tolist() for layer in low.layers.values()] == [
        wide.weight(layer.weight).tolist() for layer in wide.layers.values()
    ]
    casts, wide_casts = (
        sum(node.op_type == "Cast" for node in model.graph) for model in (low, wide)
    )
    assert casts - wide_casts == (2 if name == "fp16" else 0)  # those at the border
    in_file = [node.op_type for node in onnx.load(folder / f"{name}.onnx").graph.node]
    assert in_file.count("Cast") >= wide_casts + 3


@pytest.mark.parametrize("name", TYPES)
def test_quantized_alike_and_compiled(folder: Path, name: str) -> None:
    low_report, low = exported(folder, name)
    wide_report, wide = exported(folder, f"{name}-wide", "--dtype", name)
    assert low_report["dtype"] == name
    assert len(low["dense"]) == len(wide["dense"]) > 2
    for site, expected in zip(low["dense"], wide["dense"], strict=True):
        scale = expected["activation"]["scale"]
        assert site["activation"]["scale"] == pytest.approx(scale, rel=0.01)
    mean = wide_report["held_out_mean_sqnr"]
    assert low_report["held_out_mean_sqnr"] == pytest.approx(mean, abs=1)
    pytest.importorskip("tensorrt_rtx")
    from tests.rtx.builder import build, int8_layers

    profiles = {"sample": ((1, CHANNELS, 8, 8),) * 3, "timestep": ((1,),) * 3}
    built, reference = (
        build(folder / f"{name}{suffix}.out.onnx", ("8.9",), profiles) for suffix in ("", "-wide")
    )
    quantized = sum(len(site["layers"]) for site in low["dense"])
    assert len(int8_layers(built)) == len(int8_layers(reference)) >= quantized > 2
    kinds = [
        v.type.tensor_type.elem_type for v in onnx.load(folder / f"{name}.out.onnx").graph.output
    ]
    expected_kind = onnx.TensorProto.FLOAT16 if name == "fp16" else onnx.TensorProto.FLOAT
    assert kinds == [expected_kind]
