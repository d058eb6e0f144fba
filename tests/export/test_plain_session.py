"""A file for ONNX Runtime in a session of its defaults, which fuses Q/DQ into integer kernels.

On x86 CPUs without VNNI the kernel of uint8 by int8 adds pairs of products with saturation to 16
bits (``vpmaddubsw``), and that of uint8 by uint8 in 32 bits (``vpmaddwd``): the types of a fused
node's operands tell, on any CPU, what it computes on those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.model_file import save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import Bits, QuantPlan
from qvd_trt.export.targets import TARGETS, CodeType, FloatType, TargetProfile
from tests.export.calibrated import Calibrated, calibrated_model
from tests.export.every_form import every_form_net
from tests.export.graphs import GraphBuilder

Array = npt.NDArray[Any]

SIGNED = replace(TARGETS["ort"], code_type=CodeType.INT8)
"""As the other targets have it: what saturates."""
FUSED = {"MatMulIntegerToFloat", "QGemm", "QLinearMatMul", "QLinearConv", "MatMulInteger"}
DYNAMIC = {"MatMulNBits", "DynamicQuantizeMatMul"}
"""They round a float input to 8 bits where the file does not say so."""


@dataclass(frozen=True)
class Plain:
    """What ONNX Runtime makes of a file by its defaults."""

    path: Path
    optimized: onnx.ModelProto
    output: Array

    def nodes(self, ops: set[str]) -> list[onnx.NodeProto]:
        return [node for node in self.optimized.graph.node if node.op_type in ops]

    @property
    def constants(self) -> dict[str, Array]:
        held = self.optimized.graph.initializer
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in held}

    def faithful(self, feeds: Mapping[str, Array]) -> Array:
        """The output with Q and DQ as written."""
        output: Array = open_session(self.path, faithful_qdq=True).run(None, dict(feeds))[0]
        return output


def plain(
    source: Calibrated, plan: QuantPlan, path: Path, target: TargetProfile = TARGETS["ort"]
) -> Plain:
    save_model(apply_plan(source.model, plan, ApplyOptions(target, FloatType.FP32)), path)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # that the optimized file is for this machine alone
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    return Plain(path, optimized, session.run(None, source.feeds())[0])


def sqnr(reference: Array, output: Array) -> float:
    noise = np.square(reference - output, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-30)))


def assert_computes_the_file(found: Plain, feeds: Mapping[str, Array]) -> None:
    """Another order of addition moves a code that is a tie and what follows; most agree."""
    expected = found.faithful(feeds)
    misses = np.abs(expected - found.output) / expected.std()
    assert np.median(misses) < 1e-4


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    path = tmp_path_factory.mktemp("plain") / "hand_made.onnx"
    onnx.save(every_form_net(), path)
    return calibrated_model(path)


@pytest.mark.parametrize("name", ["animatediff", "wan"])
def test_fused_kernels_multiply_unsigned_codes(
    name: str, calibrated: Callable[[str], Calibrated], tmp_path: Path
) -> None:
    source = calibrated(name)
    found = plain(source, source.plan, tmp_path / "model.onnx")
    fused = found.nodes(FUSED)
    assert len(fused) >= 8
    constants = found.constants
    zero_points = {
        constants[name].dtype
        for node in fused
        for name in node.input
        if name in constants and constants[name].dtype in (np.int8, np.uint8)
    }
    assert zero_points == {np.dtype(np.uint8)}
    assert not found.nodes(DYNAMIC)
    signed = plain(source, source.plan, tmp_path / "signed.onnx", SIGNED)
    assert any(
        name in signed.constants and signed.constants[name].dtype == np.int8
        for node in signed.nodes(FUSED)
        for name in node.input
    )


def chain_net() -> onnx.ModelProto:
    """Layers without bias and with nothing between them, which fuse with the Q behind them."""
    net = GraphBuilder(seed=3)
    sample = net.input("sample", ["batch", 4, 8, 8])
    time = net.input("timestep", ["batch"])
    x = net.conv(sample, 4, 32, (3, 3), "conv_in", pads=[1, 1, 1, 1])
    level = net.op("Cos", time, name="level")
    level = net.op("Unsqueeze", level, net.constant("axes", np.array([1, 2, 3])), name="level_4d")
    x = net.op("Add", x, level, name="timed")
    for name in ("conv_1", "conv_2"):
        x = net.conv(x, 32, 32, (3, 3), name, bias=False, pads=[1, 1, 1, 1])
    x = net.op("Transpose", x, name="last_axis", perm=[0, 2, 3, 1])
    x = net.linear(net.reshape(x, [-1, 32], "rows"), 32, 48, "linear", bias=False)
    x = net.gemm(x, 48, 64, "gemm", bias=False)
    x = net.linear(x, 64, 32, "linear_2", bias=False)
    x = net.linear(x, 32, 4, "conv_out")
    x = net.op("Transpose", net.reshape(x, [-1, 8, 8, 4], "out"), name="nchw", perm=[0, 3, 1, 2])
    return net.model({x: ["batch", 4, 8, 8]})


@pytest.mark.parametrize("code_type", CodeType)
def test_every_fused_operator(code_type: CodeType, tmp_path: Path) -> None:
    """Convolutions, MatMul and Gemm between codes, too: never uint8 by int8."""
    path = tmp_path / "chain.onnx"
    onnx.save(chain_net(), path)
    source = calibrated_model(path, "minmax")
    target = replace(TARGETS["ort"], code_type=code_type)
    found = plain(source, source.plan, tmp_path / "model.onnx", target)
    constants = found.constants
    weights = {
        node.op_type: constants[node.input[1 if node.op_type.endswith("ToFloat") else 3]].dtype
        for node in found.nodes(FUSED)
    }
    wanted = {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}
    assert weights == dict.fromkeys(wanted, np.dtype(code_type.value))
    if code_type is CodeType.UINT8:
        assert_computes_the_file(found, source.feeds())


@pytest.mark.parametrize("bits", ["w8a8", "w4a6"])
def test_plain_session_computes_the_file(bits: str, hand_made: Calibrated, tmp_path: Path) -> None:
    plan = hand_made.replanned("qvd", Bits.parse(bits))
    found = plain(hand_made, plan, tmp_path / "model.onnx")
    assert len(found.nodes(FUSED)) >= 3
    assert_computes_the_file(found, hand_made.feeds())


def test_float_inputs_stay_float(hand_made: Calibrated, tmp_path: Path) -> None:
    plan = hand_made.replanned("qvd", Bits.parse("w8a16"))
    found = plain(hand_made, plan, tmp_path / "model.onnx")
    assert not found.nodes(DYNAMIC | FUSED)
    assert sqnr(found.faithful(hand_made.feeds()), found.output) > 100
    usual = replace(TARGETS["ort"], negative_axis=False)
    assert plain(hand_made, plan, tmp_path / "usual.onnx", usual).nodes(DYNAMIC)


@pytest.mark.parametrize("code_type", CodeType)
def test_products_without_vnni(code_type: CodeType, hand_made: Calibrated, tmp_path: Path) -> None:
    """Each fused product as an AVX2 kernel of its operands' types computes it, against exact."""
    target = replace(TARGETS["ort"], code_type=code_type)
    found = plain(hand_made, hand_made.plan, tmp_path / "model.onnx", target)
    fused, constants = found.nodes({"MatMulIntegerToFloat"}), found.constants
    assert fused
    read = sorted({node.input[0] for node in fused})
    for name in read:
        value = onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, None)
        found.optimized.graph.output.append(value)
    codes_path = tmp_path / "codes.onnx"
    onnx.save(found.optimized, codes_path)
    session = open_session(codes_path, optimized=False)
    codes = dict(zip(read, session.run(read, hand_made.feeds()), strict=True))
    saturated = 0
    for node in fused:
        data, weight = codes[node.input[0]], constants[node.input[1]]
        rows = data.reshape(-1, data.shape[-1])
        exact = rows.astype(np.int64) @ weight.astype(np.int64)
        saturated += int(np.count_nonzero(product_without_vnni(rows, weight) != exact))
    assert bool(saturated) == (code_type is CodeType.INT8)


def product_without_vnni(data: Array, weight: Array) -> Array:
    """``data @ weight`` of uint8 ``[M, K]`` and int8 or uint8 ``[K, N]`` codes; int64."""
    pairs = data.shape[1] // 2
    assert data.dtype == np.uint8
    products = data.astype(np.int64)[:, :, None] * weight.astype(np.int64)[None]
    sums = products.reshape(len(data), pairs, 2, -1).sum(axis=2)
    if weight.dtype == np.int8:
        sums = np.clip(sums, -(2**15), 2**15 - 1)
    else:
        sums = np.clip(sums, -(2**31), 2**31 - 1)
    total: Array = sums.sum(axis=1)
    return total
