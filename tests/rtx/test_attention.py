"""Attention in the real compiler: why it is written out, and that it costs no kernel."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

pytest.importorskip("tensorrt_rtx")

from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from tests.export.attention_graphs import attention
from tests.rtx.builder import Profiles, RtxBuildError, build

FUSED = "_gemm_mha"


def profiles(model: onnx.ModelProto) -> Profiles:
    """1 to 2 batches of 8 to 64 tokens."""
    found = {}
    for value in model.graph.input:
        extents = value.type.tensor_type.shape.dim
        found[value.name] = tuple(
            [d.dim_value or (batch if d.dim_param == "b" else tokens) for d in extents]
            for batch, tokens in ((1, 8), (2, 32), (2, 64))
        )
    return found  # type: ignore[return-value]


def kernels(model: onnx.ModelProto, path: Path) -> list[str]:
    onnx.save(model, path)
    built = build(path, ("8.9",), profiles(model))
    return [layer.name for layer in built.layers]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("heads", "float32"), ("softcap", "float16"), ("wider values", "float16")],
)
def test_some_attention_nodes_are_not_built(form: str, dtype: str, tmp_path: Path) -> None:
    model = attention(form, 23, _dtype(dtype))
    with pytest.raises(RtxBuildError):
        kernels(model, tmp_path / "model.onnx")
    DecomposeAttention()(loaded := ir.from_proto(model))
    assert kernels(ir.to_proto(loaded), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "form", ["tokens by heads", "grouped", "bool mask", "float mask", "causal"]
)
def test_written_out_it_is_the_same_kernel(form: str, tmp_path: Path) -> None:
    model = attention(form, 23, TensorProto.FLOAT16)
    fused = [name for name in kernels(model, tmp_path / "fused.onnx") if FUSED in name]
    LowerOpset(17)(loaded := ir.from_proto(model))
    written_out = kernels(ir.to_proto(loaded), tmp_path / "written_out.onnx")
    assert len([name for name in written_out if FUSED in name]) == len(fused) == 1


def _dtype(name: str) -> int:
    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[name]
