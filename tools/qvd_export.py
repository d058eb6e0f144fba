"""``qvd-export``: float ONNX denoiser in, calibrated QDQ ONNX denoiser out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvd_trt.tools.command_line import EXIT_OK, run_command
from qvd_trt.tools.export_options import build_parser

if TYPE_CHECKING:
    from qvd_trt.tools.request import QuantizeRequest

NAME = "qvd-export"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    # Imported here so that --help and usage errors answer at once.
    from rich.console import Console

    from qvd_trt.tools.export_request import read_request
    from qvd_trt.tools.export_summary import print_summary
    from qvd_trt.tools.pipeline import quantize
    from qvd_trt.tools.progress_bar import BarProgress

    request: QuantizeRequest = read_request(options)
    report = quantize(request, BarProgress(Console(stderr=True)))
    for warning in report.warnings:
        print(f"{NAME}: warning: {warning}", file=sys.stderr)
    if options.json:
        print(report.to_json())
    else:
        print_summary(report, verbose=options.verbose)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
