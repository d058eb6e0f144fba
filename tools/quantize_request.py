"""What one export is asked to do, and where its files lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
from qvd_trt.export.apply_plan import ApplyOptions
from qvd_trt.export.atomic_files import require_writable, same_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.model_file import data_path
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
        plan: A plan to apply instead of solving one.
        timestep_input: Name of the timestep input, or None to find it.
        latent_input: Name of the latent input, or None to find it.
        keep: Patterns of layers to keep float.
        min_sqnr: Layers below this SQNR (dB) stay float.
        providers: ONNX Runtime execution providers for calibration.
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
    plan: Path | None = None
    timestep_input: str | None = None
    latent_input: str | None = None
    keep: Sequence[str] = ()
    min_sqnr: float | None = None
    providers: Sequence[str] = CPU

    def __post_init__(self) -> None:
        """Take strings for paths, too.

        Raises:
            UserError: a single path or pattern stands where a sequence of them belongs.
        """
        for name in ("calibration", "keep"):
            if isinstance(getattr(self, name), (str, Path)):
                raise UserError(f"{name} is a sequence; give [{getattr(self, name)!r}]")
        for name in ("model", "output", "stats", "plan"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, Path(given))
        object.__setattr__(self, "calibration", tuple(map(Path, self.calibration)))


def plan_path(output: Path) -> Path:
    """Where the plan of an output lies: ``model.w8a8.onnx`` -> ``model.w8a8.plan.json``."""
    return output.with_suffix(".plan.json")


def report_path(output: Path) -> Path:
    """Where the report of an output lies: ``model.w8a8.onnx`` -> ``model.w8a8.report.json``."""
    return output.with_suffix(".report.json")


def check_paths(request: QuantizeRequest) -> None:
    """Refuse outputs that cannot be written, or that would overwrite what is read.

    Raises:
        UserError: naming the file.
    """
    output = request.output
    if output.suffix != ".onnx":
        raise UserError(f"the output {output} must end in .onnx")
    if output.is_dir():
        raise UserError(f"the output {output} is a folder; give a file name")
    if request.stats is not None and request.stats.suffix != ".npz":
        raise UserError(f"--stats: {request.stats} must end in .npz")
    for file in (output, request.stats):
        if file is not None:
            require_writable(file)
    refuse_overwriting(output, [request.model, *request.calibration])


def refuse_overwriting(output: Path, inputs: Iterable[Path]) -> None:
    """A given plan may lie where the output's plan does: it then stays as it is.

    Raises:
        UserError: a file that would be written is one of the inputs.
    """
    written = [output, data_path(output), plan_path(output), report_path(output)]
    for path in inputs:
        for file in written:
            if same_file(file, path):
                raise UserError(
                    f"{file} would overwrite the input {path}; give another output with -o"
                )
