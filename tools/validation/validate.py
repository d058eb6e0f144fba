"""The job of ``qvd-validate``: run every model on the same calls and compare."""

from __future__ import annotations

from contextlib import ExitStack

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.calibrators.sources.self_sampling import SelfSampling
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import timestep_of
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.tools.validation.free_run import run_free
from qvd_trt.tools.validation.models import ModelSet, open_models
from qvd_trt.tools.validation.recordings import Recorder
from qvd_trt.tools.validation.report import (
    FLOAT,
    IMPLEMENTATION,
    QUANTIZATION,
    TOTAL,
    CallErrors,
    FreeRunReport,
    LimitCheck,
    ValidationReport,
    as_float32,
    measure_error,
    summarize,
)
from qvd_trt.tools.validation.request import Limits, ValidationRequest


def validate(request: ValidationRequest, progress: Progress = SILENT) -> ValidationReport:
    """Compare the models of a request; whether its limits hold is in the report.

    Every call is run through all models before the next one is read, so that memory holds the
    models and one call.

    Raises:
        UserError: anything wrong with the inputs.
    """
    with ExitStack() as stack:
        with progress.step("load", None):
            opened = open_models(request, stack)
            # Now, so that a wrong option is refused before hours of calls.
            drawn = _drawn_inputs(request, opened)
        calibration: str | None = None
        calls: tuple[CallErrors, ...] = ()
        if request.calibration:
            calibration, calls = _teacher_forced(request, opened, progress)
        free_run, warnings = _free_run(request, opened, drawn, progress)
    return ValidationReport(
        models=opened.files,
        calibration=calibration,
        calls=calls,
        free_run=free_run,
        skipped=opened.skipped,
        limits=check_limits(request.limits, calls),
        warnings=(*opened.warnings, *warnings),
    )


def check_limits(limits: Limits, calls: tuple[CallErrors, ...]) -> tuple[LimitCheck, ...]:
    """Compare what was measured with what was required."""
    summary = summarize(calls)
    checks = []
    if limits.min_sqnr is not None:
        limited = TOTAL if TOTAL.name in summary else QUANTIZATION
        value = summary[limited.name].mean_sqnr
        met = value >= limits.min_sqnr
        quantity = f"mean SQNR of {limited.candidate} against {limited.reference} in dB"
        checks.append(LimitCheck("--min-sqnr", quantity, value, limits.min_sqnr, met))
    if limits.max_implementation_error is not None:
        limit = limits.max_implementation_error
        value = summary[IMPLEMENTATION.name].mean_relative_rms
        quantity = "mean relative RMS error of the engine against QDQ"
        option = "--max-implementation-error"
        checks.append(LimitCheck(option, quantity, value, limit, value <= limit))
    return tuple(checks)


def _teacher_forced(
    request: ValidationRequest, opened: ModelSet, progress: Progress
) -> tuple[str, tuple[CallErrors, ...]]:
    source = open_source(request.calibration, opened.signature)
    total = source.calls()
    if opened.recorded is not None and total is not None:
        opened.recorded.require_calls(total)
    comparisons = opened.comparisons(opened.models)
    measured: list[CallErrors] = []
    with (
        Recorder(request.recordings, opened.signature.output.name) as recorder,
        progress.step("validate", total) as advance,
    ):

        def run_all(call: DenoiserCall) -> AnyArray:
            outputs = {name: as_float32(run(call)) for name, run in opened.models.items()}
            errors = {
                entry.name: measure_error(outputs[entry.reference], outputs[entry.candidate], entry)
                for entry in comparisons
            }
            timestep = timestep_of(call.inputs, opened.signature)
            measured.append(CallErrors(call.trajectory, call.step, timestep, errors))
            recorder.record(call, outputs)
            advance()
            return outputs[FLOAT]

        source.drive(run_all)
        if not measured:
            raise UserError(f"{source.describe()} gave no calls; give at least one")
        if opened.recorded is not None:
            opened.recorded.require_calls(len(measured))
    return source.describe(), tuple(measured)


def _drawn_inputs(request: ValidationRequest, opened: ModelSet) -> tuple[str, ...]:
    if request.sampling is None:
        return ()
    return SelfSampling(request.sampling, opened.signature).drawn_inputs()


def _free_run(
    request: ValidationRequest, opened: ModelSet, drawn: tuple[str, ...], progress: Progress
) -> tuple[FreeRunReport | None, tuple[str, ...]]:
    if request.sampling is None:
        return None, ()
    warnings = []
    if (defaults := request.sampling.defaults_used()) is not None:
        warnings.append(
            "--free-run samples with default settings, which may not be those the model was "
            f"trained for: {defaults}; give --sampler, --prediction and --schedule"
        )
    if drawn:
        warnings.append(
            f"inputs drawn at random: {', '.join(drawn)}; give real ones with --inputs FILE.npz"
        )
    models = opened.running()
    if opened.recorded is not None:
        warnings.append("--free-run leaves the engine out: recorded outputs cannot be sampled with")
    report, found = run_free(
        models, opened.comparisons(models), opened.signature, request.sampling, progress
    )
    return report, (*warnings, *found)
