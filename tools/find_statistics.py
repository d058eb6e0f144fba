"""Where the statistics of an export come from: a file, the shards of a run, or calibration."""

from __future__ import annotations

from dataclasses import dataclass

from qvd_trt.calibrators.calibrate import complete
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats
from qvd_trt.calibrators.statistics.calibration_part import in_order
from qvd_trt.calibrators.statistics.part_file import load_header, load_part, partial_path
from qvd_trt.calibrators.statistics.stats_file import (
    check_belongs,
    check_sound,
    load_stats,
    save_stats,
)
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.progress import Progress
from qvd_trt.tools.collect_statistics import Tell, collect, sites_digest, told_unused
from qvd_trt.tools.quantize_request import QuantizeRequest


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics and how they came about.

    Attributes:
        stats: None where nothing needs them.
        description: Where the calls come from, for the report.
        warnings: For the report.
        saved: Whether a statistics file was written.
    """

    stats: ActivationStats | None
    description: str
    warnings: tuple[str, ...] = ()
    saved: bool = False


def find_statistics(
    request: QuantizeRequest,
    model: FloatModel,
    sites: GraphSites,
    progress: Progress,
    tell: Tell,
) -> Calibration:
    """Read, merge or collect the statistics that a request needs.

    Raises:
        UserError: a file does not fit, or calibration fails.
    """
    if request.merge_stats:
        return _merge(request, model, sites)
    if request.stats is not None and request.stats.exists():
        stats = load_stats(request.stats)
        check_belongs(stats.model_hash, model, request.stats)
        check_sound(stats, sites, request.stats)
        if request.resume:
            # It was stopped between the file and the removal of the state.
            partial_path(request.stats).unlink(missing_ok=True)
        unused = _unused(request, f"{request.stats} exists; delete it to calibrate again")
        return Calibration(stats, f"statistics of {request.stats}", unused)
    if request.plan is None and request.bits.is_float:
        unused = _unused(request, f"{request.bits} quantizes nothing; leave it out")
        return Calibration(None, "none (nothing is quantized)", unused)
    if request.plan is not None and not request.calibration and request.stats is None:
        unused = _unused(request, "--plan is applied without calibration; leave it out")
        return Calibration(None, "none (plan given)", unused)
    found = collect(request, model, sites, progress, tell)
    stats = complete(model, sites, found.part, sweep=found.run.sweep)
    if request.stats is not None:
        save_stats(stats, request.stats)
        partial_path(request.stats).unlink(missing_ok=True)
    saved = request.stats is not None
    return Calibration(stats, found.run.description, found.warnings, saved)


def _merge(request: QuantizeRequest, model: FloatModel, sites: GraphSites) -> Calibration:
    """The statistics of a whole run, of its shards."""
    option = "--merge-stats"
    headers = [(path, load_header(path, option)) for path in request.merge_stats]
    for path, header in headers:
        check_belongs(header.model_hash, model, path, option)
    paths = in_order(headers)
    run = headers[0][1].run
    if run.settings["--keep"] != sites_digest(sites):
        raise UserError(
            f"{option}: the shards were calibrated with another --keep; merge them with the same, "
            "and --stats FILE for a file that serves other ones"
        )
    part = None
    # One after the other: a shard of a large model takes a gigabyte.
    for path in paths:
        shard = load_part(path, option)
        check_sound(shard.stats, sites, path, option)
        part = shard if part is None else part.merged(shard)
    assert part is not None
    stats = complete(model, sites, part, sweep=run.sweep)
    if request.stats is not None:
        save_stats(stats, request.stats)
    sweep = () if request.training_timesteps is None else ("--temporal-timesteps",)
    why = "the shards of --merge-stats were calibrated; leave it out"
    unused = told_unused((*request.sampling.given(), *sweep), why)
    diverged = part.largest.divergence()
    warnings = unused if diverged is None else (*unused, diverged)
    return Calibration(stats, run.description, warnings, saved=request.stats is not None)


def _unused(request: QuantizeRequest, why: str) -> tuple[str, ...]:
    """A warning that names the options of a calibration that is not made."""
    calib = ("--calib",) if request.calibration else ()
    sweep = () if request.training_timesteps is None else ("--temporal-timesteps",)
    read = request.stats is None or request.stats.exists()
    stats = () if read else ("--stats",)
    return told_unused((*calib, *request.sampling.given(), *sweep, *stats), why)
