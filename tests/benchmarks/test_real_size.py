"""Skeletons of the latency benchmark, and how its layers are sorted."""

from __future__ import annotations

import lzma
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.real_size import engines, latency
from benchmarks.real_size.engines import BuildOptions
from benchmarks.real_size.kernel_trace import kernel_kind
from benchmarks.real_size.layer_report import (
    FLOAT_PRODUCT,
    FUSED_REGION,
    HTDQ,
    INT8_PRODUCT,
    OTHER,
    REFORMAT,
    layer_times,
    summarize,
)
from benchmarks.real_size.skeleton import fill, strip
from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compiler import CompileAnswer

K, N = 64, 320


def _quantized_linear(folder: Path) -> Path:
    """x [batch, K] -> Q, DQ -> MatMul with a Q-DQ weight, its data in an external file."""
    weight = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    initializers = {
        "weight": weight,
        "weight_scale": np.full(N, 0.02, np.float32),
        "weight_zero": np.zeros(N, np.int8),
        "scale": np.float32(0.03),
        "zero": np.int8(0),
        "gain": np.ones(N * 8, np.float32).reshape(8, N),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node(
            "QuantizeLinear", ["weight", "weight_scale", "weight_zero"], ["wq"], axis=1
        ),
        helper.make_node("DequantizeLinear", ["wq", "weight_scale", "weight_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], doc_string="a secret path"),
        helper.make_node("Mul", ["y", "gain"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", K])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "linear.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="d.bin", size_threshold=0)
    return path


def test_a_filled_skeleton_is_a_model_like_the_original(tmp_path: Path) -> None:
    source = _quantized_linear(tmp_path)
    strip(source, tmp_path / "skeleton.onnx.xz", {"x": (8, K)})
    (tmp_path / "d.bin").unlink()
    assert (tmp_path / "skeleton.onnx.xz").stat().st_size < 3000
    assert b"secret" not in lzma.decompress((tmp_path / "skeleton.onnx.xz").read_bytes())
    filled = fill(tmp_path / "skeleton.onnx.xz", tmp_path / "filled")
    onnx.checker.check_model(str(filled))
    session = ort.InferenceSession(str(filled))
    assert session.get_inputs()[0].shape == [8, K]
    x = np.random.default_rng(1).standard_normal((8, K)).astype(np.float32)
    (z,) = session.run(None, {"x": x})
    assert z.shape == (8, N)
    assert 0.3 < z.std() < 1.0  # of torch's default initialization: 1 / sqrt(3)


def test_weights_are_drawn_by_their_role(tmp_path: Path) -> None:
    source = _quantized_linear(tmp_path)
    strip(source, tmp_path / "skeleton.onnx.xz", {"x": (8, K)})
    filled = onnx.load(str(fill(tmp_path / "skeleton.onnx.xz", tmp_path / "filled")))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in filled.graph.initializer}
    assert abs(values["weight"].std() * np.sqrt(3 * K) - 1) < 0.1
    assert abs(values["gain"].mean() - 1) < 0.01
    assert not values["weight_zero"].any()
    assert abs(127 * values["weight_scale"].mean() / values["weight"].std() - 3) < 0.3
    assert values["scale"] == np.float32(0.03)  # small: stays as it was
    again = onnx.load(str(fill(tmp_path / "skeleton.onnx.xz", tmp_path / "again")))
    assert again == filled


@pytest.mark.parametrize(("variant", "int8"), [("fp", False), ("w8a8", True)])
def test_only_quantized_variants_are_built_with_int8(
    variant: str, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = tmp_path / f"small_{variant}.onnx.xz"
    strip(_quantized_linear(tmp_path), skeleton, {"x": (8, K)})
    asked: list[BuildPlan] = []

    def compile_in_child(plan: BuildPlan) -> CompileAnswer:
        asked.append(plan)
        return CompileAnswer(engine=b"plan", seconds=1.0)

    install: Any = SimpleNamespace(version=(8, 6, 0))
    monkeypatch.setattr(engines, "find_tensorrt", lambda kind: install)
    monkeypatch.setattr(engines, "compile_in_child", compile_in_child)
    entry: dict[str, Any] = {"error": "of an earlier call"}
    options = BuildOptions(0, tmp_path / "cache", plugin=None, logs=None)
    latency.build(skeleton, variant, tmp_path / "small.plan", entry, options)
    (plan,) = asked
    assert plan.flags == (("int8", "fp16") if int8 else ("fp16",))
    assert not plan.cublas
    assert (tmp_path / "small.plan").read_bytes() == b"plan"
    assert "error" not in entry


def test_layers_are_sorted_by_what_they_read_and_are() -> None:
    int8 = [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]
    layers: list[dict[str, Any]] = [
        {"Name": "conv_in", "LayerType": "CaskConvolution", "Inputs": int8},
        {"Name": "proj", "LayerType": "CaskGemmMatrixMultiply", "TacticName": "sm80_f16f16"},
        {"Name": "{ForeignNode[a...b]}", "LayerType": "Myelin"},
        {"Name": "Reformatting CopyNode for Input", "LayerType": "Reformat"},
        {"Name": "silu/qvd/htdq", "LayerType": "PluginV2"},
        {"Name": "softmax", "LayerType": "SoftMax"},
    ]
    times = {layer["Name"]: 1.0 for layer in layers}
    found = {layer.name: layer.kind for layer in layer_times(layers, times)}
    assert list(found.values()) == [
        INT8_PRODUCT,
        FLOAT_PRODUCT,
        FUSED_REGION,
        REFORMAT,
        HTDQ,
        OTHER,
    ]
    summary = summarize(layer_times(layers, times))
    assert summary["kinds"][INT8_PRODUCT] == {"layers": 1, "ms": 1.0, "share": 0.1667}


def test_a_file_without_convolutions_has_no_build_by_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = tmp_path / "small_implicit.onnx.xz"
    strip(_quantized_linear(tmp_path), skeleton, {"x": (8, K)})
    install: Any = SimpleNamespace(version=(8, 6, 0))
    monkeypatch.setattr(engines, "find_tensorrt", lambda kind: install)
    monkeypatch.delattr(engines, "compile_in_child")
    entry: dict[str, Any] = {}
    options = BuildOptions(0, tmp_path / "cache", plugin=None, logs=None)
    latency.build(skeleton, latency.IMPLICIT, tmp_path / "small.plan", entry, options)
    assert "has no quantized Conv" in entry["error"]
    assert not (tmp_path / "small.plan").exists()
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize256x64x128_execute_kernel_trt", INT8_PRODUCT),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x256x32_execute", FLOAT_PRODUCT),
        ("_ZN6cuInt810nhwcTonchwI6__halfLi32ELi32ELi2EEEvPKS1_PT_iiiiii", REFORMAT),
        ("sm50_xmma_softmax_trt_AxisW_FP16NCHW_execute2_kernel_trt", OTHER),
        ("_ZN18CUTENSOR_NAMESPACE21permutationKernelPLC3", REFORMAT),
        ("mha1", "attention"),
        ("__myl_bb0_10_MaxSubExpSumDivMul", OTHER),
    ],
)
def test_kernels_as_tensorrt_names_them(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind
