"""``qvd-build``: ONNX model in, TensorRT engine out, with what runs in INT8."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qvd_trt.export.errors import UserError
from qvd_trt.tools.cli.common import (
    EXIT_OK,
    command_parser,
    drop_stdout,
    print_report,
    read_besides,
    run_command,
    say,
)
from qvd_trt.tools.cli.recipe import parse_arguments
from qvd_trt.tools.engine.tensorrt_install import (
    Runtime,
    RuntimeKind,
    Version,
    find_tensorrt,
    installed_kind,
    parse_version,
)

# Reports, requests and what they call are imported where they are used: onnx and rich take half a
# second, and --help and usage errors are to answer at once.
if TYPE_CHECKING:
    from qvd_trt.tools.engine.build_engine import BuildReport
    from qvd_trt.tools.engine.build_plan import BuildRequest

NAME = "qvd-build"

EXAMPLES = """\
  qvd-build model.w8a8.onnx --shapes sample:1x4x16x32x32 timestep:1
  qvd-build model.w8a8.onnx --shapes sample:1x4x8x32x32:1x4x16x32x32:2x4x16x64x64
  qvd-build model.float.onnx --shapes sample:1x4x16x32x32 -o float.engine
  qvd-build model.rtx.onnx --runtime rtx --ahead-of-time SM89,SM120
  qvd-build model.trt8.onnx --print-trtexec --tensorrt-version 8.6
  qvd-build model.w8a8.onnx --recipe shapes.toml
"""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_CAPABILITY = re.compile(r"(?:SM_?)?(\d+)\.?(\d)", re.IGNORECASE)
_DEFAULT_VERSION: dict[RuntimeKind, Version] = {"tensorrt": (10,), "rtx": (1,)}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``qvd-build``."""
    parser = command_parser(
        NAME,
        "Build a TensorRT or TensorRT-RTX engine from an ONNX model and say what runs in INT8.",
        EXAMPLES,
        verbose="list every node and every engine layer",
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
    _add_runtime(parser)
    _add_builder(parser)
    _add_trtexec(parser)
    return parser


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("runtime")
    group.add_argument(
        "--runtime",
        choices=get_args(Runtime),
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


def read_request(options: argparse.Namespace) -> BuildRequest:
    """Check the options and gather them.

    Raises:
        UserError: One cannot be parsed, or two do not go together.
    """
    from qvd_trt.export.atomic_files import beside
    from qvd_trt.tools.engine.build_plan import BuildRequest
    from qvd_trt.tools.engine.shape_ranges import parse_shape_range

    plugin = options.plugin
    request = BuildRequest(
        model=options.model,
        output=options.output or beside(options.model, ".engine"),
        runtime=options.runtime,
        dtype=options.dtype,
        shapes=tuple(map(parse_shape_range, options.shapes)),
        timing_cache=options.timing_cache,
        log=options.log,
        workspace=None if options.workspace is None else _parse_size(options.workspace),
        use_plugin=plugin is not None,
        plugin=plugin if plugin and plugin.parts else None,
        optimization_level=options.optimization_level,
        cublas=not options.no_cublas,
        implicit=options.implicit,
        compute_capabilities=_parse_capabilities(options.ahead_of_time),
        also_read=read_besides(options.recipe),
    )
    _check_tensorrt_version(options)
    return request


def _check_tensorrt_version(options: argparse.Namespace) -> None:
    if options.tensorrt_version is None:
        return
    if not options.print_trtexec:
        raise UserError("--tensorrt-version goes with --print-trtexec; the installed one builds")
    if options.runtime == "rtx":
        raise UserError("--tensorrt-version is one of TensorRT; leave --runtime rtx out")
    _parse_tensorrt_version(options.tensorrt_version)


def _parse_size(text: str) -> int:
    """Bytes of a size such as ``8G``, ``512M`` or ``1.5GiB``.

    Raises:
        UserError: It is no size, or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    size = 0 if found is None else int(float(found[1]) * (1 << _POWERS[found[2].upper()]))
    if size <= 0:
        raise UserError(f"--workspace {text!r} is not a size; write for example 8G or 512M")
    return size


def _parse_capabilities(text: str | None) -> tuple[str, ...]:
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


def _parse_tensorrt_version(text: str) -> Version:
    """``(8, 6)`` from ``8.6``.

    Raises:
        UserError: It is no version, or one that this command does not know.
    """
    version = parse_version(text)
    if version[:2] != (8, 6) and version[:1] not in ((10,), (11,)):
        raise UserError(f"--tensorrt-version {text!r} is not supported; use 8.6, 10 or 11")
    return version


def run(request: BuildRequest) -> BuildReport:
    """Build the engine and write it and its report; progress goes to stderr.

    Raises:
        UserError: anything wrong with the inputs, or TensorRT fails. Nothing is written then.
    """
    from qvd_trt.tools.cli.display import BarProgress
    from qvd_trt.tools.engine.build_engine import build_engine

    return build_engine(request, BarProgress())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    return run_command(NAME, lambda: _main(parse_arguments(build_parser(), arguments)))


def _main(options: argparse.Namespace) -> int:
    from qvd_trt.tools.cli.build_summary import print_summary

    request = read_request(options)
    if options.print_trtexec:
        return _print_trtexec(options, request)
    report = run(request)
    say(NAME, notes=report.notes, warnings=report.warnings)
    print_report(NAME, report, options, print_summary)
    return EXIT_OK


def _print_trtexec(options: argparse.Namespace, request: BuildRequest) -> int:
    from qvd_trt.tools.engine.build_engine import equivalent_command

    command, warnings = equivalent_command(request, *_asked_tensorrt(options))
    say(NAME, warnings=warnings)
    try:
        print(command, flush=True)
    except OSError:
        drop_stdout()
        raise
    return EXIT_OK


def _asked_tensorrt(options: argparse.Namespace) -> tuple[RuntimeKind, Version]:
    """Which TensorRT a printed command is for: the named, the installed, or TensorRT 10."""
    if options.tensorrt_version is not None:
        return "tensorrt", _parse_tensorrt_version(options.tensorrt_version)
    installed = installed_kind() if options.runtime == "auto" else None
    kind = installed or ("rtx" if options.runtime == "rtx" else "tensorrt")
    try:
        install = find_tensorrt(kind)
    except UserError:
        return kind, _DEFAULT_VERSION[kind]
    return install.kind, install.version


if __name__ == "__main__":
    sys.exit(main())
