"""``qvd-build``: ONNX model in, TensorRT engine out, with what runs in INT8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvd_trt.export.errors import UserError
from qvd_trt.tools.build_options import (
    build_parser,
    parse_capabilities,
    parse_size,
    parse_tensorrt_version,
)
from qvd_trt.tools.command_line import EXIT_OK, run_command

if TYPE_CHECKING:
    from qvd_trt.tools.engine.build_plan import BuildRequest
    from qvd_trt.tools.engine.tensorrt_install import RuntimeKind, Version

NAME = "qvd-build"

_DEFAULT_VERSION: dict[RuntimeKind, Version] = {"tensorrt": (10,), "rtx": (1,)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _build(options))


def _build(options: argparse.Namespace) -> int:
    # Imported here so that --help and usage errors answer at once.
    from rich.console import Console

    from qvd_trt.tools.build_summary import print_summary
    from qvd_trt.tools.engine.build_engine import build_engine
    from qvd_trt.tools.progress_bar import BarProgress

    request = read_request(options)
    if options.print_trtexec:
        return _print_trtexec(options, request)
    if options.tensorrt_version is not None:
        raise UserError("--tensorrt-version goes with --print-trtexec; the installed one builds")
    report = build_engine(request, BarProgress(Console(stderr=True)))
    _say(report.notes, report.warnings)
    if options.json:
        print(report.to_json())
    else:
        print_summary(report, verbose=options.verbose)
    return EXIT_OK


def _print_trtexec(options: argparse.Namespace, request: BuildRequest) -> int:
    from qvd_trt.tools.engine.build_engine import equivalent_command

    command, warnings = equivalent_command(request, *_asked_tensorrt(options))
    _say((), warnings)
    print(command)
    return EXIT_OK


def _asked_tensorrt(options: argparse.Namespace) -> tuple[RuntimeKind, Version]:
    """Which TensorRT a printed command is for: the named, the installed, or TensorRT 10."""
    from qvd_trt.tools.engine.tensorrt_install import find_tensorrt, installed_kind

    if options.tensorrt_version is not None:
        if options.runtime == "rtx":
            raise UserError("--tensorrt-version is one of TensorRT; leave --runtime rtx out")
        return "tensorrt", parse_tensorrt_version(options.tensorrt_version)
    installed = installed_kind() if options.runtime == "auto" else None
    kind = installed or ("rtx" if options.runtime == "rtx" else "tensorrt")
    try:
        install = find_tensorrt(kind)
    except UserError:
        return kind, _DEFAULT_VERSION[kind]
    return install.kind, install.version


def _say(notes: Sequence[str], warnings: Sequence[str]) -> None:
    for note in notes:
        print(f"{NAME}: note: {note}", file=sys.stderr)
    for warning in warnings:
        print(f"{NAME}: warning: {warning}", file=sys.stderr)


def read_request(options: argparse.Namespace) -> BuildRequest:
    """Check the options and gather them.

    Raises:
        UserError: One cannot be parsed.
    """
    from qvd_trt.tools.engine.build_plan import BuildRequest
    from qvd_trt.tools.engine.shape_ranges import parse_shape_range

    plugin = options.plugin
    return BuildRequest(
        model=options.model,
        output=options.output or options.model.with_suffix(".engine"),
        runtime=options.runtime,
        dtype=options.dtype,
        shapes=tuple(map(parse_shape_range, options.shapes)),
        timing_cache=options.timing_cache,
        log=options.log,
        workspace=None if options.workspace is None else parse_size(options.workspace),
        use_plugin=plugin is not None,
        plugin=plugin if plugin and plugin.parts else None,
        optimization_level=options.optimization_level,
        cublas=not options.no_cublas,
        implicit=options.implicit,
        compute_capabilities=parse_capabilities(options.ahead_of_time),
    )


if __name__ == "__main__":
    sys.exit(main())
