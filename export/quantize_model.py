"""The main job: float ONNX in, calibrated QDQ ONNX out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.atomic_write import write_atomically
from qvd_trt.calibrators.collect.cached_stats import check_belongs, check_sound
from qvd_trt.calibrators.collect.calibrate import CalibrationTarget, calibrate
from qvd_trt.calibrators.collect.request import StatisticsRequest
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.plan import QuantPlan
from qvd_trt.calibrators.plan_file import load_plan, save_plan
from qvd_trt.calibrators.progress import Progress
from qvd_trt.calibrators.sites import KeptLayer
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import ActivationStats
from qvd_trt.calibrators.stats_file import load_stats, save_stats
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.graph.interface import read_signature
from qvd_trt.export.graph.layers import find_layers
from qvd_trt.export.graph.sites import GraphSites, find_sites
from qvd_trt.export.held_out import measure_held_out
from qvd_trt.export.model_file import (
    load_model,
    model_bytes,
    model_files,
    model_hash,
    refuse_other_precision,
    refuse_quantized,
    save_model,
    uses_external_data,
    written_together,
)
from qvd_trt.export.passes.layer_edits import constant_array
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.refusals import (
    check_paths,
    check_plan_vectors,
    refuse_empty_plan,
    refuse_overwriting,
    same_file,
)
from qvd_trt.export.report import (
    HeldOutScore,
    QuantizationReport,
    TemporalScore,
    int8_share,
    weakest_layers,
)
from qvd_trt.export.request import QuantizeRequest, plan_path, report_path
from qvd_trt.export.targets import TARGETS, FloatType

REFERENCE = ApplyOptions(TARGETS["ort"], FloatType.FP32)
"""Held-out calls are measured in float32 around the Q/DQ nodes: ONNX Runtime's CPU kernels have no
fp16 arithmetic, so a lower type would be measured with roundings that no engine makes."""


def quantize_model(request: QuantizeRequest, progress: Progress) -> QuantizationReport:
    """Calibrate, solve, rewrite, measure and write.

    Writes the QDQ model and, beside it, its plan and its report. The input is only ever read.

    Raises:
        UserError: anything wrong with the inputs; nothing is written then.
    """
    check_paths(request)
    given = None if request.plan is None else load_plan(request.plan)
    clock = _Clock()
    with clock.measure("load"), progress.step("load", None):
        source_model, model = _load(request)
        signature = read_signature(model.graph, request.timestep_input, request.latent_input)
        sites = find_sites(model.graph, signature, request.keep)
        digest = model_hash(request.model)
        _try_out(request, model, given, digest)
    target = CalibrationTarget(
        model=request.model,
        model_hash=digest,
        signature=signature,
        dense=sites.dense,
        temporal=sites.temporal,
        strict_temporal=sites.strict_temporal,
        all_layers=sites.all_layers,
    )
    with clock.measure("calibrate"):
        calibration = _statistics(request, target, progress)
    with clock.measure("solve"):
        plan = given or _make_plan(request, digest, model, sites, calibration.stats, progress)
    with clock.measure("measure"):
        scores = _measure(model, plan, calibration.stats, progress)
    with written_together(request.output) as staged:
        with clock.measure("write"), progress.step("write", None):
            emitted = apply_plan(model, plan, request.apply)
            save_model(emitted, staged, external=uses_external_data(source_model) or None)
            if not same_file(request.plan, plan_path(request.output)):
                save_plan(plan, plan_path(staged))
            sizes = model_bytes(request.model), model_bytes(staged)
        report = _report(request, sites, plan, calibration, scores, sizes, clock.seconds)
        write_atomically(report_path(staged), report.to_json().encode())
    return report


@dataclass(frozen=True, slots=True)
class _Calibration:
    stats: ActivationStats | None
    description: str
    warnings: tuple[str, ...] = ()


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _load(request: QuantizeRequest) -> tuple[ir.Model, ir.Model]:
    path = request.model
    source = load_model(path)
    refuse_overwriting(request.output, model_files(path))
    refuse_quantized(source, path)
    model = source.clone()
    Prepare()(model)
    refuse_other_precision(model, path)
    return source, model


def _try_out(
    request: QuantizeRequest, model: ir.Model, given: QuantPlan | None, digest: str
) -> None:
    """Refuse early a plan, a target or a type that the model does not fit."""
    if given is not None:
        if given.model_hash != digest:
            raise UserError(
                f"--plan: {request.plan} was made for another model; make it again for this one"
            )
        refuse_empty_plan(given)
        check_plan_vectors(given, {layer.name: layer for layer in find_layers(model.graph)[0]})
    empty = QuantPlan(digest, request.bits, request.algorithm, dense=(), temporal=(), kept=())
    apply_plan(model, given or empty, request.apply)


def _statistics(
    request: QuantizeRequest, target: CalibrationTarget, progress: Progress
) -> _Calibration:
    if request.plan is None and request.bits.is_float:
        return _Calibration(None, "none (nothing is quantized)")
    if request.stats is not None and request.stats.exists():
        stats = load_stats(request.stats)
        check_belongs(stats, target, request.stats)
        check_sound(stats, target, request.stats)
        return _Calibration(stats, f"statistics of {request.stats}", _unused(request))
    if request.plan is not None and not request.calibration and request.stats is None:
        return _Calibration(None, "none (plan given)")
    warnings: tuple[str, ...] = ()
    if request.calibration:
        source = open_source(request.calibration, target.signature)
    else:
        source, warnings = _self_sampling(request.sampling, target.signature)
    sweep = request.training_timesteps
    stats = calibrate(
        target,
        source,
        _needs(request),
        progress,
        sweep_training_timesteps=bool(request.calibration) if sweep is None else sweep,
        providers=request.providers,
    )
    if request.stats is not None:
        save_stats(stats, request.stats)
    return _Calibration(stats, source.describe(), warnings)


def _needs(request: QuantizeRequest) -> StatisticsRequest:
    """What the algorithm needs; what every algorithm needs when the statistics are kept."""
    if request.stats is None:
        return StatisticsRequest(rows=ALGORITHMS[request.algorithm].needs_rows)
    return StatisticsRequest(rows=any(algorithm.needs_rows for algorithm in ALGORITHMS.values()))


def _unused(request: QuantizeRequest) -> tuple[str, ...]:
    if not request.calibration:
        return ()
    return (f"--calib is not read: {request.stats} exists; delete it to calibrate again",)


def _self_sampling(
    options: SelfSamplingOptions, signature: ModelSignature
) -> tuple[SelfSampling, tuple[str, ...]]:
    source = SelfSampling(options, signature)
    drawn = source.drawn_inputs()
    if not drawn:
        return source, ()
    names = ", ".join(drawn)
    return source, (
        f"inputs drawn at random: {names}; give real ones with --inputs FILE.npz, "
        "or recorded calls with --calib",
    )


def _make_plan(
    request: QuantizeRequest,
    digest: str,
    model: ir.Model,
    sites: GraphSites,
    stats: ActivationStats | None,
    progress: Progress,
) -> QuantPlan:
    if request.bits.is_float:
        kept = tuple(
            KeptLayer(layer.name, layer.op, f"--bits {request.bits}") for layer in sites.all_layers
        )
        return QuantPlan(digest, request.bits, request.algorithm, (), (), kept)
    plan = _solve(request, model, sites, stats, progress)
    refuse_empty_plan(plan)
    return plan


def _solve(
    request: QuantizeRequest,
    model: ir.Model,
    sites: GraphSites,
    stats: ActivationStats | None,
    progress: Progress,
) -> QuantPlan:
    assert stats is not None
    algorithm = ALGORITHMS[request.algorithm]
    options = SolveOptions(
        bits=request.bits,
        algorithm=algorithm,
        temporal_quantizer=request.temporal_quantizer or algorithm.temporal_quantizer,
        min_sqnr=request.min_sqnr,
        shift_padded=request.apply.target.shifts_padded,
    )
    with progress.step("solve", len(sites.dense) + len(sites.temporal)) as advance:
        return solve(
            sites.dense,
            sites.temporal,
            sites.kept,
            stats,
            lambda name: constant_array(model.graph.initializers[name]),
            options,
            advance,
        )


def _measure(
    model: ir.Model,
    plan: QuantPlan,
    stats: ActivationStats | None,
    progress: Progress,
) -> tuple[HeldOutScore, ...]:
    if stats is None or not stats.held_out:
        return ()
    with tempfile.TemporaryDirectory(prefix="qvd-") as folder:
        reference = Path(folder) / "reference.onnx"
        with progress.step("prepare measuring", None):
            save_model(apply_plan(model, plan, REFERENCE), reference)
        return measure_held_out(reference, stats.held_out, progress)


def _report(
    request: QuantizeRequest,
    sites: GraphSites,
    plan: QuantPlan,
    calibration: _Calibration,
    scores: tuple[HeldOutScore, ...],
    sizes: tuple[int, int],
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
        dtype=request.apply.float_type.value,
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
        held_out=scores,
        weakest=weakest_layers(plan),
        float_bytes=sizes[0],
        quantized_bytes=sizes[1],
        seconds=seconds,
    )
