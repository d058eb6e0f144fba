"""Calibration as a whole: drive a source, stream statistics, keep some calls out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qvd_trt.calibrators.run_calls import Collection, Share
from qvd_trt.calibrators.sources.calls import CalibrationSource
from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats
from qvd_trt.calibrators.statistics.calibration_part import CalibrationPart
from qvd_trt.calibrators.statistics.collector import StatisticsCollector
from qvd_trt.calibrators.temporal.timestep_sweep import TemporalSweep, training_timesteps
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.ort_session import CPU
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        rows: Whether the algorithm needs sample rows of the layers' inputs.
        sweep_training_timesteps: Evaluate strictly temporal sites on all training timesteps
            instead of those of the calls (right when the sampler is not known).
        providers: ONNX Runtime execution providers, first choice first.
    """

    rows: bool = True
    sweep_training_timesteps: bool = False
    providers: Sequence[str] = CPU


def calibrate(
    model: FloatModel,
    sites: GraphSites,
    source: CalibrationSource,
    options: CalibrationOptions,
    progress: Progress = SILENT,
) -> ActivationStats:
    """Run every call of the source through the float model once.

    Args:
        model: The float model.
        sites: What of it is quantized.
        source: Where the calls come from.
        options: What is kept of them.
        progress: Shown one unit per call.

    Raises:
        UserError: an input does not fit, an activation or a prediction is NaN or Inf, or there is
            no call.
    """
    part = calibrate_share(model, sites, source, options, Share(), progress)
    return complete(model, sites, part, sweep=options.sweep_training_timesteps)


def calibrate_share(
    model: FloatModel,
    sites: GraphSites,
    source: CalibrationSource,
    options: CalibrationOptions,
    share: Share,
    progress: Progress = SILENT,
) -> CalibrationPart:
    """Run a share of the source's calls; merged shards are, bit for bit, one run over them all.

    Args:
        model: The float model.
        sites: What of it is quantized.
        source: Where the calls of the whole run come from.
        options: What is kept of them.
        share: Which trajectories, what was done of them before, and how to save the state.
        progress: Shown one unit per call.

    Raises:
        UserError: an input does not fit, or an activation or a prediction is NaN or Inf.
    """
    # Rows are drawn from each call as in the whole run: a shard's own share would be another one.
    collector = StatisticsCollector(
        model,
        sites,
        rows=options.rows,
        expected_calls=source.calls(),
        providers=options.providers,
    )
    with progress.step("calibrate", source.calls(share.wants)) as advance:
        collection = Collection(collector, source, share, advance)
        source.drive(collection.denoise, share.wants)
    return collection.finish()


def complete(
    model: FloatModel, sites: GraphSites, part: CalibrationPart, *, sweep: bool
) -> ActivationStats:
    """The statistics of a run, all of whose calls are in the part.

    Args:
        model: The float model.
        sites: What of it is quantized.
        part: What the calls gave.
        sweep: Evaluate strictly temporal sites on all training timesteps.

    Raises:
        UserError: there was no call.
    """
    if not part.stats.samples:
        raise UserError(
            "no calibration call was made, but for those with empty inputs; give --calib at "
            "least one whole sample"
        )
    stats = replace(part.stats, held_out=part.held_out.chosen(), seen=part.seen.chosen()[::2])
    strict = [site for site in sites.temporal if site.tensor in sites.strict_temporal]
    if sweep and strict:
        assert part.first is not None
        evaluated = TemporalSweep(model, strict)
        timesteps = training_timesteps(stats.timesteps, evaluated.table_rows)
        features = evaluated.run(part.first.inputs, timesteps)
        stats = replace(stats, temporal={**stats.temporal, **features})
    return stats


def check_shard(source: CalibrationSource, shard: Shard) -> None:
    """Refuse more shards than there are trajectories.

    Raises:
        UserError: this shard would have none.
    """
    trajectories = source.trajectories()
    if trajectories is not None and shard.count > trajectories:
        raise UserError(
            f"--shard: {shard} has no trajectory, as the run has {trajectories} in all; use at "
            f"most {trajectories} shards"
        )
