"""What a build decides for each TensorRT, and what it warns of."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from qvd_trt.tools.engine.build_plan import BuildPlan, BuildRequest, plan_build
from qvd_trt.tools.engine.onnx_file import HtdqUse, read_onnx
from qvd_trt.tools.engine.shape_ranges import ShapeRange, parse_shape_range
from qvd_trt.tools.engine.tensorrt_install import RuntimeKind, Version
from tests.export.graphs import GraphBuilder

SHAPES = (parse_shape_range("sample:1x16x16x16"), parse_shape_range("timestep:1"))


def plan(
    forms: Path, name: str, kind: RuntimeKind, version: Version, **changes: object
) -> BuildPlan:
    path = forms / f"{name}.onnx"
    request = replace(
        BuildRequest(path, path.with_suffix(".engine"), shapes=SHAPES),
        **changes,  # type: ignore[arg-type]
    )
    return plan_build(request, read_onnx(path), kind, version)


@pytest.mark.parametrize(
    ("name", "htdq", "quantized"),
    [
        ("float", HtdqUse.NONE, False),
        ("trt", HtdqUse.FUNCTION, True),
        ("trt.plugin", HtdqUse.PLUGIN, True),
        ("trt8", HtdqUse.NONE, True),
        ("trt8.plugin", HtdqUse.PLUGIN, True),
    ],
)
def test_file_is_understood(forms: Path, name: str, htdq: HtdqUse, quantized: bool) -> None:
    model = read_onnx(forms / f"{name}.onnx")
    assert model.htdq is htdq
    assert model.is_quantized == quantized
    assert model.is_float32 == (not name.startswith("trt.") and name != "trt")
    assert [spec.shape for spec in model.inputs] == [("batch", 16, "h", "w"), ("batch",)]


@pytest.mark.parametrize(
    ("kind", "version", "flags"),
    [
        ("tensorrt", (8, 6, 0), ("int8", "fp16")),
        ("tensorrt", (9, 3, 0), ("int8", "fp16")),
        ("tensorrt", (10, 0, 1), ("stronglyTyped",)),
        ("tensorrt", (11, 1, 0), ("stronglyTyped",)),
        ("rtx", (1, 7, 1, 116), ("stronglyTyped",)),
    ],
)
def test_types(forms: Path, kind: RuntimeKind, version: Version, flags: tuple[str, ...]) -> None:
    assert plan(forms, "trt8", kind, version).flags == flags


@pytest.mark.parametrize(("version", "embedded"), [((8, 6), False), ((10,), True), ((11,), True)])
def test_plugin_is_embedded(forms: Path, tmp_path: Path, version: Version, embedded: bool) -> None:
    library = tmp_path / "lib.so"
    library.touch()
    found = plan(forms, "trt8.plugin", "tensorrt", version, use_plugin=True, plugin=library)
    assert found.plugin == library
    assert found.embeds_plugin == embedded


@pytest.mark.parametrize(
    ("name", "version", "warning"),
    [
        ("trt", (9, 0), "takes the function in the file and leaves the plugin unused"),
        ("trt", (10, 6), "takes the function in the file and leaves the plugin unused"),
        ("trt", (10, 7), None),
        ("trt.plugin", (10, 6), None),
        ("float", (10, 0), "the plugin is loaded but not used"),
    ],
)
def test_unused_plugin(
    forms: Path, tmp_path: Path, name: str, version: Version, warning: str | None
) -> None:
    library = tmp_path / "lib.so"
    library.touch()
    found = plan(forms, name, "tensorrt", version, use_plugin=True, plugin=library).warnings
    said = " ".join(text for text in found if "--target" not in text)
    assert (warning in said) if warning else said == ""


@pytest.mark.parametrize(
    ("name", "kind", "version", "wanted"),
    [
        ("trt", "rtx", (1, 7), "rtx"),
        ("rtx", "tensorrt", (10,), "trt"),
        ("trt8", "tensorrt", (10,), "trt"),
        ("trt8", "rtx", (1, 7), "rtx"),
        ("trt", "tensorrt", (9,), "trt8"),
        ("trt", "tensorrt", (11,), None),
        ("rtx", "rtx", (1, 7), None),
        ("trt8", "tensorrt", (8, 6), None),
        ("float", "tensorrt", (8, 6), None),
    ],
)
def test_file_of_another_target(
    forms: Path, name: str, kind: RuntimeKind, version: Version, wanted: str | None
) -> None:
    warnings = plan(forms, name, kind, version).warnings
    assert [text.endswith(f"`qvd-export --target {wanted}`") for text in warnings] == (
        [True] if wanted else []
    )


def test_float_file_is_told_to_stay_float32(forms: Path) -> None:
    (note,) = plan(forms, "float", "tensorrt", (10, 7)).notes
    assert "TensorRT 10.7 is strongly typed: this float32 file is built as a float32" in note
    assert plan(forms, "float", "rtx", (1, 7)).notes
    assert plan(forms, "float", "tensorrt", (8, 6)).notes == ()
    assert plan(forms, "trt", "tensorrt", (10, 7)).notes == ()


@pytest.mark.parametrize("quantized", [False, True])
def test_attention_beside_quantized_products(tmp_path: Path, quantized: bool) -> None:
    net = GraphBuilder()
    x, weight = net.input("x", [4, 16]), net.weight("weight", 16, 16)
    if quantized:
        scale = net.constant("scale", np.array(0.1, np.float32))
        x, weight = (
            net.op(
                "DequantizeLinear", net.op("QuantizeLinear", t, scale, name=f"{t}/q"), scale, name=t
            )
            for t in (x, weight)
        )
    net.op("Softmax", net.op("MatMul", x, weight, name="product"), name="probabilities")
    onnx.save(net.model({"probabilities_out": [4, 16]}), tmp_path / "model.onnx")
    request = BuildRequest(tmp_path / "model.onnx", tmp_path / "model.engine")

    def warnings(request: BuildRequest, *version: int) -> str:
        model = read_onnx(request.model)
        return " ".join(plan_build(request, model, "tensorrt", version).warnings)

    assert ("attention in float32" in warnings(request, 8, 6, 0)) == quantized
    assert "attention" not in warnings(request, 10, 0, 1)
    if quantized:
        assert "attention" not in warnings(replace(request, implicit=True), 8, 6, 0)


def test_turing_is_warned_of(forms: Path) -> None:
    found = plan(forms, "rtx", "rtx", (1, 7), compute_capabilities=("7.5", "8.9"))
    assert "SM75 has no INT8 convolution" in " ".join(found.warnings)
    assert plan(forms, "rtx", "rtx", (1, 7), compute_capabilities=("8.9",)).warnings == ()


def test_plan_travels_to_the_child(forms: Path) -> None:
    """With slots, which Python 3.10 pickles only by the help of dataclasses."""
    found = plan(forms, "trt", "tensorrt", (10, 7))
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:1x2", ShapeRange("x", (1, 2), (1, 2), (1, 2))),
        ("x:1:2:4", ShapeRange("x", (1,), (2,), (4,))),
        ("x:0:1x4", ShapeRange("x:0", (1, 4), (1, 4), (1, 4))),
        ("a/b:0:1x1:2x2:2x3", ShapeRange("a/b:0", (1, 1), (2, 2), (2, 3))),
    ],
)
def test_shape_ranges(text: str, expected: ShapeRange) -> None:
    parsed = parse_shape_range(text)
    assert parsed == expected
    assert parse_shape_range(str(parsed)) == parsed
