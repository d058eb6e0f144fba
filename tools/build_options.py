"""The options of ``qvd-build``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.tensorrt_install import Version, parse_version

EPILOG = """\
examples:
  qvd-build model.w8a8.onnx --shapes sample:1x4x16x32x32 timestep:1
  qvd-build model.w8a8.onnx --shapes sample:1x4x8x32x32:1x4x16x32x32:2x4x16x64x64
  qvd-build model.float.onnx --shapes sample:1x4x16x32x32 -o float.engine
  qvd-build model.rtx.onnx --runtime rtx --ahead-of-time SM89,SM120
  qvd-build model.trt8.onnx --print-trtexec --tensorrt-version 8.6
"""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_CAPABILITY = re.compile(r"(?:SM_?)?(\d+)\.?(\d)", re.IGNORECASE)


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``qvd-build``."""
    parser = argparse.ArgumentParser(
        prog="qvd-build",
        description="Build a TensorRT or TensorRT-RTX engine from an ONNX model and say what runs "
        "in INT8.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="QDQ or float ONNX model; never written to")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="engine to write (default: MODEL with .engine); the report goes beside it as "
        ".build.json",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        action="extend",
        metavar="NAME:MIN:OPT:MAX",
        default=[],
        help="shapes of inputs with dynamic dimensions, each like 1x4x16x32x32; NAME:SHAPE for a "
        "single one",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="list every node and every engine layer"
    )
    _add_runtime(parser)
    _add_builder(parser)
    _add_trtexec(parser)
    return parser


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("runtime")
    group.add_argument(
        "--runtime",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto: TensorRT where it is installed, else TensorRT-RTX (default: auto)",
    )
    group.add_argument(
        "--ahead-of-time",
        metavar="SM,SM",
        help="TensorRT-RTX: build for these GPUs only, for example SM89,SM120 or 8.9,12.0; needs "
        "no GPU (default: those of TensorRT-RTX, Ampere and later)",
    )
    group.add_argument(
        "--dtype",
        choices=("fp16", "fp32"),
        help="TensorRT 8.6: type of the layers that are not INT8 (default: fp16); later versions "
        "take it from the file",
    )
    group.add_argument(
        "--plugin",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="LIB",
        help="load the HTDQ plugin: this library, or the one that `python -m qvd_trt.trt_plugins "
        "build` wrote",
    )


def _add_builder(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("builder")
    group.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="read and extend kernel timings"
    )
    group.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="write all that TensorRT says while it builds, each line with its second",
    )
    group.add_argument(
        "--workspace", metavar="SIZE", help="most scratch memory, for example 8G (default: all)"
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        help="0 builds fast, 5 gives the fastest engine (default: TensorRT's, 3)",
    )
    group.add_argument(
        "--implicit",
        action="store_true",
        help="TensorRT 8.6: take the Q/DQ out and give the scales of convolutions as dynamic "
        "ranges; all else is float, and attention stays fused",
    )
    group.add_argument(
        "--no-cublas",
        action="store_true",
        help="TensorRT 8.6: take no kernels from cuBLAS and cuDNN, and need neither",
    )


def _add_trtexec(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("trtexec")
    group.add_argument(
        "--print-trtexec",
        action="store_true",
        help="only print the trtexec (or tensorrt_rtx) command line that does the same",
    )
    group.add_argument(
        "--tensorrt-version",
        metavar="VERSION",
        help="with --print-trtexec: 8.6, 10 or 11 (default: the installed one, else 10)",
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8G``, ``512M`` or ``1.5GiB``.

    Raises:
        UserError: It is no size, or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    size = 0 if found is None else int(float(found[1]) * (1 << _POWERS[found[2].upper()]))
    if size <= 0:
        raise UserError(f"--workspace {text!r} is not a size; write for example 8G or 512M")
    return size


def parse_capabilities(text: str | None) -> tuple[str, ...]:
    """``("8.9", "12.0")`` from ``SM89,SM120`` or ``8.9,12.0``.

    Raises:
        UserError: An entry is neither.
    """
    if text is None:
        return ()
    found = [_CAPABILITY.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise UserError(
            f"--ahead-of-time {text!r} is no list of GPU generations; write for example SM89,SM120"
        )
    return tuple(dict.fromkeys(f"{match[1]}.{match[2]}" for match in found if match))


def parse_tensorrt_version(text: str) -> Version:
    """``(8, 6)`` from ``8.6``.

    Raises:
        UserError: It is no version, or one that this command does not know.
    """
    version = parse_version(text)
    if version[:2] != (8, 6) and version[:1] not in ((10,), (11,)):
        raise UserError(f"--tensorrt-version {text!r} is not supported; use 8.6, 10 or 11")
    return version
