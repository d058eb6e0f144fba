"""Every target profile obeys the rules of its runtime (docs/design.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
from qvd_trt.calibrators.statistics import collector
from qvd_trt.calibrators.temporal import timestep_sweep
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.model_file import load_model, save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.quant_plan import W8A8, Bits, QuantPlan
from qvd_trt.export.plan.scale_math import representable_scale
from qvd_trt.export.plan.site_types import LayerOp
from qvd_trt.export.progress import SilentProgress
from qvd_trt.export.targets import (
    TARGETS,
    FloatType,
    HtdqForm,
    ScaleType,
    WeightForm,
    choose_float_type,
)
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_request import QuantizeRequest
from tests.export.calibrated import Calibrated, calibrated_model
from tests.export.every_form import every_form_net
from tests.export.graphs import GraphBuilder, opened, prepared

Array = npt.NDArray[Any]

ARCHITECTURES = ("animatediff", "latte", "svd", "wan")
PROFILES = [
    (target.name, float_type.value)
    for target in TARGETS.values()
    for float_type in target.float_types
]
OPSETS = {"ort": (17, 23), "rtx": (17, 23), "trt": (19, 23), "trt8": (17, 17)}
RUN_BY_ORT = [
    profile
    for profile in PROFILES
    if profile not in {("rtx", "bf16"), ("trt", "bf16")}  # no such kernels on the CPU
]
CODES = {
    "ort": TensorProto.UINT8,
    "rtx": TensorProto.INT8,
    "trt": TensorProto.INT8,
    "trt8": TensorProto.INT8,
}
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Emitted:
    """One file with what it was made from."""

    source: Calibrated
    target: str
    dtype: str
    path: Path
    proto: onnx.ModelProto

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.proto.graph.node for name in node.output}

    def nodes(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type in ops]


@pytest.fixture(scope="module")
def emit(
    calibrated: Callable[[str], Calibrated], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], Emitted]:
    folder = tmp_path_factory.mktemp("targets")

    @cache
    def build(name: str, target: str, dtype: str) -> Emitted:
        source = calibrated(name)
        path = folder / f"{name}.{target}.{dtype}.onnx"
        options = ApplyOptions(TARGETS[target], FloatType(dtype))
        save_model(apply_plan(source.model, source.plan, options), path)
        return Emitted(source, target, dtype, path, onnx.load(path))

    return build


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=PROFILES, ids="-".join)
def model(
    request: pytest.FixtureRequest, architecture: str, emit: Callable[[str, str, str], Emitted]
) -> Emitted:
    return emit(architecture, *request.param)


class TestRules:
    def test_file_is_valid(self, model: Emitted) -> None:
        onnx.checker.check_model(model.proto, full_check=True)
        lowest, highest = OPSETS[model.target]
        opset = {entry.domain: entry.version for entry in model.proto.opset_import}
        assert lowest <= opset[""] <= highest

    def test_every_planned_layer_and_no_other_is_quantized(self, model: Emitted) -> None:
        producers = model.producers

        def is_dequantized(tensor: str) -> bool:
            node = producers.get(tensor)
            while node is not None and node.op_type == "Cast":
                node = producers.get(node.input[0])
            return node is not None and node.op_type == "DequantizeLinear"

        found = {
            node.name: tuple(is_dequantized(name) for name in node.input)
            for node in model.proto.graph.node
            if node.op_type in {op.value for op in LayerOp}
        }
        plan = model.source.plan
        dense = {q.name for site in plan.dense for q in site.layers}
        temporal = {q.name for site in plan.temporal for q in site.layers}
        assert {name for name, inputs in found.items() if inputs[0]} == dense
        assert {name for name, inputs in found.items() if inputs[1]} == dense | temporal
        assert not any(any(inputs[2:]) for inputs in found.values())  # the bias

    def test_scales_and_zero_points(self, model: Emitted) -> None:
        constants = model.constants
        own_type = (model.target, model.dtype) == ("trt", "fp16")
        scale_type = FLOATS["fp16" if own_type else "fp32"]
        nodes = model.nodes("QuantizeLinear", "DequantizeLinear")
        assert len(nodes) > 20
        for node in nodes:
            scale, zero = (constants[name] for name in node.input[1:3])
            values = numpy_helper.to_array(scale)
            assert scale.data_type == scale_type
            middle = 128 if model.target == "ort" else 0
            assert zero.data_type == CODES[model.target]
            assert (numpy_helper.to_array(zero) == middle).all()
            assert list(zero.dims) == list(scale.dims)
            assert np.isfinite(values).all()
            assert (values > 0).all()
            assert len(scale.dims) == (0 if self._is_activation(model, node) else 1)

    def _is_activation(self, model: Emitted, node: onnx.NodeProto) -> bool:
        producers, constants = model.producers, model.constants
        name = node.input[0]
        while name in producers:
            name = producers[name].input[0]
            if name in constants:
                return False
            if name in producers and producers[name].op_type not in ("QuantizeLinear", "Cast"):
                return True
        return name not in constants

    def test_weight_scales_lie_along_the_output_channels(self, model: Emitted) -> None:
        producers, constants = model.producers, model.constants
        layers = {layer.name: layer for layer in find_layers(model.source.model.graph)[0]}
        quants = {quant.name: quant for quant in model.source.plan.layers()}
        for node in model.nodes(*(op.value for op in LayerOp)):
            if node.name not in quants:
                continue
            dequantize = producers[node.input[1]]
            while dequantize.op_type == "Cast":
                dequantize = producers[dequantize.input[0]]
            axis = next(entry.i for entry in dequantize.attribute if entry.name == "axis")
            layer, quant = layers[node.name], quants[node.name]
            reads_float = any(quant in site.layers for site in model.source.plan.temporal)
            from_end = model.target == "ort" and reads_float
            assert axis == layer.out_axis - (2 if from_end else 0)  # those are linear
            assert quant.weight is not None
            scales = numpy_helper.to_array(constants[dequantize.input[1]])
            assert scales.shape == (layer.out_channels,)
            np.testing.assert_allclose(scales, quant.weight.scales, rtol=1e-3, atol=2.0**-20)
            source = dequantize.input[0]
            if TARGETS[model.target].weight_form is WeightForm.CODES:
                assert constants[source].data_type == CODES[model.target]
                assert constants[source].dims[axis] == layer.out_channels
            else:
                quantize = producers[source]
                assert quantize.op_type == "QuantizeLinear"
                assert quantize.input[1] == dequantize.input[1]
                assert constants[quantize.input[0]].data_type == TensorProto.FLOAT

    def test_no_other_quantization_operators(self, model: Emitted) -> None:
        used = {node.op_type for node in model.proto.graph.node}
        forbidden = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
        assert not used & (forbidden | {"DynamicQuantizeLinear"})
        kinds = {tensor.data_type for tensor in model.proto.graph.initializer}
        kinds -= {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}  # shapes and the like
        assert kinds <= {CODES[model.target], TensorProto.FLOAT, FLOATS[model.dtype]}

    def test_no_constant_is_left_over(self, model: Emitted) -> None:
        """A quantized weight is not stored a second time in float."""
        read = {name for node in model.proto.graph.node for name in all_reads(node)}
        read |= {value.name for value in model.proto.graph.output}
        assert {tensor.name for tensor in model.proto.graph.initializer} <= read

    def test_temporal_features(self, model: Emitted) -> None:
        plans = model.source.plan.temporal
        nodes = model.nodes("HTDQ")
        domains = {entry.domain for entry in model.proto.opset_import}
        assert plans
        if model.target == "trt8":
            assert not nodes
            assert not model.proto.functions
            assert "qvd" not in domains
            return
        assert [(f.domain, f.name) for f in model.proto.functions] == [("qvd", "HTDQ")]
        assert "qvd" in domains
        assert len(nodes) == len(plans)
        for node, plan in zip(nodes, plans, strict=True):
            attributes = {
                entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute
            }
            assert node.domain == "qvd"
            assert attributes.pop("plugin_namespace") == b"qvd"
            assert attributes.pop("plugin_version") == b"1"
            levels = np.float32(attributes.pop("levels"))
            thresholds = np.float32(attributes.pop("thresholds"))
            assert not attributes
            np.testing.assert_array_equal(levels, plan.codebook.levels)
            np.testing.assert_array_equal(thresholds, plan.codebook.thresholds)

    def test_names_are_kept(self, model: Emitted) -> None:
        before = model.source.model.graph
        graph = model.proto.graph
        assert [v.name for v in graph.input] == [v.name for v in before.inputs]
        assert [v.name for v in graph.output] == [v.name for v in before.outputs]
        names = {node.name for node in graph.node}
        lost = {node.op_type for node in before if node.name not in names}
        if model.target == "trt8":
            assert lost <= {"Gelu", "GroupNormalization"}  # opset 17 has to write them out
        else:
            assert not lost
        assert len(names) == len(graph.node)

    def test_file_says_what_it_is(self, model: Emitted) -> None:
        entries = {entry.key: entry.value for entry in model.proto.metadata_props}
        plan = model.source.plan
        assert entries["qvd.source"] == plan.model_hash
        assert entries["qvd.target"] == model.target
        assert entries["qvd.dtype"] == model.dtype
        assert entries["qvd.bits"] == "w8a8"


@pytest.mark.parametrize("profile", RUN_BY_ORT, ids="-".join)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnxruntime_runs_it(
    name: str, profile: tuple[str, str], emit: Callable[[str, str, str], Emitted]
) -> None:
    """As accurate as the reference form: what a profile changes is the form alone."""
    found, reference = emit(name, *profile), emit(name, "ort", "fp32")
    feeds = reference.source.feeds()
    expected = run(reference.source.path, feeds)
    usual = sqnr(expected, run(reference.path, feeds))
    assert usual > 10
    assert sqnr(expected, run(found.path, cast_feeds(found.proto, feeds))) > usual - 1.5


@pytest.mark.parametrize("form", HtdqForm)
def test_htdq_form_can_be_chosen(form: HtdqForm, calibrated: Callable[[str], Calibrated]) -> None:
    source = calibrated("wan")
    options = ApplyOptions(TARGETS["trt"], FloatType.FP32, htdq_form=form)
    emitted = apply_plan(source.model, source.plan, options)
    held = [node.op_type for node in emitted.graph].count("HTDQ")
    assert (held, len(emitted.functions)) == {
        HtdqForm.FUNCTION: (1, 1),
        HtdqForm.INLINE: (0, 0),
        HtdqForm.PLUGIN: (1, 0),
    }[form]


@pytest.mark.parametrize("bits", ["w4a8", "w8a6", "w16a8", "w8a16"])
def test_narrow_widths_live_in_8_bits(bits: str, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(every_form_net(), path)
    source = calibrated_model(path, "smoothquant", Bits.parse(bits))
    emitted = apply_plan(source.model, source.plan, ApplyOptions(TARGETS["ort"], FloatType.FP32))
    save_model(emitted, tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weights = [
        constants[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    highest = {"w4": 7, "w8": 127}.get(bits[:2], 0)
    assert bool(weights) == (bits != "w16a8")
    assert all(np.abs(array.astype(int) - 128).max() == highest for array in weights)

    quantized = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    assert bool(quantized) == (bits != "w8a16")
    assert len(clips) == (len(quantized) if bits == "w8a6" else 0)
    for node in clips:
        low, high = (constants[name] for name in node.input[1:3])
        reader = next(q for q in quantized if q.input[0] == node.output[0])
        scale = constants[reader.input[1]]
        np.testing.assert_allclose([low / scale, high / scale], [-32, 31], rtol=1e-6)


class TestOpsets:
    """Any opset from 13 to 25 is brought into the target's bounds."""

    def apply(self, opset: int, target: str, dtype: str) -> int:
        net = GraphBuilder(opset=opset)
        x = net.input("x", [2, 3, 16])
        model = prepared(net.unchecked({net.linear(x, 16, 16, "linear"): [2, 3, 16]}))
        plan = QuantPlan("sha256:x", W8A8, "qvd", (), (), ())
        options = ApplyOptions(TARGETS[target], FloatType(dtype))
        return apply_plan(opened(model), plan, options).opset_imports[""]

    @pytest.mark.parametrize(
        ("opset", "target", "dtype", "expected"),
        [
            (17, "rtx", "fp16", 17),
            (17, "trt", "fp16", 19),
            (17, "rtx", "bf16", 22),
            (23, "trt", "fp16", 23),
            (23, "trt8", "fp32", 17),
            (24, "trt", "bf16", 23),
            (24, "rtx", "fp16", 23),
            (25, "ort", "fp32", 23),
            (25, "trt8", "fp32", 17),
            (13, "trt8", "fp32", 17),
            (13, "rtx", "fp16", 17),
            (14, "trt", "fp16", 19),
            (13, "trt", "bf16", 22),
            (16, "ort", "fp32", 17),
        ],
    )
    def test_emitted_opset(self, opset: int, target: str, dtype: str, expected: int) -> None:
        assert self.apply(opset, target, dtype) == expected


class TestFloatTypes:
    def test_default_is_the_first(self) -> None:
        assert choose_float_type(TARGETS["trt"], None) is FloatType.FP16
        assert choose_float_type(TARGETS["ort"], "fp16") is FloatType.FP16

    @pytest.mark.parametrize(("target", "dtype"), [("trt8", "fp16"), ("ort", "bf16")])
    def test_others_are_refused(self, target: str, dtype: str) -> None:
        with pytest.raises(UserError, match=f"--dtype {dtype}: target {target} takes"):
            choose_float_type(TARGETS[target], dtype)

    def test_fp16_scales_are_fp16_numbers(self) -> None:
        # The least is that of a channel of zeros.
        scales = np.array([0.1, 1e-12, 3.14159], np.float32)
        stored = representable_scale(scales, ScaleType.FLOAT16)
        np.testing.assert_array_equal(stored, stored.astype(np.float16).astype(np.float32))
        assert (stored > 0).all()
        np.testing.assert_allclose(stored[[0, 2]], scales[[0, 2]], rtol=2**-11)
        np.testing.assert_array_equal(representable_scale(scales, ScaleType.FLOAT32), scales)
        # One that fp16 would make coarse or zero leaves all of its layer in float32.
        scales[1] = 1e-9
        np.testing.assert_array_equal(representable_scale(scales, ScaleType.FLOAT16), scales)


class TestExternalData:
    """Weights in a file of their own stay in one, and never pass through a protobuf."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "in" / "model.onnx"
        path.parent.mkdir()
        save_model(load_inline(tmp_path), path, external=True)
        return path

    def test_stays_external(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probed: list[onnx.ModelProto] = []

        def spy(model: ir.Model, *args: Any, **options: Any) -> Any:
            probed.append(ir.to_proto(model))
            return open_session(model, *args, **options)

        monkeypatch.setattr(collector, "open_session", spy)
        monkeypatch.setattr(timestep_sweep, "open_session", spy)
        before = {file.name: file.read_bytes() for file in source.parent.iterdir()}
        output = quantized(source, tmp_path / "out" / "model.onnx", training_timesteps=True)

        assert len(probed) == 2  # the collector and the sweep over the timesteps
        for proto in probed:
            assert {t.name for t in weights_inside(proto)} == set()
            assert [t for t in proto.graph.initializer if uses_external_data(t)]
        assert {file.name: file.read_bytes() for file in source.parent.iterdir()} == before
        written = onnx.load(output, load_external_data=False)
        assert weights_inside(written) == []
        external = [t for t in written.graph.initializer if uses_external_data(t)]
        assert {TensorProto.UINT8, TensorProto.FLOAT} <= {t.data_type for t in external}
        entries = [(entry.key, entry.value) for t in external for entry in t.external_data]
        assert {value for key, value in entries if key == "location"} == {"model.onnx.data"}
        assert (output.parent / "model.onnx.data").is_file()
        onnx.checker.check_model(str(output))

    def test_same_result_as_inline(self, source: Path, tmp_path: Path) -> None:
        inline = tmp_path / "inline.onnx"
        save_model(load_inline(tmp_path), inline)
        first = quantized(inline, tmp_path / "first" / "model.onnx")
        second = quantized(source, tmp_path / "second" / "model.onnx")
        assert not (first.parent / "model.onnx.data").exists()
        feeds = {
            "sample": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32),
            "timestep": np.array([500, 500], np.float32),
            "encoder_hidden_states": np.ones((2, 9, 20), np.float32),
        }
        np.testing.assert_array_equal(run(first, feeds), run(second, feeds))


def load_inline(folder: Path) -> Any:
    path = folder / "made.onnx"
    onnx.save(every_form_net(), path)
    return load_model(path)


def quantized(source: Path, output: Path, *, training_timesteps: bool = False) -> Path:
    request = QuantizeRequest(
        model=source,
        output=output,
        apply=ApplyOptions(TARGETS["ort"], FloatType.FP32),
        algorithm="minmax",
        sampling=SelfSamplingOptions(
            samples=2, steps=2, shapes={"encoder_hidden_states": (2, 9, 20)}
        ),
        training_timesteps=training_timesteps,
    )
    quantize(request, SilentProgress())
    return output


def weights_inside(proto: onnx.ModelProto) -> list[TensorProto]:
    """Matrices whose content lies in the protobuf."""
    return [
        tensor
        for tensor in proto.graph.initializer
        if len(tensor.dims) > 1 and not uses_external_data(tensor) and np.prod(tensor.dims) > 256
    ]


def all_reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from all_reads(inner)


def cast_feeds(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    dtypes = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in proto.graph.input
    }
    return {name: value.astype(dtypes[name]) for name, value in feeds.items()}


def run(path: Path, feeds: Mapping[str, Array]) -> Array:
    (output,) = open_session(path, faithful_qdq=True).run(None, dict(feeds))
    return np.asarray(output, np.float32)


def sqnr(reference: Array, output: Array) -> float:
    noise = np.square(reference - output, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-30)))
