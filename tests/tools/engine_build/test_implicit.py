"""The float file and the ranges that stand for a QDQ file in TensorRT 8."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.progress import SilentProgress
from qvd_trt.tools.engine import build_engine, compiler
from qvd_trt.tools.engine.build_plan import BuildPlan, BuildRequest
from qvd_trt.tools.engine.compiler import CompileAnswer
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.node_precision import FASTER, NO_RANGE, node_precisions
from qvd_trt.tools.engine.onnx_file import read_onnx
from qvd_trt.tools.engine.shape_ranges import parse_shape_range
from qvd_trt.tools.engine.tensorrt8 import (
    MODEL,
    WEIGHTS,
    ImplicitInt8,
    set_ranges,
    write_implicit,
)
from qvd_trt.tools.engine.tensorrt_install import TensorRTInstall
from tests.rtx.builder import build, int8_layers
from tests.tools.engine_build.models import INT8

CONVOLUTIONS = {name for name in INT8 if "conv" in name}


@pytest.fixture(scope="session")
def qdq(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small UNet of `--target trt8`, its weights in a file of their own."""
    path = tmp_path_factory.mktemp("qdq") / "model.onnx"
    model = onnx.load(forms / "trt8.onnx")
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=256)
    return path


@pytest.fixture
def implicit(qdq: Path, tmp_path: Path) -> ImplicitInt8:
    return write_implicit(qdq, tmp_path)


@pytest.fixture
def readable(implicit: ImplicitInt8) -> Path:
    """The float file with copies for links, which TensorRT 8.6 follows, but onnx does not."""
    for path in implicit.model.parent.iterdir():
        if path.is_symlink():
            source = path.resolve()
            path.unlink()
            shutil.copy(source, path)
    return implicit.model


def constants(path: Path) -> Mapping[str, AnyArray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_ranges_are_those_of_the_scales(qdq: Path, implicit: ImplicitInt8) -> None:
    assert set(implicit.ranges) == CONVOLUTIONS
    graph, values = onnx.load(qdq).graph, constants(qdq)
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.name in CONVOLUTIONS:
            scale = values[producers[node.input[0]].input[1]]
            assert implicit.ranges[node.name] == pytest.approx(127 * float(scale))


def test_weights_of_convolutions_keep_their_codes(qdq: Path, readable: Path) -> None:
    """TensorRT's own scale, the largest magnitude of a channel / 127, gives the file's codes."""
    graph, values = onnx.load(qdq).graph, constants(qdq)
    producers = {output: node for node in graph.node for output in node.output}
    rounded = constants(readable)
    for node in graph.node:
        if node.name not in CONVOLUTIONS:
            continue
        quantizer = producers[producers[node.input[1]].input[0]]
        scales = values[quantizer.input[1]].reshape(-1, 1, 1, 1)
        codes = np.clip(np.rint(values[quantizer.input[0]] / scales), -128, 127)
        weight = rounded[node.input[1]]
        np.testing.assert_array_equal(weight, (codes * scales).astype(np.float32))
        full = np.abs(codes).max(axis=(1, 2, 3)) == 127
        own = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        assert full.mean() > 0.9
        np.testing.assert_array_equal(np.rint(weight / own)[full], codes[full])


def test_the_rest_is_float(forms: Path, qdq: Path, readable: Path) -> None:
    nodes = onnx.load(readable, load_external_data=False).graph.node
    assert not {node.op_type for node in nodes} & {"QuantizeLinear", "DequantizeLinear"}
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((1, 16, 16, 16)).astype(np.float32),
        "timestep": np.array([300]),
    }
    outputs = [
        ort.InferenceSession(str(path)).run(None, feeds)[0]
        for path in (forms / "float.onnx", qdq, readable)
    ]
    errors = [np.square(output - outputs[0]).mean() for output in outputs[1:]]
    assert 0 < errors[1] < errors[0]


def test_untouched_weights_are_links(qdq: Path, implicit: ImplicitInt8) -> None:
    folder = implicit.model.parent
    assert (folder / "weights.bin").resolve() == (qdq.parent / "weights.bin").resolve()
    graph = onnx.load(implicit.model, load_external_data=False).graph
    inputs = {node.input[1] for node in graph.node if node.name in CONVOLUTIONS}
    sizes = [4 * math.prod(tensor.dims) for tensor in graph.initializer if tensor.name in inputs]
    assert (folder / WEIGHTS).stat().st_size == sum(sizes)


def test_untouched_weights_are_not_read(qdq: Path, tmp_path: Path) -> None:
    """Their file need not even exist before TensorRT asks for it."""
    model = onnx.load(qdq, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location and "linear" in t.name)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "data/other"
    source, folder = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    folder.mkdir()
    shutil.copy(qdq.parent / "weights.bin", source)
    onnx.save(model, source / "model.onnx")
    written = write_implicit(source / "model.onnx", folder)
    assert (folder / "data" / "other").readlink() == source / "data" / "other"
    kept = onnx.load(written.model, load_external_data=False).graph.initializer
    (entry,) = (t.external_data for t in kept if t.name == tensor.name)
    assert list(entry) == list(tensor.external_data)


def test_nameless_nodes(qdq: Path, tmp_path: Path) -> None:
    """TensorRT names them by their output; a name in the file would be another."""
    model = onnx.load(qdq)
    outputs = {node.output[0] for node in model.graph.node if node.name in CONVOLUTIONS}
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    written = write_implicit(tmp_path / "nameless.onnx", folder)
    assert set(written.ranges) == {f"node_of_{output}" for output in outputs}
    nodes = onnx.load(written.model).graph.node
    assert outputs <= {node.output[0] for node in nodes}
    assert {node.name for node in nodes} == {""}


def test_a_real_parser_takes_it(readable: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    sample, timestep = (1, 16, 16, 16), (1,)
    built = build(readable, ["8.9"], {"sample": (sample,) * 3, "timestep": (timestep,) * 3})
    assert built.layers
    assert not int8_layers(built)  # only TensorRT 8 reads ranges


def test_build(qdq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child gets the float file, which is gone afterwards; trtexec has no such build."""
    asked: list[BuildPlan] = []

    def compile_in_child(plan: BuildPlan) -> CompileAnswer:
        assert plan.model.is_file()
        assert plan.model.is_relative_to(tmp_path)
        assert plan.source == qdq
        asked.append(plan)
        return CompileAnswer(engine=b"engine", seconds=1.0, layers=(stray,))

    int8 = ("Int8",)
    stray = EngineLayer("between", "Scale", int8, (), int8, (), (1, 16, 16, 16), "")

    install = TensorRTInstall("tensorrt", (8, 6, 0), ModuleType("tensorrt"))
    monkeypatch.setattr(build_engine, "find_tensorrt", lambda runtime: install)
    monkeypatch.setattr(build_engine, "compile_in_child", compile_in_child)
    shapes = (parse_shape_range("sample:1x16x16x16"), parse_shape_range("timestep:1"))
    request = BuildRequest(qdq, tmp_path / "new" / "model.engine", shapes=shapes, implicit=True)
    report = build_engine.build_engine(request, SilentProgress())
    (plan,) = asked
    assert plan.flags == ("int8", "fp16")
    assert plan.ranges is not None
    assert set(plan.ranges) == CONVOLUTIONS
    assert report.trtexec is None
    assert report.implicit
    assert "between first" in " ".join(report.warnings)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"model.engine", "model.build.json"}


def test_int8_weights_are_refused(forms: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads files with float weights.*--target trt8"):
        write_implicit(forms / "rtx.onnx", tmp_path)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (1, np.full(16, 0.1, np.float32), "has 16 scales"),
        (2, np.int8(3), "is not symmetric int8"),
        (2, np.uint8(0), "is not symmetric int8"),
        (2, None, "is not symmetric int8"),
    ],
)
def test_what_a_range_cannot_say(
    qdq: Path, tmp_path: Path, index: int, value: Any, message: str
) -> None:
    model = onnx.load(qdq)
    producers = {output: node for node in model.graph.node for output in node.output}
    conv = next(node for node in model.graph.node if node.name in CONVOLUTIONS)
    quantizer = producers[producers[conv.input[0]].input[0]]
    if value is None:  # uint8, by the standard
        del quantizer.input[index]
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "other"))
        quantizer.input[index] = "other"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=message):
        write_implicit(tmp_path / "model.onnx", tmp_path)


@pytest.mark.parametrize("location", ["../weights.bin", "/weights.bin", MODEL, WEIGHTS])
def test_data_that_cannot_be_linked(qdq: Path, tmp_path: Path, location: str) -> None:
    model = onnx.load(qdq, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location and "linear" in t.name)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(qdq.parent / "weights.bin", source)
    onnx.save(model, source / "model.onnx")
    with pytest.raises(UserError, match="save the model with its data beside"):
        write_implicit(source / "model.onnx", tmp_path)


def test_data_behind_a_link(qdq: Path, tmp_path: Path) -> None:
    shutil.copy(qdq, tmp_path)
    (tmp_path / "weights.bin").symlink_to(qdq.parent / "weights.bin")
    with pytest.raises(UserError, match=r"cannot be read: .* put the real file, no link"):
        write_implicit(tmp_path / "model.onnx", tmp_path)


def test_two_pairs_in_a_row(qdq: Path, readable: Path, tmp_path: Path) -> None:
    model = onnx.load(qdq)
    producers = {output: node for node in model.graph.node for output in node.output}
    linear = next(node for node in model.graph.node if node.name == "linear")
    first = producers[linear.input[0]]
    constants = list(first.input[1:])
    for op, source, result in (
        ("QuantizeLinear", first.output[0], "again"),
        ("DequantizeLinear", "again", "twice"),
    ):
        index = list(model.graph.node).index(linear)
        model.graph.node.insert(index, helper.make_node(op, [source, *constants], [result]))
        linear = next(node for node in model.graph.node if node.name == "linear")
    linear.input[0] = "twice"
    onnx.save(model, tmp_path / "twice.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    again = onnx.load(write_implicit(tmp_path / "twice.onnx", folder).model)
    assert [node.input for node in again.graph.node] == [
        node.input for node in onnx.load(readable).graph.node
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_subgraphs_are_refused(qdq: Path, tmp_path: Path, inside: bool) -> None:
    """Whether or not what they hold is quantized."""
    model = onnx.load(qdq)
    conv = next(node for node in model.graph.node if node.name in CONVOLUTIONS)
    copied = helper.make_node("Conv", conv.input, ["copied"], name="copied")
    body = helper.make_graph([copied] if inside else [], "body", [], [])
    node = helper.make_node("If", ["condition"], [], name="branch", then_branch=body)
    model.graph.node.append(node)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="branch has one"):
        write_implicit(tmp_path / "model.onnx", tmp_path)


def test_quantized_output_is_refused(qdq: Path, tmp_path: Path) -> None:
    model = onnx.load(qdq)
    dequantize = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.output[0].name = dequantize.output[0]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="comes from a DequantizeLinear"):
        write_implicit(tmp_path / "model.onnx", tmp_path)


def test_file_without_quantized_convolutions(qdq: Path, tmp_path: Path) -> None:
    model = onnx.load(qdq)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in producers:
            node.input[1] = producers[producers[node.input[1]].input[0]].input[0]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="has no quantized Conv"):
        write_implicit(tmp_path / "model.onnx", tmp_path)


def test_why_a_layer_is_float(qdq: Path) -> None:
    nodes = node_precisions(read_onnx(qdq), (), ranges=CONVOLUTIONS)
    reasons = {node.name: node.reason for node in nodes}
    assert reasons["linear"] == NO_RANGE
    assert all(reasons[name] != NO_RANGE for name in CONVOLUTIONS)
    name, half = "down.conv1", ("Half",)
    layer = EngineLayer(name, "CaskConvolution", half, (), half, (name,), (1, 16, 16, 16), "")
    nodes = node_precisions(read_onnx(qdq), [layer], ranges=CONVOLUTIONS)
    (reason,) = (node.reason for node in nodes if node.name == name)
    assert reason is not None
    assert reason.endswith(f"runs it in Half: {FASTER}")


LayerType = Enum("LayerType", ["CONVOLUTION", "ACTIVATION"])
TRT: Any = SimpleNamespace(LayerType=LayerType, float32="float32")


class Layer:
    """A network layer that reads one tensor and writes one."""

    def __init__(self, name: str, source: Any, kind: LayerType = LayerType.CONVOLUTION) -> None:
        self.name, self.type, self.source, self.output_type = name, kind, source, ""
        self.result = SimpleNamespace(name=f"{name}:0", dynamic_range=None)

    def get_input(self, index: int) -> Any:
        return self.source

    def get_output(self, index: int) -> Any:
        return self.result

    def set_output_type(self, index: int, dtype: str) -> None:
        self.output_type = dtype


class TestCompile:
    @pytest.fixture
    def plan(self, qdq: Path) -> BuildPlan:
        return BuildPlan(qdq, "tensorrt", (8, 6, 0), ranges={"first": 2.0, "second": 0.5})

    def test_ranges_reach_the_network(
        self, plan: BuildPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = TestSetRanges().network()
        bindings = SimpleNamespace(ILogger=object, **vars(TRT))
        install: Any = SimpleNamespace(module=bindings, kind="tensorrt", version=(8, 6, 0))
        monkeypatch.setattr(compiler, "find_tensorrt", lambda kind: install)
        monkeypatch.setattr(compiler, "make_log", lambda trt, path: None)
        monkeypatch.setattr(compiler, "create_network", lambda *_: (None, network))
        monkeypatch.setattr(compiler, "_parse", lambda *_: None)
        monkeypatch.setattr(compiler, "_build", lambda *_: b"engine")
        monkeypatch.setattr(compiler, "_list_layers", lambda *_: ((), None))
        assert compiler.compile_plan(plan).engine == b"engine"
        assert network.layers[0].source.dynamic_range == (-2.0, 2.0)
        with pytest.raises(compiler.StepError) as failed:
            compiler.compile_plan(replace(plan, ranges={"gone": 1.0}))
        assert failed.value.errors == ("it has no convolution gone; leave --implicit out",)

    @pytest.mark.parametrize("implicit", [False, True])
    def test_output_types_are_obeyed(
        self, plan: BuildPlan, implicit: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = pytest.importorskip("polygraphy.backend.trt")
        monkeypatch.setattr(backend, "CreateConfig", lambda **options: options)
        monkeypatch.setattr(backend, "Profile", SimpleNamespace)
        verbosity = SimpleNamespace(DETAILED=1)
        install: Any = SimpleNamespace(module=SimpleNamespace(ProfilingVerbosity=verbosity))
        chosen = plan if implicit else replace(plan, ranges=None)
        options: Any = compiler._make_config(install, chosen)
        assert options.get("precision_constraints") == ("obey" if implicit else None)


class TestSetRanges:
    def network(self) -> Any:
        """x -> first -> second; x -> other; second -> activation."""
        x = SimpleNamespace(name="x", dynamic_range=None)
        first, other = Layer("first", x), Layer("other", x)
        second = Layer("second", first.result)
        last = Layer("last", second.result, LayerType.ACTIVATION)
        layers = [first, second, other, last]
        return SimpleNamespace(num_layers=4, get_layer=layers.__getitem__, layers=layers)

    def test_sources_and_results(self) -> None:
        network = self.network()
        assert set_ranges(TRT, network, {"first": 2.0, "other": 3.0, "second": 0.5}) == []
        first, second, other, last = network.layers
        assert first.source.dynamic_range == (-3.0, 3.0)  # of the two that read it, the wider
        assert first.result.dynamic_range == (-0.5, 0.5)
        assert second.result.dynamic_range == other.result.dynamic_range == (-1.0, 1.0)
        assert [layer.output_type for layer in network.layers] == ["float32"] * 3 + [""]
        assert last.result.dynamic_range is None

    def test_unknown_nodes_are_told(self) -> None:
        assert set_ranges(TRT, self.network(), {"first": 2.0, "gone": 1.0, "last": 1.0}) == [
            "gone",
            "last",
        ]
