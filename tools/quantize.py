"""The main job: float ONNX in, calibrated QDQ ONNX out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import (
    NEVER_EXERCISED,
    SolveOptions,
    constant_inputs,
    float32_tensors,
    solve,
)
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats
from qvd_trt.export.apply_plan import apply_plan, check_plan, check_target
from qvd_trt.export.atomic_files import same_file, write_atomically, written_together
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.values import input_dependence
from qvd_trt.export.model_file import save_model
from qvd_trt.export.plan.plan_json import load_plan, save_plan
from qvd_trt.export.plan.quant_plan import QuantPlan
from qvd_trt.export.plan.site_types import GraphSites, KeptLayer
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.export.targets import FloatType
from qvd_trt.tools.collect_statistics import Tell
from qvd_trt.tools.edited_plan import is_edited, plan_digest, spare_name
from qvd_trt.tools.find_statistics import Calibration, find_statistics
from qvd_trt.tools.measure_held_out import measure_file
from qvd_trt.tools.quantize_report import (
    QuantizationReport,
    TemporalScore,
    int8_share,
    layer_names,
    weakest_layers,
)
from qvd_trt.tools.quantize_request import (
    QuantizeRequest,
    check_overwriting,
    check_paths,
    open_requested,
    plan_path,
    report_path,
)

UNSEEN_LOSS = 6.0
"""dB between calibrated and held-out calls from which on the export warns."""

POOR_SQNR = 10.0
"""dB of a held-out call below which the export warns: a third of the prediction is noise then."""


def quantize(
    request: QuantizeRequest,
    progress: Progress = SILENT,
    tell: Tell = lambda warning: None,
) -> QuantizationReport:
    """Calibrate, solve, rewrite, measure and write: the whole of ``qvd-export``.

    Writes the QDQ model and, beside it, its plan and its report. The input is only ever read.

    Args:
        request: What to do.
        progress: Shows each step.
        tell: Takes at once what is worth stopping for before hours of sampling; the report has it,
            too.

    Raises:
        UserError: anything wrong with the inputs; nothing but the statistics is written then.
    """
    if request.shard is not None:
        raise UserError("a shard is no whole run: give --shard to calibrate_shard()")
    solving = _solve_options(request)
    check_paths(request)
    given = None if request.plan is None else load_plan(request.plan)
    clock = _Clock()
    with clock.measure("load"), progress.step("load", None):
        model = open_requested(request)
        request = replace(request, apply=request.apply.for_model(model))
        check_overwriting(request, model.files)
        sites = find_sites(model, request.keep)
        check_target(model, request.apply)
        if given is not None:
            _check_given(request, given, model)
    with clock.measure("calibrate"):
        calibration = find_statistics(request, model, sites, progress, tell)
    with clock.measure("solve"):
        plan = given or _make_plan(solving, model, sites, calibration.stats, progress)
    stats = calibration.stats
    held_out, seen = ((), ()) if stats is None else (stats.held_out, stats.seen)
    with written_together(request.output) as staged:
        with clock.measure("write"), progress.step("write", None):
            emitted = apply_plan(model, plan, request.apply)
            saved = save_model(emitted, staged, external=model.has_external_data or None)
            del emitted
            kept = _write_plan(request, plan, staged)
            quantized_bytes = sum(file.stat().st_size for file in saved)
        with clock.measure("measure"):
            calls = (*held_out, *seen)
            scores = measure_file(staged, model.signature.output.name, calls, progress)
        ranges = _range_warnings(request, model, plan, stats)
        given_here = same_file(request.plan, plan_path(request.output))
        written_plan = plan_path(request.output if given_here else staged)
        report = _report(request, model, sites, plan, calibration, quantized_bytes, clock.seconds)
        report = replace(report, held_out=scores[: len(held_out)], seen=scores[len(held_out) :])
        report = replace(
            report,
            warnings=(
                *report.warnings,
                *ranges,
                *_poor_warning(report),
                *_unseen_warning(request, report, calibration),
                *kept,
            ),
            plan_sha256=plan_digest(written_plan),
            written=_written(request, staged, calibration),
        )
        write_atomically(report_path(staged), report.to_json().encode())
    return report


def _write_plan(request: QuantizeRequest, plan: QuantPlan, staged: Path) -> tuple[str, ...]:
    """Write the plan, and beside it the one in its place where that was edited; with a warning."""
    target = plan_path(request.output)
    if same_file(request.plan, target):
        return ()
    new = plan_path(staged)
    save_plan(plan, new)
    if not is_edited(target, report_path(request.output)):
        return ()
    old = target.read_bytes()
    if old == new.read_bytes():
        return ()
    spare = spare_name(target)
    staged.with_name(spare.name).write_bytes(old)
    return (
        f"{target} is not what the last export wrote there, and is kept as {spare}; apply it with "
        f"--plan {spare} and another -o",
    )


def _written(request: QuantizeRequest, staged: Path, calibration: Calibration) -> tuple[str, ...]:
    """All files that the export leaves, the model first and the report last."""
    beside = {path.name for path in staged.parent.iterdir()} - {staged.name}
    names = [staged.name, *sorted(beside), report_path(request.output).name]
    files = [str(request.output.with_name(name)) for name in names]
    return (*files, str(request.stats)) if calibration.saved else tuple(files)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _check_given(request: QuantizeRequest, given: QuantPlan, model: FloatModel) -> None:
    """Refuse early a given plan that the model does not fit."""
    if given.model_hash != model.digest:
        raise UserError(
            f"--plan: {request.plan} was made for another model; make it again for this one"
        )
    _refuse_empty(given)
    check_plan(model, given)


def _refuse_empty(plan: QuantPlan) -> None:
    if not any(plan.layers()):
        raise UserError("the plan quantizes no layer; see --keep, --min-sqnr and --temporal")


def _solve_options(request: QuantizeRequest) -> SolveOptions:
    if request.algorithm not in ALGORITHMS:
        raise UserError(
            f"--algorithm: {request.algorithm!r} is unknown; use one of {', '.join(ALGORITHMS)}"
        )
    return SolveOptions(
        bits=request.bits,
        algorithm=ALGORITHMS[request.algorithm],
        temporal_quantizer=request.temporal_quantizer,
        min_sqnr=request.min_sqnr,
        shift_padded=request.apply.target.shifts_padded,
    )


def _make_plan(
    options: SolveOptions,
    model: FloatModel,
    sites: GraphSites,
    stats: ActivationStats | None,
    progress: Progress,
) -> QuantPlan:
    if options.bits.is_float:
        kept = tuple(
            KeptLayer(layer.name, layer.op, f"--bits {options.bits}") for layer in sites.all_layers
        )
        large = () if stats is None else float32_tensors(stats)
        return QuantPlan(model.digest, options.bits, options.algorithm.name, (), (), kept, large)
    assert stats is not None
    with progress.step("solve", len(sites.dense) + len(sites.temporal)) as advance:
        plan = solve(sites, stats, model.weight, options, advance)
    _refuse_empty(plan)
    return plan


def _range_warnings(
    request: QuantizeRequest, model: FloatModel, plan: QuantPlan, stats: ActivationStats | None
) -> tuple[str, ...]:
    """What calibration could not tell: inputs it never varied, ranges it did not measure."""
    warnings = []
    idle = [model.layers[k.name] for k in plan.kept if k.reason == NEVER_EXERCISED]
    if idle and stats is not None:
        dependence = input_dependence(model.graph)
        inputs = frozenset().union(*(dependence[model.input_of(layer)] for layer in idle))
        named = sorted(inputs & constant_inputs(stats)) or sorted(inputs)
        warnings.append(
            f"{len(idle)} layers stay float, their input was constant in calibration: it depends "
            f"on {', '.join(named)}; give calls in which that varies"
        )
    if stats is None and request.plan is None and request.apply.dtype is FloatType.FP16:
        warnings.append(
            "ranges were not measured: an fp16 file may overflow; give --stats of a calibrated "
            "export, or use --dtype bf16"
        )
    return tuple(warnings)


def _poor_warning(report: QuantizationReport) -> tuple[str, ...]:
    """That little is left of a held-out call's prediction."""
    worst = min(report.held_out, key=lambda score: score.sqnr, default=None)
    if worst is None or worst.sqnr >= POOR_SQNR:
        return ()
    return (
        f"the prediction at timestep {worst.timestep:g} is only {worst.sqnr:.1f} dB from the float "
        "model's; check that the calls are those that the model was trained for (--calib, "
        "--sampler, --prediction, --schedule), or keep weak layers float (--min-sqnr, --keep)",
    )


def _unseen_warning(
    request: QuantizeRequest, report: QuantizationReport, calibration: Calibration
) -> tuple[str, ...]:
    """That calibration does not speak for other conditions, where the held-out calls show it."""
    lost = report.unseen_loss()
    solved = request.plan is None and not request.bits.is_float
    if not solved or lost is None or lost < UNSEEN_LOSS:
        return ()
    kept = request.stats is not None and not calibration.saved
    again = f"delete {request.stats} and " if kept else ""
    return (
        f"held-out calls are {lost:.0f} dB worse than calibrated ones at the same timesteps: "
        f"calibration saw too few conditions; {again}give more trajectories (--samples, --calib)",
    )


def _report(
    request: QuantizeRequest,
    model: FloatModel,
    sites: GraphSites,
    plan: QuantPlan,
    calibration: Calibration,
    quantized_bytes: int,
    seconds: dict[str, float],
) -> QuantizationReport:
    activations = [site.activation for site in plan.dense if site.activation is not None]
    share = None
    if calibration.stats is not None:
        share = int8_share(
            plan, sites.all_layers, sites.excluded, calibration.stats.output_elements
        )
    return QuantizationReport(
        model=str(request.model),
        output=str(request.output),
        plan=str(plan_path(request.output)),
        report=str(report_path(request.output)),
        bits=str(plan.bits),
        algorithm=plan.algorithm,
        target=request.apply.target.name,
        dtype=request.apply.dtype.value,
        calibration=calibration.description,
        warnings=calibration.warnings,
        dense_sites=len(plan.dense),
        shifted_sites=sum(activation.shift is not None for activation in activations),
        smoothed_sites=sum(activation.smooth is not None for activation in activations),
        quantized_layers=sum(1 for _ in plan.layers()),
        kept=plan.kept,
        temporal=tuple(
            TemporalScore(
                site.tensor,
                site.quantizer,
                len(site.layers),
                round(site.td_score_before, 4),
                round(site.td_score_after, 4),
            )
            for site in plan.temporal
        ),
        int8_share=share,
        held_out=(),
        seen=(),
        weakest=weakest_layers(plan),
        float_bytes=model.bytes,
        quantized_bytes=quantized_bytes,
        seconds=seconds,
        layers=layer_names(model),
    )
