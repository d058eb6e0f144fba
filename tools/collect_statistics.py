"""Collecting statistics so that it can be gone on with: the calls, the run, the kept state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate_share, check_shard
from qvd_trt.calibrators.run_calls import Share
from qvd_trt.calibrators.sources.calls import CalibrationSource
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.calibrators.sources.self_sampling import SelfSampling
from qvd_trt.calibrators.sources.shard import WHOLE
from qvd_trt.calibrators.statistics.calibration_part import CalibrationPart, CalibrationRun
from qvd_trt.calibrators.statistics.part_file import (
    load_header,
    load_part,
    partial_path,
    save_part,
)
from qvd_trt.calibrators.statistics.stats_file import check_sound
from qvd_trt.export.atomic_files import remove_leftovers
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.progress import Progress
from qvd_trt.tools.quantize_request import QuantizeRequest, defaults_warning

Tell = Callable[[str], None]
"""Takes a warning while the work goes on."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What the calls of a request gave.

    Attributes:
        run: The run, of which the request may name one shard.
        part: The collected statistics.
        warnings: For the report.
    """

    run: CalibrationRun
    part: CalibrationPart
    warnings: tuple[str, ...]


def collect(
    request: QuantizeRequest,
    model: FloatModel,
    sites: GraphSites,
    progress: Progress,
    tell: Tell,
) -> Collected:
    """Make the calls of the request's shard, keeping the state beside ``--stats``.

    Raises:
        UserError: calls or a kept state do not fit, the disk is full, or calibration fails.
    """
    source, warnings = _open_calls(request, model.signature, tell)
    options = _calibration_options(request)
    run = describe_run(model, sites, source, options)
    shard = request.shard or WHOLE
    check_shard(source, shard)
    share = Share(shard)
    if request.stats is not None:
        partial = partial_path(request.stats)
        for path in (request.stats, partial):
            remove_leftovers(path)
        if partial.exists() and not request.resume:
            unused = (
                f"{partial} of an interrupted calibration is not used and will be replaced; give "
                "--resume to go on with it"
            )
            tell(unused)
            warnings = (*warnings, unused)
        done = _kept_state(request, model, sites, run) if request.resume else None
        share = Share(shard, done, lambda part: save_part(run, shard, part, partial))
    part = calibrate_share(model, sites, source, options, share, progress)
    if (diverged := part.largest.divergence()) is not None:
        warnings = (*warnings, diverged)
    return Collected(run, part, warnings)


def requested_run(request: QuantizeRequest, model: FloatModel, sites: GraphSites) -> CalibrationRun:
    """The run that a request asks for, none of whose calls is made.

    Raises:
        UserError: calls do not fit.
    """
    source, _ = _open_calls(request, model.signature, lambda warning: None)
    return describe_run(model, sites, source, _calibration_options(request))


def describe_run(
    model: FloatModel, sites: GraphSites, source: CalibrationSource, options: CalibrationOptions
) -> CalibrationRun:
    """What must be the same in all parts of a run beside the model."""
    signature = model.signature
    sweep = options.sweep_training_timesteps
    settings = {
        **source.settings(),
        "--temporal-timesteps": "training" if sweep else "calibration",
        "--keep": sites_digest(sites),
        "--provider": options.providers[0],
        "--timestep-input": signature.timestep,
        "--latent-input": signature.latent,
        "--prediction-output": signature.output.name,
    }
    return CalibrationRun(source.describe(), settings, sweep)


def sites_digest(sites: GraphSites) -> str:
    """A digest of what is quantized, which ``--keep`` decides."""
    found = [
        (site.key, site.kind.value, site.channels, site.channel_axis, window.key)
        for site in (*sites.dense, *sites.temporal)
        for window in site.windows
    ]
    return f"sha256:{hashlib.sha256(repr(found).encode()).hexdigest()}"


def told_unused(options: Sequence[str], why: str) -> tuple[str, ...]:
    """A warning that names options which nothing reads; none where there are none."""
    if not options:
        return ()
    *first, last = options
    if not first:
        return (f"{last} is not used: {why}",)
    return (f"{', '.join(first)} and {last} are not used: {why.replace('leave it', 'leave them')}",)


def _kept_state(
    request: QuantizeRequest, model: FloatModel, sites: GraphSites, run: CalibrationRun
) -> CalibrationPart | None:
    """What an interrupted calibration of this very request left, or None."""
    assert request.stats is not None
    partial, shard = partial_path(request.stats), request.shard or WHOLE
    if not partial.exists():
        return None
    header = load_header(partial, "--resume")
    difference = run.difference(header.run)
    if header.model_hash != model.digest:
        difference = "another model"
    elif header.shard != shard:
        difference = f"another --shard ({header.shard}, not {shard})"
    elif difference is None and header.finished:
        difference = "no place to go on from"
    if difference is not None:
        raise UserError(
            f"--resume: {partial} is of another calibration: it has {difference}; give the same "
            "options, or leave --resume out to calibrate anew"
        )
    part = load_part(partial, "--resume")
    check_sound(part.stats, sites, partial, "--resume")
    return part


def _calibration_options(request: QuantizeRequest) -> CalibrationOptions:
    sweep = request.training_timesteps
    return CalibrationOptions(
        # Statistics that are kept serve every algorithm.
        rows=request.stats is not None or ALGORITHMS[request.algorithm].needs_rows,
        sweep_training_timesteps=bool(request.calibration) if sweep is None else sweep,
        providers=request.providers,
    )


def _open_calls(
    request: QuantizeRequest, signature: ModelSignature, tell: Tell
) -> tuple[CalibrationSource, tuple[str, ...]]:
    """The source of the calls, and what to warn of."""
    if request.calibration:
        unused = told_unused(request.sampling.given(), "--calib gives the calls; leave it out")
        return open_source(request.calibration, signature), unused
    source = SelfSampling(request.sampling, signature)
    warnings: tuple[str, ...] = ()
    if drawn := source.drawn_inputs():
        warnings = (
            f"inputs drawn at random: {', '.join(drawn)}; give real ones with --inputs FILE.npz, "
            "or recorded calls with --calib",
        )
    if (defaults := defaults_warning(request)) is not None:
        tell(defaults)
        warnings = (defaults, *warnings)
    return source, warnings
