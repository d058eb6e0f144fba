"""What cannot work is refused in one line that says how to mend it, and nothing is written."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tools.engine_build.command import PRINT, SHAPES, BuildCommand

RTX = (*SHAPES, "--runtime", "rtx")
LIBRARY = ("--plugin", "lib.so")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx does not exist"),
        (["lib.so"], "lib.so is not an ONNX model"),
        (["empty.onnx"], "empty.onnx is not an ONNX model: it has no nodes"),
        (["rtx.onnx"], "sample [batch, 16, h, w], timestep [batch]"),
        (["rtx.onnx"], "--shapes sample:1x16x16x16 timestep:1,"),
        (["rtx.onnx", "--shapes", "sample:1x16x8x8"], "need shapes: timestep [batch]"),
        (["rtx.onnx", *SHAPES, "x:1"], "no such input; it has sample, timestep"),
        (["rtx.onnx", *SHAPES, "timestep:1"], "timestep is given twice"),
        (["rtx.onnx", "--shapes", "sample:1x16x8"], "has 4 dimensions [batch, 16, h, w], not 3"),
        (["rtx.onnx", "--shapes", "sample:1x3x8x8"], "16 cannot become 3"),
        (["rtx.onnx", "--shapes", "timestep:2:1:3"], "needs 1 <= min <= opt <= max"),
        (["rtx.onnx", "--shapes", "timestep:0"], "needs 1 <= min <= opt <= max"),
        (["rtx.onnx", "--shapes", "timestep:1:1x1:1"], "different numbers of dimensions"),
        (["rtx.onnx", "--shapes", "timestep=1"], "is not NAME:SHAPE or NAME:MIN:OPT:MAX"),
        (
            ["rtx.onnx", "--shapes", "sample:1x16x8x8", "timestep:2"],
            "batch is 1 in sample and 2 in timestep",
        ),
        (["rtx.onnx", *SHAPES, "--workspace", "8Q"], "write for example 8G"),
        (["rtx.onnx", *SHAPES, "--workspace", "0"], "write for example 8G"),
        (["rtx.onnx", *SHAPES, "--tensorrt-version", "10"], "goes with --print-trtexec"),
        (["rtx.onnx", *SHAPES, "-o", "."], "--output . is a folder"),
        (["rtx.onnx", *SHAPES, "--timing-cache", "."], "--timing-cache . is a folder"),
        (
            ["rtx.onnx", *SHAPES, "-o", "rtx.onnx"],
            "--output rtx.onnx would overwrite the input",
        ),
        (
            ["rtx.onnx", *SHAPES, "--log", "rtx.onnx"],
            "--log rtx.onnx would overwrite the input",
        ),
        (["rtx.onnx", *SHAPES, "-o", "x", "--log", "x"], "--log x is the file of --output, too"),
        (["rtx.onnx", *SHAPES, "--log", "."], "--log . is a folder"),
        (["rtx.onnx", *SHAPES, "-o", "lib.so/x.engine"], "lib.so is not a folder that can be"),
        (["rtx.onnx", *SHAPES, "--timing-cache", "lib.so/t"], "lib.so is not a folder that can be"),
        (["trt.onnx", *PRINT, "7.2"], "use 8.6, 10 or 11"),
        (["trt.onnx", *PRINT, "9.1"], "use 8.6, 10 or 11"),
        (["trt.onnx", *PRINT, "ten"], "use 8.6, 10 or 11"),
        (["trt.onnx", *PRINT, "10", "--ahead-of-time", "SM89"], "is for TensorRT-RTX"),
        (["trt.onnx", *PRINT, "10", "--runtime", "rtx"], "leave --runtime rtx out"),
        (["trt.onnx", *PRINT, "10", "--dtype", "fp16"], "takes all types from the file"),
        (["trt.onnx", *PRINT, "11", "--dtype", "fp32"], "takes all types from the file"),
        (["trt.onnx", *PRINT, "10", "--no-cublas"], "uses no cuBLAS; leave it out"),
        (["trt.onnx", *PRINT, "10", "--implicit"], "TensorRT 10 takes INT8 from Q/DQ alone"),
        (["float.onnx", *PRINT, "8.6", "--implicit"], "has no Q/DQ to take scales from"),
        (["trt8.onnx", *PRINT, "8.6", "--implicit"], "trtexec cannot read the ranges"),
        (["ort.onnx", *PRINT, "8.6"], "has zero points other than 0, as --target ort"),
        (["ort.onnx", *PRINT, "8.6"], "TensorRT 8.6 reads symmetric codes only"),
        (["ort.onnx", *PRINT, "8.6"], "with `qvd-export --target trt8`"),
        (["ort.onnx", *PRINT, "10"], "with `qvd-export --target trt`"),
        (["ort.onnx", *RTX], "with `qvd-export --target rtx`"),
        (["rtx.onnx", *RTX, "--implicit"], "takes INT8 from Q/DQ alone"),
        (["rtx.onnx", *RTX, "--ahead-of-time", "fast"], "write for example SM89,SM120"),
        (["rtx.onnx", *RTX, "--timing-cache", "t"], "times no kernels while it builds"),
        (["rtx.onnx", *RTX, "--dtype", "fp16"], "takes all types from the file"),
    ],
)
def test_options(build_command: BuildCommand, arguments: list[str], message: str) -> None:
    (build_command.folder / "empty.onnx").write_bytes(b"")
    if "--print-trtexec" not in arguments and "--runtime" not in arguments:
        pytest.importorskip("tensorrt_rtx")
    assert message in build_command.refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trt.onnx", *PRINT, "8.6"], "--target trt8 --htdq inline"),
        (["trt.onnx", *PRINT, "8.6", *LIBRARY], "--target trt8 --htdq inline"),
        (["trt8.plugin.onnx", *PRINT, "8.6"], "give --plugin, or export it without"),
        (["trt.plugin.onnx", *PRINT, "10"], "give --plugin, or export it without"),
        (["trt.plugin.onnx", *PRINT, "11"], "give --plugin, or export it without"),
        (["trt.plugin.onnx", *RTX], "which TensorRT-RTX cannot load: export it with"),
        (["rtx.onnx", *RTX, *LIBRARY], "TensorRT-RTX cannot load plugins"),
        (["trt.onnx", *PRINT, "10", "--plugin", "none.so"], "none.so does not exist"),
        (["trt.onnx", *PRINT, "10", "--plugin", "/"], "--plugin / is a folder; name the built"),
        (["trt.onnx", *PRINT, "10", "--plugin"], "for TensorRT 10 is not built: run"),
    ],
)
def test_htdq(build_command: BuildCommand, arguments: list[str], message: str) -> None:
    if "rtx" in arguments:
        pytest.importorskip("tensorrt_rtx")
    assert message in build_command.refused(*arguments)


@pytest.mark.parametrize(
    ("name", "version"),
    [("trt8", "8.6"), *(("trt", version) for version in ("10", "10.6", "10.7", "11"))],
)
def test_htdq_that_works_is_not_refused(
    build_command: BuildCommand, name: str, version: str
) -> None:
    """Negative control."""
    build_command.done(f"{name}.onnx", *PRINT, version)
    build_command.done(f"{name}.plugin.onnx", *PRINT, version, *LIBRARY)


def test_built_plugin_is_found(
    build_command: BuildCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "qvd-trt" / "plugins" / "trt11"
    folder.mkdir(parents=True)
    (folder / "libqvd_trt_plugins.so").touch()
    words = build_command.printed("trt.onnx", *SHAPES, "--plugin", "--tensorrt-version", "11")
    assert f"--dynamicPlugins={folder}/libqvd_trt_plugins.so" in words


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_tensorrt_is_missing(build_command: BuildCommand) -> None:
    message = build_command.refused("trt.onnx", *SHAPES, "--runtime", "tensorrt")
    assert "`pip install tensorrt`" in message


def test_tensorrt_rtx_is_missing(
    build_command: BuildCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    message = build_command.refused("rtx.onnx", *RTX)
    assert "`pip install tensorrt-rtx`" in message
