"""``qvd-validate``: how far the QDQ model and its engine are from the float model, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvd_trt.tools.command_line import EXIT_OK, run_command
from qvd_trt.tools.validate_options import build_parser, read_request

if TYPE_CHECKING:
    from qvd_trt.tools.validation.report import ValidationReport

NAME = "qvd-validate"
EXIT_LIMIT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 1 a limit is not kept, 2 bad input, 130 interrupted.
    """
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _validate(options))


def _validate(options: argparse.Namespace) -> int:
    # Imported here so that --help and usage errors answer at once.
    from rich.console import Console

    from qvd_trt.export.files import write_atomically
    from qvd_trt.tools.progress_bar import BarProgress
    from qvd_trt.tools.validate_summary import print_summary
    from qvd_trt.tools.validation.validate import validate

    report = validate(read_request(options), BarProgress(Console(stderr=True)))
    if options.report is not None:
        write_atomically(options.report, report.to_json().encode())
    for warning in report.warnings:
        print(f"{NAME}: warning: {warning}", file=sys.stderr)
    if options.json:
        print(report.to_json())
    else:
        print_summary(report)
    return _check(report)


def _check(report: ValidationReport) -> int:
    broken = [check for check in report.limits if not check.met]
    for check in broken:
        print(
            f"{NAME}: {check.option}: {check.quantity} is {check.value:.4g}, "
            f"the limit is {check.limit:g}",
            file=sys.stderr,
        )
    return EXIT_LIMIT if broken else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
