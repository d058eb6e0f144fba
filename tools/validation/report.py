"""What a validation found, as plain data for people and machines, and the error of two arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np

from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.atomic_files import json_text
from qvd_trt.export.errors import UserError
from qvd_trt.export.metrics import sqnr


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models whose predictions are compared.

    Attributes:
        name: As in the report.
        reference: The model whose output is the signal.
        candidate: The model whose difference from it is the noise.
        meaning: For people.
    """

    name: str
    reference: str
    candidate: str
    meaning: str


FLOAT, QDQ, ENGINE, FLOAT_ENGINE = "float", "qdq", "engine", "float_engine"
FLOAT_FP16, QDQ_FP16 = "float_fp16", "qdq_fp16"

QUANTIZATION = Comparison("quantization", FLOAT, QDQ, "QDQ against float, in ONNX Runtime")
IMPLEMENTATION = Comparison("implementation", QDQ, ENGINE, "engine against QDQ in ONNX Runtime")
TOTAL = Comparison("total", FLOAT, ENGINE, "engine against float in ONNX Runtime")
NOISE_FLOOR = Comparison(
    "noise_floor", FLOAT_FP16, FLOAT_ENGINE, "float engine against float in fp16 in ONNX Runtime"
)
ROUNDING_FLOOR = Comparison(
    "rounding_floor", QDQ, QDQ_FP16, "QDQ in fp16 against QDQ in fp32, in ONNX Runtime"
)
COMPARISONS = (QUANTIZATION, IMPLEMENTATION, TOTAL, NOISE_FLOOR, ROUNDING_FLOOR)


@dataclass(frozen=True, slots=True)
class ErrorMeasure:
    """The difference of two arrays.

    Attributes:
        sqnr: Signal to noise in dB; -inf when either array holds NaN or Inf.
        relative_rms: sqrt(noise / signal), a fraction: 0.01 is one percent; inf likewise.
    """

    sqnr: float
    relative_rms: float


@dataclass(frozen=True, slots=True)
class CallErrors:
    """The errors of one call (teacher forced), or of the state after one step (free running).

    Attributes:
        trajectory: Index of the trajectory.
        step: Index of the call, or of the denoising step, within it.
        timestep: What the model was told.
        errors: By comparison name.
    """

    trajectory: int
    step: int
    timestep: float
    errors: Mapping[str, ErrorMeasure]


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and worst error of one comparison.

    Attributes:
        mean_sqnr: Mean of the calls' SQNR, dB.
        worst_sqnr: The lowest, dB.
        worst_timestep: Timestep of the call with the lowest SQNR.
        mean_relative_rms: Mean of the calls' relative RMS error, a fraction.
        worst_relative_rms: The highest, a fraction.
    """

    mean_sqnr: float
    worst_sqnr: float
    worst_timestep: float
    mean_relative_rms: float
    worst_relative_rms: float


@dataclass(frozen=True, slots=True)
class FinalLatent:
    """PSNR of one sample's final latent in dB, by comparison.

    The data range is that of the reference's latent, its greatest minus its least value.
    """

    trajectory: int
    psnr: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FreeRunReport:
    """Trajectories that each model sampled with its own predictions from the same noise.

    Attributes:
        sampling: How they were sampled.
        states: The state after each step, per sample.
        finals: The last state, per sample.
    """

    sampling: str
    states: tuple[CallErrors, ...]
    finals: tuple[FinalLatent, ...]


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """A required limit and what was measured.

    Attributes:
        option: The option that set it.
        quantity: What is limited.
        value: What was measured.
        limit: The limit.
        met: Whether it was kept.
    """

    option: str
    quantity: str
    value: float
    limit: float
    met: bool


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The outcome of one validation.

    Attributes:
        models: What was compared: file by model name.
        calibration: What the calls came from, or None without teacher-forced calls.
        calls: Teacher-forced errors, call by call.
        free_run: The free-running part, if asked for.
        skipped: Comparison name -> why it was not made.
        limits: The required limits.
        warnings: For the user.
    """

    models: Mapping[str, str]
    calibration: str | None
    calls: tuple[CallErrors, ...]
    free_run: FreeRunReport | None
    skipped: Mapping[str, str]
    limits: tuple[LimitCheck, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """JSON with the summaries; numbers that JSON cannot write are strings."""
        data = asdict(self)
        data["summary"] = {name: asdict(entry) for name, entry in summarize(self.calls).items()}
        if self.free_run is not None:
            states = summarize(self.free_run.states)
            data["free_run"]["summary"] = {name: asdict(entry) for name, entry in states.items()}
        return json_text(data)


def summarize(calls: Iterable[CallErrors]) -> dict[str, Summary]:
    """Mean and worst over the calls, by comparison name, in the order of COMPARISONS."""
    calls = tuple(calls)
    summaries = {}
    for name in (comparison.name for comparison in COMPARISONS):
        measured = [(call.errors[name], call.timestep) for call in calls if name in call.errors]
        if not measured:
            continue
        worst, timestep = min(measured, key=lambda entry: entry[0].sqnr)
        errors = [error for error, _ in measured]
        summaries[name] = Summary(
            mean_sqnr=fmean(error.sqnr for error in errors),
            worst_sqnr=worst.sqnr,
            worst_timestep=timestep,
            mean_relative_rms=fmean(error.relative_rms for error in errors),
            worst_relative_rms=max(error.relative_rms for error in errors),
        )
    return summaries


def measure_error(
    reference: Float32Array, candidate: Float32Array, comparison: Comparison
) -> ErrorMeasure:
    """SQNR and relative RMS error of two arrays.

    Raises:
        UserError: their shapes differ.
    """
    if reference.shape != candidate.shape:
        raise UserError(
            f"{comparison.name}: the {comparison.candidate} output has shape "
            f"{list(candidate.shape)}, that of {comparison.reference} {list(reference.shape)}; "
            "give models and outputs that belong together"
        )
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return ErrorMeasure(-math.inf, math.inf)
    measured = sqnr(reference, candidate)
    # Equal arrays would get the 1e-15 of the SQNR's guard against a division by zero.
    equal = np.array_equal(reference, candidate)
    return ErrorMeasure(measured, 0.0 if equal else 10 ** (-measured / 20))


def as_float32(output: AnyArray) -> Float32Array:
    """A model's output as it is compared."""
    return np.asarray(output).astype(np.float32, copy=False)
