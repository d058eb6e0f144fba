"""What one export is asked to do, and where its files lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.calibrators.statistics.part_file import partial_path
from qvd_trt.export.apply_plan import ApplyOptions
from qvd_trt.export.atomic_files import (
    beside,
    not_a_file,
    refuse_overwriting,
    require_writable,
    same_file,
)
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import data_path, open_model
from qvd_trt.export.ort_session import CPU
from qvd_trt.export.plan.quant_plan import W8A8, Bits


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
        shard: Calibrate this part of the trajectories alone; for :func:`calibrate_shard`.
        merge_stats: Statistics of all shards of one run, which are merged; written to ``stats``.
        resume: Go on with an interrupted calibration, whose state lies beside ``stats``.
        plan: A plan to apply instead of solving one.
        timestep_input: Name of the timestep input, or None to find it.
        latent_input: Name of the latent input, or None to find it.
        prediction_output: Name of the output that is the prediction, or None to find it.
        keep: Patterns of layers to keep float.
        min_sqnr: Layers below this SQNR (dB) stay float.
        providers: ONNX Runtime execution providers for calibration.
        also_read: Files that the request was made from, such as a recipe; never overwritten.
    """

    model: Path
    output: Path
    apply: ApplyOptions = field(default_factory=ApplyOptions)
    bits: Bits = W8A8
    algorithm: str = "qvd"
    temporal_quantizer: str | None = None
    calibration: Sequence[Path] = ()
    sampling: SelfSamplingOptions = field(default_factory=SelfSamplingOptions)
    training_timesteps: bool | None = None
    stats: Path | None = None
    shard: Shard | None = None
    merge_stats: Sequence[Path] = ()
    resume: bool = False
    plan: Path | None = None
    timestep_input: str | None = None
    latent_input: str | None = None
    prediction_output: str | None = None
    keep: Sequence[str] = ()
    min_sqnr: float | None = None
    providers: Sequence[str] = CPU
    also_read: Sequence[Path] = ()

    def __post_init__(self) -> None:
        """Take strings for paths, too.

        Raises:
            UserError: a single path or pattern stands where a sequence of them belongs.
        """
        for name in ("calibration", "merge_stats", "keep"):
            if isinstance(getattr(self, name), (str, Path)):
                raise UserError(f"{name} is a sequence; give [{getattr(self, name)!r}]")
        for name in ("model", "output", "stats", "plan"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, Path(given))
        for name in ("calibration", "merge_stats"):
            object.__setattr__(self, name, tuple(map(Path, getattr(self, name))))


def open_requested(request: QuantizeRequest) -> FloatModel:
    """Open the float model as the request says; raises as :func:`open_model`."""
    return open_model(
        request.model, request.timestep_input, request.latent_input, request.prediction_output
    )


def plan_path(output: Path) -> Path:
    """Where the plan of an output lies: ``model.w8a8.onnx`` -> ``model.w8a8.plan.json``."""
    return beside(output, ".plan.json")


def report_path(output: Path) -> Path:
    """Where the report of an output lies: ``model.w8a8.onnx`` -> ``model.w8a8.report.json``."""
    return beside(output, ".report.json")


def defaults_warning(request: QuantizeRequest) -> str | None:
    """What a request that samples the model leaves to defaults, or does by a misspelled --stats.

    None where it leaves nothing. The request gives no calls, and its statistics do not exist.
    """
    defaults = request.sampling.defaults_used()
    # Files of other shards are named nearly alike, and are not meant.
    sought = None if request.shard is not None else request.stats
    meant = None if sought is None else _near_miss(sought)
    if defaults is None and meant is None:
        return None
    told = "no --calib is given"
    if sought is not None:
        told += f" and --stats {sought} does not exist"
    if meant is not None:
        told += f" (did you mean {meant}?)"
    told += ": the model is sampled"
    if defaults is None:
        return told
    return (
        f"{told} with default settings, which may not be those it was trained for: {defaults}; "
        "give --calib with recorded calls, or --sampler, --prediction and --schedule"
    )


def _near_miss(path: Path) -> Path | None:
    """A file beside one that does not exist whose name is nearly the same."""
    if not path.absolute().parent.is_dir():
        return None
    files = path.absolute().parent.glob(f"*{path.suffix}")
    names = [file.name for file in files if file.is_file()]
    close = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return path.with_name(close[0]) if close else None


def check_paths(request: QuantizeRequest) -> None:
    """Refuse outputs that cannot be written, or that would overwrite what is read.

    Raises:
        UserError: naming the file.
    """
    output = request.output
    _check_parts(request)
    if output.suffix != ".onnx":
        raise UserError(f"the output {output} must end in .onnx")
    check_overwriting(request, [request.model])
    if output.is_dir():
        raise UserError(f"the output {output} is a folder; give a file name")
    if request.stats is not None and request.stats.suffix != ".npz":
        raise UserError(f"--stats: {request.stats} must end in .npz")
    for option, file in _outputs(request):
        if file is None:
            continue
        if file.exists() and not file.is_file():
            raise UserError(f"{option} {file} {not_a_file(file)}; remove it, or give another path")
        require_writable(file)


def check_overwriting(request: QuantizeRequest, model_files: Iterable[Path]) -> None:
    """Refuse outputs that would replace an input or each other.

    A given plan may lie where the output's plan does: it then stays as it is.

    Raises:
        UserError: naming both.
    """
    shards = request.merge_stats
    read = [*model_files, *request.calibration, *shards, request.plan, *request.also_read]
    refuse_overwriting(_outputs(request), read)


def _outputs(request: QuantizeRequest) -> tuple[tuple[str, Path | None], ...]:
    """Every file that an export may write, with the option that it follows from."""
    output, plan = request.output, plan_path(request.output)
    stats = request.stats
    collected = (
        ("--stats", stats),
        ("the state of --stats", None if stats is None else partial_path(stats)),
    )
    if request.shard is not None:
        return collected
    return (
        ("--output", output),
        ("the weights of --output", data_path(output)),
        ("the plan of --output", None if same_file(request.plan, plan) else plan),
        ("the report of --output", report_path(output)),
        *collected,
    )


def _check_parts(request: QuantizeRequest) -> None:
    """Refuse what does not go together with a part of a calibration."""
    if request.shard is not None and request.stats is None:
        raise UserError("--shard needs --stats FILE.npz, which the shard is written to")
    if request.resume and request.stats is None:
        raise UserError("--resume needs --stats FILE.npz, beside which the state was kept")
    for option, given in (("--plan", request.plan), ("--merge-stats", request.merge_stats)):
        if request.shard is not None and given:
            raise UserError(f"--shard and {option} exclude each other: a shard only calibrates")
    if not request.merge_stats:
        return
    if request.calibration:
        raise UserError("--calib and --merge-stats exclude each other: the shards were calibrated")
    if request.resume:
        raise UserError("--resume and --merge-stats exclude each other; finish each shard first")
    if request.stats is not None and request.stats.exists():
        raise UserError(
            f"--stats: {request.stats} exists, and --merge-stats writes there; leave --merge-stats "
            "out to use it, or delete it"
        )
