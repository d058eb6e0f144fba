"""From parsed options to a request, with every option checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import TEMPORAL_FLOAT
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.export.apply import ApplyOptions
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.plan.quant_plan import W8A8, Bits
from qvd_trt.export.session import CPU, CUDA
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm, choose_float_type
from qvd_trt.tools.request import QuantizeRequest
from qvd_trt.tools.sampling_options import read_sampling

PROVIDERS = {"cpu": CPU, "cuda": CUDA}


def read_request(options: argparse.Namespace) -> QuantizeRequest:
    """Check the options and gather them.

    Raises:
        UserError: an unknown name, or options that do not go together.
    """
    _check_plan_alone(options)
    bits = W8A8 if options.bits is None else Bits.parse(options.bits)
    algorithm = _known("--algorithm", options.algorithm, ALGORITHMS) or "qvd"
    temporal = _known("--temporal", options.temporal, (*CODEBOOKS, TEMPORAL_FLOAT))
    target = TARGETS[_known("--target", options.target, TARGETS) or "trt"]
    dtype = _known("--dtype", options.dtype, [entry.value for entry in FloatType])
    htdq = _known("--htdq", options.htdq, [entry.value for entry in HtdqForm])
    _check_min_sqnr(options.min_sqnr, algorithm)
    return QuantizeRequest(
        model=options.model,
        output=options.output or _default_output(options, bits),
        apply=ApplyOptions(
            target, choose_float_type(target, dtype), None if htdq is None else HtdqForm(htdq)
        ),
        bits=bits,
        algorithm=algorithm,
        temporal_quantizer=temporal,
        calibration=tuple(options.calib),
        sampling=read_sampling(options),
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


def _known(option: str, name: str | None, names: Iterable[str]) -> str | None:
    """The name, or None when the option was not given."""
    if name is not None and name not in names:
        raise UserError(f"{option}: {name!r} is unknown; use one of {', '.join(names)}")
    return name


def _check_min_sqnr(min_sqnr: float | None, algorithm: str) -> None:
    if min_sqnr is None:
        return
    if not math.isfinite(min_sqnr):
        raise UserError(f"--min-sqnr: {min_sqnr} is not supported; use a number of dB")
    measuring = [name for name, entry in ALGORITHMS.items() if entry.needs_rows]
    if algorithm not in measuring:
        raise UserError(
            f"--min-sqnr needs an algorithm that measures layers; use one of {', '.join(measuring)}"
        )


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
