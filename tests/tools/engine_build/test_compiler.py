"""Calls into TensorRT that depend on its version, against stand-ins of its bindings."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine import compiler
from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compile_process import compile_in_child
from qvd_trt.tools.engine.compiler import StepError, create_network, make_log
from qvd_trt.tools.engine.tensorrt_install import (
    RuntimeKind,
    TensorRTInstall,
    Version,
    parse_version,
)


class Registry:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.loaded: list[str] = []

    def load_library(self, path: str) -> object:
        self.loaded.append(path)
        return self.answer


class Bindings(ModuleType):
    """What `create_network` uses of TensorRT."""

    class ILogger:
        WARNING, ERROR, INTERNAL_ERROR = range(3)

    class NetworkDefinitionCreationFlag(IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    def __init__(self, *, gpu: bool = True, library: object = object()) -> None:
        super().__init__("tensorrt")
        self.gpu = gpu
        self.registry = Registry(library)
        self.initialized = False

    def Builder(self, log: Any) -> Bindings:  # noqa: N802
        if not self.gpu:
            log.log(self.ILogger.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self

    def create_network(self, flags: int) -> int:
        return flags

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def init_libnvinfer_plugins(self, log: object, namespace: str) -> None:
        self.initialized = True


def create(
    bindings: Bindings, kind: RuntimeKind, version: Version, plugin: Path | None = None
) -> int:
    strong = kind == "rtx" or version >= (10,)
    plan = BuildPlan(Path("m.onnx"), kind, version, strongly_typed=strong, plugin=plugin)
    install = TensorRTInstall(kind, version, bindings)
    flags: int = create_network(install, plan, make_log(bindings))[1]
    return flags


@pytest.mark.parametrize(
    ("kind", "version", "flags"),
    [
        ("tensorrt", (8, 6, 0), 1 << 0),
        ("tensorrt", (10, 7, 0), 1 << 1),
        ("tensorrt", (11, 0, 0), 0),
        ("rtx", (1, 7, 1), 0),
    ],
)
def test_network_flags(kind: RuntimeKind, version: Version, flags: int) -> None:
    assert create(Bindings(), kind, version) == flags


def test_no_gpu() -> None:
    with pytest.raises(StepError) as found:
        create(Bindings(gpu=False), "tensorrt", (8, 6, 0))
    assert found.value.step == "device"
    assert found.value.errors == ("CUDA initialization failure with error: 35",)


def test_plugin_of_10_is_loaded_into_the_registry(tmp_path: Path) -> None:
    bindings = Bindings()
    create(bindings, "tensorrt", (10, 0), tmp_path / "lib.so")
    assert bindings.registry.loaded == [str(tmp_path / "lib.so")]


def test_plugin_that_10_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(StepError) as found:
        create(Bindings(library=None), "tensorrt", (10, 0), tmp_path / "lib.so")
    assert found.value.step == "plugin"


def test_plugin_of_8_is_opened_after_the_own_ones(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"not a library")
    bindings = Bindings()
    with pytest.raises(StepError) as found:
        create(bindings, "tensorrt", (8, 6), tmp_path / "lib.so")
    assert (found.value.step, bindings.initialized) == ("plugin", True)
    assert "lib.so" in found.value.errors[-1]
    assert bindings.registry.loaded == []


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (0, "first (Relu): refused"),
        (1, "node_of_z (Softmax): refused"),
        (2, "refused"),
        (-1, "refused"),
    ],
)
def test_parser_of_8_tells_the_index_of_a_node(tmp_path: Path, index: int, told: str) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="first"),
        helper.make_node("Softmax", ["y"], ["z"]),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xz")
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "two", [x], [z])), path)
    error = SimpleNamespace(node=lambda: index, desc=lambda: "refused")
    parser = SimpleNamespace(
        num_errors=1, parse_from_file=lambda path: False, get_error=lambda index: error
    )
    bindings: Any = Bindings()
    bindings.OnnxParser = lambda network, log: parser
    install = TensorRTInstall("tensorrt", (8, 6, 0), bindings)
    plan = BuildPlan(path, "tensorrt", (8, 6, 0), strongly_typed=False)
    with pytest.raises(StepError) as found:
        compiler._parse(install, plan, None, make_log(bindings))
    assert (found.value.step, found.value.errors) == ("parse", (told,))


def test_child_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os\nos.write(2, b'bad driver')\nos._exit(7)\n"
    (tmp_path / "tensorrt.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    plan = BuildPlan(tmp_path / "m.onnx", "tensorrt", (10,))
    with pytest.raises(UserError, match=r"TensorRT 10 ended with code 7 .*bad driver"):
        compile_in_child(plan)


@pytest.mark.parametrize(
    ("text", "version"),
    [("8.6.0", (8, 6, 0)), ("10.7.0.post1", (10, 7, 0)), ("11.1.0rc2", (11, 1, 0)), ("x", ())],
)
def test_versions(text: str, version: Version) -> None:
    assert parse_version(text) == version
