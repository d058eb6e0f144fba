"""What torch's exporter makes of attention at opset 23, written out for TensorRT, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from qvd_trt.export.passes.normalize import Normalize
from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from tests.export.lower_graphs import ops, run_in_onnx_runtime

attend = torch.nn.functional.scaled_dot_product_attention


class Attend(torch.nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.form == "mask":
            return attend(q, k, v, attn_mask=k[:, :1, None, :, 0] > 0)
        if self.form == "bias":
            return attend(q, k, v, attn_mask=k[:, :1, None, :, 0].squeeze(1)[:, None])
        if self.form == "causal":
            return attend(q, k, v, is_causal=True)
        if self.form == "grouped":
            return attend(q, k[:, :2], v[:, :2], enable_gqa=True)
        return attend(q, k, v, scale=0.3)


@pytest.mark.parametrize("form", ["mask", "bias", "causal", "grouped", "scale"])
def test_equals_torch(form: str, tmp_path: Path) -> None:
    def tensors(batch: int, queries: int, keys: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(batch, 4, tokens, 16) for tokens in (queries, keys, keys))

    torch.manual_seed(0)
    module = Attend(form)
    example = tensors(2, 6, 6 if form == "causal" else 9)
    auto = torch.export.Dim.AUTO
    shapes = tuple({0: auto, 2: auto} for _ in example)
    program = torch.onnx.export(
        module, example, dynamo=True, opset_version=23, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    for opset in (23, 17):
        model = ir.load(tmp_path / "model.onnx")
        assert "Attention" in ops(model)
        Normalize()(model)
        (DecomposeAttention() if opset == 23 else LowerOpset(17))(model)
        assert "Attention" not in ops(model)
        for inputs in (example, tensors(3, 11, 11 if form == "causal" else 5)):
            names = [value.name or "" for value in model.graph.inputs]
            feeds = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
            expected = module(*inputs).numpy()
            (actual,) = run_in_onnx_runtime(model, feeds)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
