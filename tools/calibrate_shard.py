"""One shard of a calibration: its trajectories alone, into a file that is merged with others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qvd_trt.calibrators.statistics.part_file import (
    load_header,
    load_part,
    partial_path,
    save_part,
)
from qvd_trt.calibrators.statistics.stats_file import check_belongs, check_sound
from qvd_trt.export.atomic_files import json_text
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.tools.collect_statistics import Tell, collect, requested_run
from qvd_trt.tools.quantize_request import (
    QuantizeRequest,
    check_overwriting,
    check_paths,
    open_requested,
)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a shard holds.

    Attributes:
        model: Path of the float model.
        shard: Which one, as in ``2/8``.
        calibration: Where the calls of the whole run come from.
        stats: Path of the shard's statistics.
        samples: Calls of the shard that are in the statistics.
        held_out: Calls of the shard that are kept out for the report, at most 17.
        warnings: For the user.
        written: The files that were written; empty when the shard was there.
    """

    model: str
    shard: str
    calibration: str
    stats: str
    samples: int
    held_out: int
    warnings: tuple[str, ...]
    written: tuple[str, ...]

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json_text(asdict(self))


def calibrate_shard(
    request: QuantizeRequest,
    progress: Progress = SILENT,
    tell: Tell = lambda warning: None,
) -> ShardReport:
    """Run the trajectories of ``request.shard`` and write ``request.stats``; no plan, no model.

    A shard that is there is left as it is, so that a job may be queued again.

    Args:
        request: What to do; what follows calibration is not looked at.
        progress: Shows the calibration.
        tell: Takes at once what is worth stopping for; the report has it, too.

    Raises:
        UserError: anything wrong with the inputs, or a file that is another shard.
    """
    check_paths(request)
    shard, stats = request.shard, request.stats
    assert shard is not None
    assert stats is not None
    with progress.step("load", None):
        model = open_requested(request)
        check_overwriting(request, model.files)
        sites = find_sites(model, request.keep)
    there = stats.exists()
    if there:
        header = load_header(stats, "--stats")
        check_belongs(header.model_hash, model, stats)
        if header.shard != shard:
            raise UserError(
                f"--stats: {stats} is shard {header.shard}, not {shard}; give each its own file"
            )
        if (other := requested_run(request, model, sites).difference(header.run)) is not None:
            raise UserError(
                f"--stats: {stats} is of another run: it has {other}; delete it, or give another "
                "path"
            )
        part, run = load_part(stats, "--stats"), header.run
        check_sound(part.stats, sites, stats)
        warnings: tuple[str, ...] = (f"{stats} exists and is kept; delete it to calibrate again",)
    else:
        found = collect(request, model, sites, progress, tell)
        part, run, warnings = found.part, found.run, found.warnings
        save_part(run, shard, part, stats)
        if part.first is None:
            warnings = (*warnings, f"no trajectory of {run.description} belongs to shard {shard}")
    partial_path(stats).unlink(missing_ok=True)
    return ShardReport(
        model=str(request.model),
        shard=str(shard),
        calibration=run.description,
        stats=str(stats),
        samples=part.stats.samples,
        held_out=len(part.held_out.calls),
        warnings=warnings,
        written=() if there else (str(stats),),
    )
