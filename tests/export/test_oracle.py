"""The emitted graph, run as written, against the numpy oracle of its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.model_file import save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import Bits, DensePlan, QuantPlan
from qvd_trt.export.targets import TARGETS, FloatType
from tests.export.calibrated import Calibrated, calibrated_model
from tests.export.every_form import every_form_net
from tests.oracle.fake_quant import Oracle

Array = npt.NDArray[Any]

TIE = 1e-2
"""A code may differ from the oracle's where the value lies this close, in codes, to the middle
between two of them: the sums in front of it have another order of addition, so another last bit."""


@dataclass(frozen=True)
class Emitted:
    """What the emitted file computes: its output, and its layers' codes less the zero point."""

    output: Array
    codes: Mapping[str, Array]


@dataclass(frozen=True)
class Agreement:
    """Output SQNR in dB; by layer, the share of equal codes and the largest miss in codes."""

    sqnr: float
    equal: Mapping[str, float]
    miss: Mapping[str, float]


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    path = tmp_path_factory.mktemp("oracle") / "hand_made.onnx"
    onnx.save(every_form_net(), path)
    return calibrated_model(path)


@pytest.fixture(scope="module")
def found(hand_made: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    path = tmp_path_factory.mktemp("control") / "model.onnx"
    return emitted(hand_made, hand_made.plan, "ort", path, hand_made.feeds())


def emitted(
    model: Calibrated, plan: QuantPlan, target: str, path: Path, feeds: Mapping[str, Array]
) -> Emitted:
    save_model(apply_plan(model.model, plan, ApplyOptions(TARGETS[target], FloatType.FP32)), path)
    proto = onnx.load(path)
    output = proto.graph.output[0].name
    read = {
        quant.name: quantized_input(proto.graph, quant.name)
        for site in plan.dense
        if site.activation is not None
        for quant in site.layers
    }
    zero = 128 if target == "ort" else 0
    code_type = onnx.TensorProto.UINT8 if zero else onnx.TensorProto.INT8
    for name in sorted(set(read.values())):
        proto.graph.output.append(helper.make_tensor_value_info(name, code_type, None))
    onnx.save(proto, path)
    session = open_session(path, faithful_qdq=True)
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    codes = {layer: values[name].astype(np.int16) - zero for layer, name in read.items()}
    return Emitted(values[output], codes)


def quantized_input(graph: onnx.GraphProto, layer: str) -> str:
    """The codes that a layer reads, found in the file: QuantizeLinear, DequantizeLinear, layer."""
    producers = {name: node for node in graph.node for name in node.output}
    node = next(node for node in graph.node if node.name == layer)
    dequantize = producers[node.input[0]]
    quantize = producers[dequantize.input[0]]
    assert [quantize.op_type, dequantize.op_type] == ["QuantizeLinear", "DequantizeLinear"]
    return str(quantize.output[0])


def agreement(
    model: Calibrated, plan: QuantPlan, found: Emitted, feeds: Mapping[str, Array]
) -> Agreement:
    oracle = Oracle(onnx.load(model.path), plan)
    expected = oracle.run(feeds, found.codes)
    assert oracle.positions.keys() == found.codes.keys()
    equal, miss = {}, {}
    for layer, codes in found.codes.items():
        position = interior(oracle.positions[layer], codes.shape)
        equal[layer] = float(np.mean(np.rint(position) == codes))
        miss[layer] = float(np.abs(position - codes).max())
    return Agreement(sqnr(expected, found.output), equal, miss)


def interior(padded: Array, shape: tuple[int, ...]) -> Array:
    """Take off the padding that the emitted convolution does by itself; it must be zeros."""
    if padded.shape == shape:
        return padded
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape)
    offsets = np.ndindex(*windows.shape[: padded.ndim])
    best = max(offsets, key=lambda offset: float(np.abs(windows[offset], dtype=np.float64).sum()))
    inside: Array = windows[best]
    assert np.count_nonzero(padded) == np.count_nonzero(inside)
    return inside


def sqnr(reference: Array, output: Array) -> float:
    noise = np.square(reference - output, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-30)))


def assert_agrees(found: Agreement) -> None:
    assert found.sqnr > 60
    assert min(found.equal.values()) >= 0.999
    assert max(found.miss.values()) <= 0.5 + TIE


@pytest.mark.parametrize("target", ["ort", "trt8"])
@pytest.mark.parametrize("name", ["animatediff", "wan"])
def test_architecture_computes_its_plan(
    calibrated: Callable[[str], Calibrated], name: str, target: str, tmp_path: Path
) -> None:
    model = calibrated(name)
    feeds = model.feeds()
    found = emitted(model, model.plan, target, tmp_path / "model.onnx", feeds)
    assert len(found.codes) >= 12
    assert_agrees(agreement(model, model.plan, found, feeds))


@pytest.mark.parametrize("target", ["ort", "trt8"])
@pytest.mark.parametrize(
    ("algorithm", "bits"),
    [
        ("qvd", "w8a8"),
        ("shift", "w8a8"),
        ("smoothquant", "w4a6"),
        ("minmax", "w8a8"),
        ("qvd", "w4a4"),
        ("qvd", "w16a8"),
        ("qvd", "w8a16"),
    ],
)
def test_hand_made_net_computes_its_plan(
    hand_made: Calibrated, algorithm: str, bits: str, target: str, tmp_path: Path
) -> None:
    plan = hand_made.replanned(algorithm, Bits.parse(bits))
    feeds = hand_made.feeds()
    found = emitted(hand_made, plan, target, tmp_path / "model.onnx", feeds)
    oracle = Oracle(onnx.load(hand_made.path), plan)
    expected = oracle.run(feeds, found.codes)
    assert sqnr(expected, found.output) > 60
    if bits != "w8a16":
        assert len(found.codes) == 9
        assert_agrees(agreement(hand_made, plan, found, feeds))


def test_hand_made_net_holds_every_form(hand_made: Calibrated) -> None:
    """What the other tests speak of is there: padded sites with a shift, and a temporal one."""
    plan = hand_made.replanned("shift", Bits.parse("w8a8"))
    shifted = {q.name for site in plan.dense for q in site.layers}
    assert shifted == {
        "padded", "shortcut", "grouped", "over_time", "query", "key", "text", "widen", "narrow",
    }  # fmt: skip
    assert all(site.activation and site.activation.shift is not None for site in plan.dense)
    assert [q.name for site in plan.temporal for q in site.layers] == ["time_proj_1", "time_proj_2"]


def typical_miss(reference: AnyArray, output: AnyArray) -> float:
    """The error that 90 % of the elements stay below, in standard deviations of the reference."""
    return float(np.quantile(np.abs(output - reference), 0.9) / reference.std())


class TestNegativeControls:
    """The same file against the oracle of another plan."""

    def test_right_plan(self, hand_made: Calibrated, found: Emitted) -> None:
        assert_agrees(agreement(hand_made, hand_made.plan, found, hand_made.feeds()))
        # This net is shallow: where each side goes on with its own codes, a tie that falls the
        # other way touches a few outputs, and all others agree.
        assert typical_miss(free_run(hand_made, hand_made.plan), found.output) < 1e-4

    @pytest.mark.parametrize("tensor", ["scattered_out", "group_norm_add_out", "layer_norm_out"])
    def test_other_activation_scale(
        self, hand_made: Calibrated, found: Emitted, tensor: str
    ) -> None:
        plan = with_site(hand_made.plan, tensor, scaled_activation)
        wrong = agreement(hand_made, plan, found, hand_made.feeds())
        layers = [q.name for site in plan.dense if site.tensor == tensor for q in site.layers]
        assert layers
        for layer in layers:
            assert wrong.equal[layer] < 0.9
            assert wrong.miss[layer] > 2
        free = free_run(hand_made, plan)
        assert sqnr(free, found.output) < 50
        assert typical_miss(free, found.output) > 1e-3

    def test_other_shift(self, hand_made: Calibrated, tmp_path: Path) -> None:
        right = hand_made.replanned("shift", Bits.parse("w8a8"))
        found = emitted(hand_made, right, "ort", tmp_path / "model.onnx", hand_made.feeds())
        plan = with_site(right, "scattered_out", moved_shift)
        wrong = agreement(hand_made, plan, found, hand_made.feeds())
        assert wrong.equal["padded"] < 0.99
        assert wrong.miss["padded"] > 4
        assert sqnr(free_run(hand_made, plan), found.output) < 60

    def test_other_weight_scales(self, hand_made: Calibrated, found: Emitted) -> None:
        plan = with_site(hand_made.plan, "scattered_out", scaled_weights)
        wrong = agreement(hand_made, plan, found, hand_made.feeds())
        assert wrong.equal["padded"] >= 0.999  # its input is as it was
        assert wrong.equal["grouped"] < 0.999  # the first site behind it
        assert wrong.miss["grouped"] > 0.5 + TIE
        assert sqnr(free_run(hand_made, plan), found.output) < 50

    def test_no_bias_correction(self, hand_made: Calibrated, found: Emitted) -> None:
        plan = with_site(hand_made.plan, "positive_rows_out", without_correction)
        assert agreement(hand_made, plan, found, hand_made.feeds()).sqnr < 60

    def test_other_codebook(self, hand_made: Calibrated, found: Emitted) -> None:
        uniform = hand_made.replanned("minmax", Bits.parse("w8a8"))
        plan = replace(hand_made.plan, temporal=uniform.temporal)
        assert sqnr(free_run(hand_made, plan), found.output) < 50

    def test_float_model(self, hand_made: Calibrated) -> None:
        output = open_session(hand_made.path).run(None, hand_made.feeds())[0]
        assert 15 < sqnr(free_run(hand_made, hand_made.plan), output) < 60


def test_oracle_of_an_empty_plan_is_the_float_model(hand_made: Calibrated) -> None:
    """The oracle's own arithmetic: nothing rounded, every layer computed by it, float result."""
    feeds = hand_made.feeds()
    plan = replace(
        hand_made.plan,
        dense=tuple(
            replace(
                site,
                activation=None,
                layers=tuple(replace(q, weight=None, bias_correction=None) for q in site.layers),
            )
            for site in hand_made.plan.dense
        ),
        temporal=(),
    )
    expected = open_session(hand_made.path).run(None, feeds)[0]
    assert sqnr(expected, Oracle(onnx.load(hand_made.path), plan).run(feeds)) > 100


def free_run(model: Calibrated, plan: QuantPlan) -> Array:
    return Oracle(onnx.load(model.path), plan).run(model.feeds())


def with_site(plan: QuantPlan, tensor: str, change: Callable[[DensePlan], DensePlan]) -> QuantPlan:
    assert tensor in {site.tensor for site in plan.dense}
    dense = tuple(change(site) if site.tensor == tensor else site for site in plan.dense)
    return replace(plan, dense=dense)


def scaled_activation(site: DensePlan) -> DensePlan:
    assert site.activation is not None
    activation = replace(site.activation, scale=site.activation.scale * 1.05)
    return replace(site, activation=activation)


def moved_shift(site: DensePlan) -> DensePlan:
    assert site.activation is not None
    assert site.activation.shift is not None
    shift = site.activation.shift.copy()
    shift[0] += np.float32(5 * site.activation.scale)
    return replace(site, activation=replace(site.activation, shift=shift))


def scaled_weights(site: DensePlan) -> DensePlan:
    layers = []
    for quant in site.layers:
        assert quant.weight is not None
        weight = replace(quant.weight, scales=quant.weight.scales * np.float32(1.05))
        layers.append(replace(quant, weight=weight))
    return replace(site, layers=tuple(layers))


def without_correction(site: DensePlan) -> DensePlan:
    assert any(quant.bias_correction is not None for quant in site.layers)
    layers = tuple(replace(quant, bias_correction=None) for quant in site.layers)
    return replace(site, layers=layers)
