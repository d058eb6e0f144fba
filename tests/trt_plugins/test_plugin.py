"""The plugin library through its exported creators, without TensorRT's runtime."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.trt_plugins.conftest import BuiltPlugin
from tests.trt_plugins.oracle import DTYPES, adversarial_values, bits_of, skewed_table

TENSORRT_TYPES = {"fp32": 0, "fp16": 1, "bf16": 7}
FLOAT32_FIELD = 1


def supported_types(plugin: BuiltPlugin) -> set[int]:
    has_bf16 = plugin.headers.major >= 9
    return {0, 1, 7} if has_bf16 else {0, 1}


def test_creator_and_plugin_describe_themselves(plugin: BuiltPlugin) -> None:
    head, *lines = plugin.drive("describe").splitlines()
    assert head == "creators=1 name=HTDQ version=1 namespace=qvd"
    fields = [line for line in lines if line.startswith("field=")]
    assert fields == [f"field={n} type={FLOAT32_FIELD}" for n in ("levels", "thresholds")]
    timing = "depth 2" if plugin.headers.major >= 10 else ""
    assert f"keeps_shape=1 timing={timing}" in lines


def test_formats_are_linear_floats_and_the_output_is_like_the_input(plugin: BuiltPlugin) -> None:
    lines = [line for line in plugin.drive("describe").splitlines() if line.startswith("type=")]
    assert len(lines) == 8
    for number, line in enumerate(lines):
        is_supported = number in supported_types(plugin)
        outputs = "".join(str(int(is_supported and other == number)) for other in range(8))
        assert line == (
            f"type={number} input={int(is_supported)} packed=0 output={outputs} becomes={number}"
        )


def test_truncated_engine_is_refused(plugin: BuiltPlugin) -> None:
    if plugin.headers.major >= 10:
        pytest.skip("TensorRT keeps the fields of this interface itself")
    message = "log 1: qvd::HTDQ: the engine holds another version of this plugin"
    assert message in plugin.drive("describe").splitlines()


def test_codebook_is_accepted(plugin: BuiltPlugin, tmp_path: Path) -> None:
    levels, thresholds = skewed_table(256).write(tmp_path)
    said = plugin.drive("create", "thresholds", "f32", thresholds, "levels", "f32", levels)
    assert said == "created\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "attribute 'levels' is missing or empty"),
        (["levels", "f32", "levels.bin"], "attribute 'thresholds' is missing or empty"),
        (
            ["levels", "f64", "levels.bin", "thresholds", "f32", "thresholds.bin"],
            "attribute 'levels' must be float32, not plugin field type 2",
        ),
        (
            ["levels", "f32", "levels.bin", "thresholds", "i32", "thresholds.bin"],
            "attribute 'thresholds' must be float32, not plugin field type 5",
        ),
        (
            ["levels", "f32", "thresholds.bin", "thresholds", "f32", "levels.bin"],
            "attribute 'thresholds' must have one value fewer than 'levels' (14), not 16",
        ),
    ],
)
def test_bad_attributes_are_refused_through_the_logger(
    plugin: BuiltPlugin, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    skewed_table(16).write(tmp_path)
    words = [str(tmp_path / word) if word.endswith(".bin") else word for word in arguments]
    said = plugin.drive("create", *words)
    assert said == f"log 1: qvd::HTDQ: node 'node': {reason}\nrefused\n"


def test_library_needs_no_tensorrt_and_exports_two_functions(plugin: BuiltPlugin) -> None:
    def symbols(*options: str) -> list[str]:
        command = ["nm", "-D", *options, str(plugin.library)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split()[-1] for line in listing.splitlines()]

    creators = "getCreators" if plugin.headers.major >= 10 else "getPluginCreators"
    own = {name for name in symbols("--defined-only") if not name.startswith("_Z")}
    assert own == {creators, "setLoggerFinder"}
    assert not [name for name in symbols("--undefined-only") if "nvinfer" in name]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_enqueue_equals_numpy(plugin: BuiltPlugin, gpu: None, tmp_path: Path, dtype: str) -> None:
    if TENSORRT_TYPES[dtype] not in supported_types(plugin):
        pytest.skip("not a type of this TensorRT")
    table = skewed_table(200)
    with np.errstate(over="ignore", invalid="ignore"):
        x = adversarial_values(table).astype(DTYPES[dtype])
    x.tofile(tmp_path / "x.bin")
    files = [tmp_path / "x.bin", tmp_path / "y.bin"]
    said = plugin.drive("run", *table.write(tmp_path), str(TENSORRT_TYPES[dtype]), *files)
    assert said.splitlines()[-1] == "status=0"
    y = np.fromfile(tmp_path / "y.bin", DTYPES[dtype])
    np.testing.assert_array_equal(bits_of(y), bits_of(table(x)))


@pytest.mark.gpu
def test_enqueue_refuses_another_type(plugin: BuiltPlugin, gpu: None, tmp_path: Path) -> None:
    levels, thresholds = skewed_table(4).write(tmp_path)
    said = plugin.drive("run", levels, thresholds, "3", levels, tmp_path / "y.bin").splitlines()
    assert said[-2].startswith("log 1: qvd::HTDQ: the kernel could not be launched:")
    assert said[-1] != "status=0"
