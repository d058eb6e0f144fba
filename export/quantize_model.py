"""The main job: float ONNX in, calibrated QDQ ONNX out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.bits import W8A8, Bits
from qvd_trt.calibrators.collect.calibrate import CalibrationTarget, calibrate, check_belongs
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.ort_session import CPU
from qvd_trt.calibrators.plan import QuantPlan
from qvd_trt.calibrators.plan_file import load_plan, save_plan
from qvd_trt.calibrators.progress import Progress
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import ActivationStats
from qvd_trt.calibrators.stats_file import load_stats, save_stats
from qvd_trt.export.graph.interface import read_signature
from qvd_trt.export.graph.sites import GraphSites, find_sites
from qvd_trt.export.held_out import measure_held_out
from qvd_trt.export.model_file import (
    load_model,
    model_hash,
    refuse_half_precision,
    refuse_quantized,
    save_model,
    uses_external_data,
    weight_bytes,
)
from qvd_trt.export.passes.layer_edits import constant_array
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.pipeline import ApplyOptions, apply_plan
from qvd_trt.export.report import (
    HeldOutScore,
    QuantizationReport,
    TemporalScore,
    int8_share,
    weakest_layers,
)
from qvd_trt.export.targets import TARGETS, FloatType

REFERENCE = ApplyOptions(TARGETS["ort"], FloatType.FP32)
"""Held-out calls are measured in float32 around the Q/DQ nodes: ONNX Runtime's CPU kernels have no
fp16 arithmetic, so a lower type would be measured with roundings that no engine makes."""


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """Everything the user asked for.

    Attributes:
        model: The float model.
        output: The QDQ model to write.
        apply: Target, type and form of the output.
        bits: Widths; ignored with a plan.
        algorithm: Name in ``ALGORITHMS``; ignored with a plan.
        temporal_quantizer: Name in ``CODEBOOKS``, ``float``, or None for the algorithm's own.
        calibration: Files with calibration calls; empty to sample them from the model.
        sampling: How to sample when there are no files.
        training_timesteps: Whether strictly temporal sites are calibrated on all training
            timesteps; None for only when the sampler is not known, that is, with files.
        stats: Cache file of statistics: read when it exists, else written.
        plan: A plan to apply instead of solving one.
        timestep_input: Name of the timestep input, or None to find it.
        latent_input: Name of the latent input, or None to find it.
        keep: Patterns of layers to keep float.
        min_sqnr: Layers below this SQNR (dB) stay float.
        providers: ONNX Runtime execution providers for calibration.
    """

    model: Path
    output: Path
    apply: ApplyOptions
    bits: Bits = W8A8
    algorithm: str = "qvd"
    temporal_quantizer: str | None = None
    calibration: Sequence[Path] = ()
    sampling: SelfSamplingOptions = field(default_factory=SelfSamplingOptions)
    training_timesteps: bool | None = None
    stats: Path | None = None
    plan: Path | None = None
    timestep_input: str | None = None
    latent_input: str | None = None
    keep: Sequence[str] = ()
    min_sqnr: float | None = None
    providers: Sequence[str] = CPU


def plan_path(output: Path) -> Path:
    """Where the plan of an output lies: ``model.w8a8.onnx`` -> ``model.w8a8.plan.json``."""
    return output.with_suffix(".plan.json")


def quantize_model(request: QuantizeRequest, progress: Progress) -> QuantizationReport:
    """Calibrate, solve, rewrite, write and measure.

    Writes the QDQ model and, beside it, its plan. The input is only ever read.

    Raises:
        UserError: anything wrong with the inputs; nothing is written then.
    """
    _check_paths(request)
    clock = _Clock()
    with clock.measure("load"):
        source_model, model = _load(request.model)
        signature = read_signature(model.graph, request.timestep_input, request.latent_input)
        sites = find_sites(model.graph, signature, request.keep)
        digest = model_hash(request.model)
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
        plan = _plan(request, model, sites, calibration.stats, digest, progress)
    with clock.measure("measure"):
        scores = _measure(model, plan, calibration.stats, progress)
    with clock.measure("write"):
        emitted = apply_plan(model, plan, request.apply)
        save_model(emitted, request.output, external=uses_external_data(source_model) or None)
        save_plan(plan, plan_path(request.output))
    return _report(request, model, emitted, sites, plan, calibration, scores, clock.seconds)


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


def _check_paths(request: QuantizeRequest) -> None:
    output = request.output
    if output.suffix != ".onnx":
        raise UserError(f"the output {output} must end in .onnx")
    if output.is_dir():
        raise UserError(f"the output {output} is a folder; give a file name")
    read = [request.model, *request.calibration]
    if request.plan is not None:
        read.append(request.plan)
    for path in read:
        for written in (output, plan_path(output)):
            if written.exists() and path.exists() and written.samefile(path):
                raise UserError(f"{written} would overwrite the input {path}; give another output")


def _load(path: Path) -> tuple[ir.Model, ir.Model]:
    source = load_model(path)
    refuse_quantized(source, path)
    refuse_half_precision(source, path)
    model = source.clone()
    Prepare()(model)
    return source, model


def _statistics(
    request: QuantizeRequest, target: CalibrationTarget, progress: Progress
) -> _Calibration:
    if request.stats is not None and request.stats.exists():
        stats = load_stats(request.stats)
        check_belongs(stats, target, request.stats)
        return _Calibration(stats, f"statistics from {request.stats}")
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
        ALGORITHMS[request.algorithm].requests(),
        progress,
        sweep_training_timesteps=bool(request.calibration) if sweep is None else sweep,
        providers=request.providers,
    )
    if request.stats is not None:
        save_stats(stats, request.stats)
    return _Calibration(stats, source.describe(), warnings)


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


def _plan(
    request: QuantizeRequest,
    model: ir.Model,
    sites: GraphSites,
    stats: ActivationStats | None,
    digest: str,
    progress: Progress,
) -> QuantPlan:
    if request.plan is not None:
        plan = load_plan(request.plan)
        if plan.model_hash != digest:
            raise UserError(f"--plan: {request.plan} was made for another model")
        return plan
    assert stats is not None
    algorithm = ALGORITHMS[request.algorithm]
    options = SolveOptions(
        bits=request.bits,
        algorithm=algorithm,
        temporal_quantizer=request.temporal_quantizer or algorithm.temporal_quantizer,
        min_sqnr=request.min_sqnr,
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
        save_model(apply_plan(model, plan, REFERENCE), reference)
        return measure_held_out(reference, stats.held_out, progress)


def _report(
    request: QuantizeRequest,
    model: ir.Model,
    emitted: ir.Model,
    sites: GraphSites,
    plan: QuantPlan,
    calibration: _Calibration,
    scores: tuple[HeldOutScore, ...],
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
        float_bytes=weight_bytes(model),
        quantized_bytes=weight_bytes(emitted),
        seconds=seconds,
    )
