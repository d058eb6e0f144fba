"""The printed command lines, word by word."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tools.engine_build.command import SHAPES, BuildCommand

COMMON = {
    *("--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes", "--memPoolSize"),
    *("--builderOptimizationLevel", "--timingCacheFile", "--profilingVerbosity", "--skipInference"),
}
KNOWN = {
    "8.6": COMMON | {"--int8", "--fp16", "--plugins", "--tacticSources"},
    "10": COMMON | {"--stronglyTyped", "--dynamicPlugins", "--setPluginsToSerialize"},
    "11": COMMON | {"--dynamicPlugins", "--setPluginsToSerialize"},
}
"""Flags of trtexec, of those that mean a strongly or a weakly typed build only the right ones."""

FILES = {"8.6": "trt8", "10": "trt", "11": "trt"}

UNET_SHAPES = [
    "--minShapes=sample:1x16x16x16,timestep:1",
    "--optShapes=sample:1x16x16x16,timestep:1",
    "--maxShapes=sample:1x16x16x16,timestep:1",
]
END = ["--profilingVerbosity=detailed", "--skipInference"]


def files(folder: Path, name: str) -> list[str]:
    return [f"--onnx={folder}/{name}.onnx", f"--saveEngine={folder}/{name}.engine"]


@pytest.mark.parametrize(
    ("version", "types"),
    [
        ("8.6", ["--int8", "--fp16"]),
        ("10", ["--stronglyTyped"]),
        ("11", []),
    ],
)
def test_without_plugin(build_command: BuildCommand, version: str, types: list[str]) -> None:
    name = FILES[version]
    words = build_command.printed(f"{name}.onnx", *SHAPES, "--tensorrt-version", version)
    expected = ["trtexec", *files(build_command.folder, name), *types, *UNET_SHAPES, *END]
    assert words == expected


@pytest.mark.parametrize(
    ("version", "plugin"),
    [
        ("8.6", ["--int8", "--fp16", "--plugins={}"]),
        ("10", ["--stronglyTyped", "--dynamicPlugins={}", "--setPluginsToSerialize={}"]),
        ("11", ["--dynamicPlugins={}", "--setPluginsToSerialize={}"]),
    ],
)
def test_with_plugin(build_command: BuildCommand, version: str, plugin: list[str]) -> None:
    name = f"{FILES[version]}.plugin"
    words = build_command.printed(
        f"{name}.onnx", *SHAPES, "--tensorrt-version", version, "--plugin", "lib.so"
    )
    library = build_command.folder / "lib.so"
    filled = [word.format(library) for word in plugin]
    expected = ["trtexec", *files(build_command.folder, name), *filled, *UNET_SHAPES, *END]
    assert words == expected


@pytest.mark.parametrize("version", KNOWN)
def test_every_flag_exists(build_command: BuildCommand, version: str) -> None:
    words = build_command.printed(
        *(f"{FILES[version]}.plugin.onnx", *SHAPES, "--tensorrt-version", version),
        *("--plugin", "lib.so", "--timing-cache", "times.cache", "--workspace", "1.5G"),
        *("--optimization-level", "5", "-o", "out/my.engine"),
        *(("--no-cublas",) if version == "8.6" else ()),
    )
    assert {word.partition("=")[0] for word in words[1:]} == KNOWN[version]
    assert "--memPoolSize=workspace:1536" in words
    assert "--builderOptimizationLevel=5" in words
    assert "--timingCacheFile=times.cache" in words
    assert f"--saveEngine={build_command.folder}/out/my.engine" in words


@pytest.mark.parametrize(
    ("name", "options", "types"),
    [
        ("float", [], ["--fp16"]),
        ("float", ["--dtype", "fp32"], []),
        ("trt8", ["--dtype", "fp32"], ["--int8"]),
    ],
)
def test_types_of_tensorrt_8(
    build_command: BuildCommand, name: str, options: list[str], types: list[str]
) -> None:
    words = build_command.printed(f"{name}.onnx", *SHAPES, *options, "--tensorrt-version", "8.6")
    assert [word for word in words if word in {"--int8", "--fp16", "--stronglyTyped"}] == types


def test_ranges(build_command: BuildCommand) -> None:
    words = build_command.printed(
        *("trt.onnx", "--tensorrt-version", "10"),
        *("--shapes", "sample:1x16x8x8:2x16x16x16:4x16x32x32", "--shapes", "timestep:1:2:4"),
    )
    assert "--minShapes=sample:1x16x8x8,timestep:1" in words
    assert "--optShapes=sample:2x16x16x16,timestep:2" in words
    assert "--maxShapes=sample:4x16x32x32,timestep:4" in words


def test_tensorrt_rtx(build_command: BuildCommand) -> None:
    words = build_command.printed(
        "rtx.onnx", *SHAPES, "--runtime", "rtx", "--ahead-of-time", "SM89,12.0"
    )
    expected = files(build_command.folder, "rtx")
    capabilities = "--computeCapabilities=89,120"
    assert words == ["tensorrt_rtx", *expected, *UNET_SHAPES, capabilities, *END]


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_default_is_10_without_tensorrt(build_command: BuildCommand) -> None:
    words = build_command.printed("trt.onnx", *SHAPES, "--runtime", "tensorrt")
    assert words[0] == "trtexec"
    assert "--stronglyTyped" in words
