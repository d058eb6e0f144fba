"""From parsed options to a request, with every option checked."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.arrays import AnyArray
from qvd_trt.calibrators.bits import Bits
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.plan_file import load_plan
from qvd_trt.calibrators.solve import TEMPORAL_FLOAT
from qvd_trt.calibrators.sources.input_shapes import parse_shapes
from qvd_trt.calibrators.sources.npz_files import read_npz
from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.export.pipeline import ApplyOptions
from qvd_trt.export.quantize_model import QuantizeRequest
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm, choose_float_type

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}


def read_request(options: argparse.Namespace) -> QuantizeRequest:
    """Check the options and gather them.

    Raises:
        UserError: an unknown name, or options that do not go together.
    """
    _check_plan_alone(options)
    bits = Bits.parse(options.bits or "w8a8")
    algorithm = _known("--algorithm", options.algorithm or "qvd", ALGORITHMS)
    if options.temporal is not None:
        _known("--temporal", options.temporal, (*CODEBOOKS, TEMPORAL_FLOAT))
    target = TARGETS[_known("--target", options.target, TARGETS)]
    if options.dtype is not None:
        _known("--dtype", options.dtype, [entry.value for entry in FloatType])
    htdq = options.htdq and HtdqForm(
        _known("--htdq", options.htdq, [entry.value for entry in HtdqForm])
    )
    return QuantizeRequest(
        model=options.model,
        output=options.output or _default_output(options, bits),
        apply=ApplyOptions(target, choose_float_type(target, options.dtype), htdq),
        bits=bits,
        algorithm=algorithm,
        temporal_quantizer=options.temporal,
        calibration=tuple(options.calib),
        sampling=_sampling(options),
        training_timesteps={"auto": None, "calibration": False, "training": True}[
            options.temporal_timesteps
        ],
        stats=options.stats,
        plan=options.plan,
        timestep_input=options.timestep_input,
        latent_input=options.latent_input,
        keep=tuple(options.keep),
        min_sqnr=options.min_sqnr,
        providers=PROVIDERS[options.provider],
    )


def _default_output(options: argparse.Namespace, bits: Bits) -> Path:
    model: Path = options.model
    if options.plan is not None:
        bits = load_plan(options.plan).bits
    return model.with_suffix(f".{bits}.onnx")


def report_path(output: Path) -> Path:
    """Where the report of an output lies."""
    return output.with_suffix(".report.json")


def _sampling(options: argparse.Namespace) -> SelfSamplingOptions:
    given: dict[str, AnyArray] | None = read_npz(options.inputs) if options.inputs else None
    return SelfSamplingOptions(
        sampler=options.sampler or "ddim",
        prediction=options.prediction,
        schedule=options.schedule,
        spacing=options.spacing,
        shift=options.shift,
        steps=options.steps,
        samples=options.samples,
        guidance=options.guidance,
        seed=options.seed,
        extra_inputs=given,
        shapes=parse_shapes(options.shapes),
    )


def _known(option: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise UserError(f"{option}: {name!r} is unknown; use one of {', '.join(names)}")
    return name


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
        if value:
            raise UserError(f"{option} and --plan exclude each other: the plan already decides it")
