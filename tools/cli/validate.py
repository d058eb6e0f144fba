"""``qvd-validate``: how far the QDQ model and its engine are from the float model, and why."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qvd_trt.export.errors import UserError
from qvd_trt.tools.cli.common import (
    EXIT_LIMIT,
    EXIT_OK,
    add_model_options,
    command_parser,
    print_report,
    read_besides,
    read_providers,
    run_command,
    say,
)
from qvd_trt.tools.cli.recipe import parse_arguments
from qvd_trt.tools.cli.sampling import add_sampling, first_given, read_sampling
from qvd_trt.tools.engine.tensorrt_install import Runtime

# Reports, requests and what they call are imported where they are used: ONNX Runtime, onnx_ir and
# rich take a second, and --help and usage errors are to answer at once.
if TYPE_CHECKING:
    from qvd_trt.tools.validation.report import ValidationReport
    from qvd_trt.tools.validation.request import ValidationRequest

NAME = "qvd-validate"

EXAMPLES = """\
  qvd-validate model.onnx model.w8a8.onnx --calib recorded/
  qvd-validate model.onnx model.w8a8.onnx --engine model.plan --float-engine fp16.plan --calib recorded/
  qvd-validate model.onnx model.w8a8.onnx --calib recorded/ --save-raw raw/
  qvd-validate model.onnx model.w8a8.onnx --calib recorded/ --engine-outputs out_*.json --min-sqnr 25
  qvd-validate model.onnx model.w8a8.onnx --free-run --steps 25 --inputs prompts.npz
  qvd-validate --recipe farm.toml --engine model.engine
"""  # noqa: E501


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``qvd-validate``."""
    parser = command_parser(
        NAME,
        "Compare a float ONNX denoiser, its QDQ ONNX file and the engine built from it on the same "
        "calls: what quantization costs, and what the engine adds.",
        EXAMPLES,
        verbose="list every call of every trajectory",
    )
    parser.add_argument(
        "float_model",
        type=Path,
        metavar="FLOAT.onnx",
        help="the float model (float_model in a recipe)",
    )
    parser.add_argument(
        "qdq_model",
        type=Path,
        metavar="QDQ.onnx",
        help="what qvd-export made from it (qdq_model in a recipe)",
    )
    _add_engines(parser)
    _add_calls(parser)
    _add_files(parser)
    parser.add_argument(
        "--free-run",
        action="store_true",
        help="also sample trajectories with each model's own predictions and compare their states",
    )
    add_sampling(parser, "sampling the trajectories of --free-run")
    _add_limits(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON")
    return parser


def _add_engines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engines")
    group.add_argument("--engine", type=Path, metavar="FILE", help="engine built from QDQ.onnx")
    group.add_argument(
        "--engine-outputs",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="instead of --engine: what it returned elsewhere, written by trtexec --exportOutput "
        "(one file per call) or polygraphy run --save-outputs, in call order",
    )
    group.add_argument(
        "--float-engine",
        type=Path,
        metavar="FILE",
        help="fp16 engine built from FLOAT.onnx; shows the noise that fp16 kernels make anyway",
    )
    group.add_argument(
        "--runtime",
        choices=get_args(Runtime),
        default="auto",
        help="which TensorRT runs the engines (auto: tensorrt where it is installed)",
    )
    group.add_argument("--plugin", type=Path, metavar="FILE", help="HTDQ plugin library to load")


def _add_calls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calls")
    group.add_argument(
        "--calib",
        type=Path,
        nargs="+",
        metavar="PATH",
        default=[],
        help="recorded calls, as qvd-export takes them; best ones that it was not calibrated on",
    )
    add_model_options(group, provider="where ONNX Runtime runs")
    group.add_argument(
        "--no-rounding-floor",
        action="store_true",
        help="leave out the QDQ model in fp16, which shows how far roundings alone move it",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files for other tools")
    group.add_argument(
        "--save-inputs", type=Path, metavar="FILE", help="for polygraphy run --load-inputs"
    )
    group.add_argument(
        "--save-outputs", type=Path, metavar="FILE", help="for polygraphy run --load-outputs"
    )
    group.add_argument(
        "--save-raw",
        type=Path,
        metavar="FOLDER",
        help="raw arrays for trtexec; FOLDER/load_inputs.txt holds the options of each call",
    )
    group.add_argument(
        "--raw-int32",
        action="store_true",
        help="write int64 inputs as int32 there, as TensorRT 8.6 takes them",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits (exit code 1 when one is not kept)")
    group.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="lowest mean SQNR of the engine (without one: of the QDQ model) against float",
    )
    group.add_argument(
        "--max-implementation-error",
        type=float,
        metavar="FRACTION",
        help="highest mean relative RMS error of the engine against the QDQ model; 0.01 is 1 %%",
    )


def read_request(options: argparse.Namespace) -> ValidationRequest:
    """Check the options and gather them.

    Raises:
        UserError: options that do not go together, or a wrong value.
    """
    from qvd_trt.tools.validation.recordings import RecordingPaths
    from qvd_trt.tools.validation.request import Limits, ValidationRequest

    _check_calls(options)
    _check_limits(options)
    return ValidationRequest(
        float_model=options.float_model,
        qdq_model=options.qdq_model,
        engine=options.engine,
        float_engine=options.float_engine,
        engine_outputs=tuple(options.engine_outputs),
        runtime=options.runtime,
        plugin=options.plugin,
        calibration=tuple(options.calib),
        sampling=read_sampling(options) if options.free_run else None,
        rounding_floor=not options.no_rounding_floor,
        timestep_input=options.timestep_input,
        latent_input=options.latent_input,
        prediction_output=options.prediction_output,
        providers=read_providers(options),
        limits=Limits(options.min_sqnr, options.max_implementation_error),
        recordings=RecordingPaths(
            options.save_inputs, options.save_outputs, options.save_raw, options.raw_int32
        ),
        report=options.report,
        also_read=read_besides(options.recipe, options.inputs),
    )


def _check_calls(options: argparse.Namespace) -> None:
    if options.engine is not None and options.engine_outputs:
        raise UserError("--engine and --engine-outputs exclude each other; give one of them")
    if options.raw_int32 and options.save_raw is None:
        raise UserError("--raw-int32 needs --save-raw FOLDER")
    if not options.free_run and (given := first_given(options)) is not None:
        raise UserError(f"{given} is for sampling; give --free-run, too")
    if options.calib:
        return
    if not options.free_run:
        raise UserError("nothing to compare on; give recorded calls with --calib, or --free-run")
    for option, value in (
        ("--engine-outputs", options.engine_outputs),
        ("--save-inputs", options.save_inputs),
        ("--save-outputs", options.save_outputs),
        ("--save-raw", options.save_raw),
        ("--min-sqnr", options.min_sqnr),
        ("--max-implementation-error", options.max_implementation_error),
    ):
        if value not in (None, []):
            raise UserError(f"{option} needs recorded calls; give them with --calib")


def _check_limits(options: argparse.Namespace) -> None:
    if options.min_sqnr is not None and not math.isfinite(options.min_sqnr):
        raise UserError(f"--min-sqnr: {options.min_sqnr} is not supported; use a number of dB")
    limit = options.max_implementation_error
    if limit is None:
        return
    if not (math.isfinite(limit) and limit > 0):
        raise UserError(
            f"--max-implementation-error: {limit} is not supported; use a positive fraction, "
            "for example 0.01"
        )
    if options.engine is None and not options.engine_outputs:
        raise UserError("--max-implementation-error needs --engine or --engine-outputs")


def run(request: ValidationRequest) -> ValidationReport:
    """Compare the models and write the files for other tools; progress goes to stderr.

    Raises:
        UserError: anything wrong with the inputs.
    """
    from qvd_trt.tools.cli.display import BarProgress
    from qvd_trt.tools.validation.validate import validate

    return validate(request, BarProgress())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 1 a limit is not kept, 2 bad input, 130 interrupted.
    """
    return run_command(NAME, lambda: _main(parse_arguments(build_parser(), arguments)))


def _main(options: argparse.Namespace) -> int:
    from qvd_trt.export.atomic_files import write_atomically
    from qvd_trt.tools.cli.validate_summary import print_summary

    report = run(read_request(options))
    if options.report is not None:
        write_atomically(options.report, report.to_json().encode())
    say(NAME, warnings=report.warnings)
    print_report(NAME, report, options, print_summary)
    return _limits_code(report)


def _limits_code(report: ValidationReport) -> int:
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
