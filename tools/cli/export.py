"""``qvd-export``: float ONNX denoiser in, calibrated QDQ ONNX denoiser out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import TEMPORAL_FLOAT
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.plan.quant_plan import W8A8, Bits
from qvd_trt.export.targets import (
    TARGETS,
    FloatType,
    HtdqForm,
    TargetProfile,
    choose_float_type,
)
from qvd_trt.tools.cli.common import (
    EXIT_OK,
    add_model_options,
    command_parser,
    drop_stdout,
    known,
    print_report,
    read_besides,
    read_providers,
    run_command,
    say,
)
from qvd_trt.tools.cli.recipe import parse_arguments
from qvd_trt.tools.cli.sampling import add_sampling, read_sampling

# Reports, requests and what they call are imported where they are used: ONNX Runtime, onnx_ir and
# rich take a second, and --help and usage errors are to answer at once.
if TYPE_CHECKING:
    from qvd_trt.tools.calibrate_shard import ShardReport
    from qvd_trt.tools.quantize_report import QuantizationReport
    from qvd_trt.tools.quantize_request import QuantizeRequest

NAME = "qvd-export"

EXAMPLES = """\
  qvd-export model.onnx --calib recorded/ --bits w8a8
  qvd-export model.onnx --sampler ddim --steps 25 --prediction v_prediction --inputs prompts.npz
  qvd-export model.onnx --stats model.stats.npz --bits w6a6 -o model.w6a6.onnx
  qvd-export model.onnx --plan edited.plan.json -o model.w8a8.onnx --target trt8
  qvd-export model.onnx --calib recorded/ --stats shard.2.npz --shard 2/8 --resume
  qvd-export --recipe w8a8.toml --target rtx
"""

DEFAULT_ALGORITHM, DEFAULT_TARGET = "qvd", "trt"
_RUNTIMES = {
    "trt": "TensorRT 10 and 11",
    "rtx": "TensorRT-RTX",
    "trt8": "TensorRT 8.6",
    "ort": "ONNX Runtime",
}
_TRAINING_TIMESTEPS = {"auto": None, "calibration": False, "training": True}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``qvd-export``."""
    parser = command_parser(
        NAME,
        "Quantize a float ONNX video denoiser with QVD (SCRI and HTDQ) and write a QDQ ONNX file "
        "for TensorRT and ONNX Runtime.",
        EXAMPLES,
        verbose="list every layer, by all the names that --keep matches, and why some stay float",
    )
    parser.add_argument("model", type=Path, help="float32 ONNX denoiser; never written to")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="QDQ model to write (default: MODEL with .w8a8.onnx); the plan and the report go "
        "beside it as .plan.json and .report.json",
    )
    _add_quantization(parser)
    _add_calibration(parser)
    add_sampling(parser, "sampling calibration trajectories from the model")
    _add_target(parser)
    return parser


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--bits",
        metavar="wNaM",
        help="widths of weights and activations, 2 to 8, or 16 for float (default: w8a8). Only "
        "w8a8 is faster; fewer bits are carried in 8 and tell about accuracy; w16a16 writes the "
        "float model for the target, to compare with",
    )
    baselines = ", ".join(name for name in ALGORITHMS if name != DEFAULT_ALGORITHM)
    group.add_argument(
        "--algorithm",
        metavar="NAME",
        help=f"{DEFAULT_ALGORITHM} (default), or a baseline: {baselines}",
    )
    group.add_argument(
        "--temporal",
        metavar="NAME",
        help=f"codebook of the temporal sites: {', '.join(CODEBOOKS)}, or {TEMPORAL_FLOAT} "
        "(default: the algorithm's own, where it holds for trajectories left out)",
    )
    group.add_argument(
        "--keep",
        metavar="PATTERN",
        action="append",
        default=[],
        help="keep layers float whose node, weight, torch module or operator has this whole name "
        "(shell pattern); repeat",
    )
    group.add_argument(
        "--list-layers",
        action="store_true",
        help="only list the layers, by all the names that --keep matches; writes nothing; with "
        "--json the `layers` of a report",
    )
    group.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="keep layers float whose output SQNR on calibration rows is lower",
    )
    group.add_argument(
        "--plan", type=Path, metavar="FILE", help="apply this (edited) plan instead of solving one"
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calib",
        type=Path,
        nargs="+",
        metavar="PATH",
        default=[],
        help=".npz trajectories or a folder of them, Polygraphy .json inputs, or a .py script "
        "with load_data(); without it trajectories are sampled from the model itself",
    )
    group.add_argument(
        "--stats",
        type=Path,
        metavar="FILE",
        help="statistics cache (.npz): read when it exists, else written",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with a calibration that was stopped, from FILE.partial beside --stats FILE",
    )
    group.add_argument(
        "--shard",
        metavar="i/n",
        help="calibrate every n-th trajectory from the i-th on (1/n to n/n) into --stats FILE, "
        "and stop there; another process or machine takes the others",
    )
    group.add_argument(
        "--merge-stats",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="the files of all shards, in any order: go on as with the --stats of one run, and "
        "write that where --stats says",
    )
    add_model_options(group, provider="where calibration runs")
    group.add_argument(
        "--temporal-timesteps",
        choices=tuple(_TRAINING_TIMESTEPS),
        default="auto",
        help="timesteps that temporal codebooks are made for: those of the calibration calls, or "
        "all of training (auto: training with --calib, else calibration)",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    targets = ", ".join(
        f"{name} ({_RUNTIMES[name]})" if name in _RUNTIMES else name for name in TARGETS
    )
    group.add_argument(
        "--target",
        metavar="NAME",
        help=f"what is to run the file: {targets} (default: {DEFAULT_TARGET})",
    )
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        help=f"type of the rest of the graph: {', '.join(entry.value for entry in FloatType)} "
        f"(default: {_defaults(lambda target: target.float_types[0].value)}; for a bf16 model "
        "bf16 in place of fp16)",
    )
    group.add_argument(
        "--htdq",
        metavar="FORM",
        help=f"form of HTDQ nodes: {', '.join(entry.value for entry in HtdqForm)} "
        f"(default: {_defaults(lambda target: target.htdq_form.value)})",
    )


def _defaults(default: Callable[[TargetProfile], str]) -> str:
    """What the targets take by default, such as ``fp16 for trt and rtx, fp32 for trt8``."""
    targets: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        targets.setdefault(default(target), []).append(name)
    return ", ".join(f"{value} for {' and '.join(names)}" for value, names in targets.items())


def read_request(options: argparse.Namespace) -> QuantizeRequest:
    """Check the options and gather them.

    Raises:
        UserError: an unknown name, or options that do not go together.
    """
    from qvd_trt.calibrators.sources.shard import Shard
    from qvd_trt.export.apply_plan import ApplyOptions
    from qvd_trt.tools.quantize_request import QuantizeRequest

    _check_plan_alone(options)
    bits = W8A8 if options.bits is None else Bits.parse(options.bits)
    algorithm = known("--algorithm", options.algorithm, ALGORITHMS) or DEFAULT_ALGORITHM
    temporal = known("--temporal", options.temporal, (*CODEBOOKS, TEMPORAL_FLOAT))
    target = TARGETS[known("--target", options.target, TARGETS) or DEFAULT_TARGET]
    dtype = known("--dtype", options.dtype, [entry.value for entry in FloatType])
    htdq = known("--htdq", options.htdq, [entry.value for entry in HtdqForm])
    return QuantizeRequest(
        model=options.model,
        output=options.output or _default_output(options, bits),
        apply=ApplyOptions(
            target,
            None if dtype is None else choose_float_type(target, dtype),
            None if htdq is None else HtdqForm(htdq),
        ),
        bits=bits,
        algorithm=algorithm,
        temporal_quantizer=temporal,
        calibration=tuple(options.calib),
        sampling=read_sampling(options),
        training_timesteps=_TRAINING_TIMESTEPS[options.temporal_timesteps],
        stats=options.stats,
        shard=None if options.shard is None else Shard.parse(options.shard),
        merge_stats=tuple(options.merge_stats),
        resume=options.resume,
        plan=options.plan,
        timestep_input=options.timestep_input,
        latent_input=options.latent_input,
        prediction_output=options.prediction_output,
        keep=tuple(options.keep),
        min_sqnr=options.min_sqnr,
        providers=read_providers(options),
        also_read=read_besides(options.recipe, options.inputs),
    )


def _default_output(options: argparse.Namespace, bits: Bits) -> Path:
    from qvd_trt.export.atomic_files import beside

    model: Path = options.model
    if options.plan is not None:
        bits = load_plan(options.plan).bits
    return beside(model, f".{bits}.onnx")


def _check_plan_alone(options: argparse.Namespace) -> None:
    if options.plan is None:
        return
    for option, value in (
        ("--bits", options.bits),
        ("--algorithm", options.algorithm),
        ("--temporal", options.temporal),
        ("--keep", options.keep),
        ("--min-sqnr", options.min_sqnr),
    ):
        if value not in (None, []):
            raise UserError(f"{option} and --plan exclude each other: the plan already decides it")


def run(
    request: QuantizeRequest, tell: Callable[[str], None] = lambda warning: None
) -> QuantizationReport:
    """Quantize the model and write it, its plan and its report; progress goes to stderr.

    ``tell`` takes what is worth stopping for, as soon as it is known.

    Raises:
        UserError: anything wrong with the inputs. Nothing is written then.
    """
    from qvd_trt.tools.cli.display import BarProgress
    from qvd_trt.tools.quantize import quantize

    return quantize(request, BarProgress(), tell)


def _calibrate_shard(request: QuantizeRequest, tell: Callable[[str], None]) -> ShardReport:
    from qvd_trt.tools.calibrate_shard import calibrate_shard
    from qvd_trt.tools.cli.display import BarProgress

    return calibrate_shard(request, BarProgress(), tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    return run_command(NAME, lambda: _main(parse_arguments(build_parser(), arguments)))


def _main(options: argparse.Namespace) -> int:
    from qvd_trt.tools.cli.export_summary import print_shard, print_summary

    request = read_request(options)
    if options.list_layers:
        return _list_layers(request, as_json=options.json)
    told: list[str] = []

    def tell(warning: str) -> None:
        say(NAME, warnings=[warning])
        told.append(warning)

    if request.shard is not None:
        shard = _calibrate_shard(request, tell)
        say(NAME, warnings=[warning for warning in shard.warnings if warning not in told])
        print_report(NAME, shard, options, print_shard)
        return EXIT_OK
    report = run(request, tell)
    say(NAME, warnings=[warning for warning in report.warnings if warning not in told])
    print_report(NAME, report, options, print_summary)
    return EXIT_OK


def _list_layers(request: QuantizeRequest, *, as_json: bool) -> int:
    from qvd_trt.tools.cli.export_summary import print_layers
    from qvd_trt.tools.quantize_report import layer_names, layers_json
    from qvd_trt.tools.quantize_request import open_requested

    model = open_requested(request)
    try:
        if as_json:
            print(layers_json(model))
        else:
            print_layers(layer_names(model))
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        raise
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
