"""What to validate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
from qvd_trt.export.atomic_files import not_a_file, refuse_overwriting, require_writable
from qvd_trt.export.errors import UserError
from qvd_trt.export.ort_session import CPU
from qvd_trt.tools.engine.tensorrt_install import Runtime
from qvd_trt.tools.validation.recordings import RecordingPaths


@dataclass(frozen=True, slots=True)
class Limits:
    """What must hold; None asks nothing.

    Attributes:
        min_sqnr: Lowest mean SQNR, dB: of the engine against the float model when there is an
            engine, else of the QDQ model against it.
        max_implementation_error: Highest mean relative RMS error of the engine against the QDQ
            model, a fraction.
    """

    min_sqnr: float | None = None
    max_implementation_error: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ValidationRequest:
    """One validation.

    Attributes:
        float_model: The float ONNX file.
        qdq_model: The QDQ ONNX file made from it.
        engine: An engine built from the QDQ file.
        float_engine: An engine built from the float file.
        engine_outputs: Instead of ``engine``: files of its outputs, in call order.
        runtime: Which TensorRT runs the engines.
        plugin: Library of the HTDQ plugin, where an engine needs it.
        calibration: Paths of recorded calls; may be empty when ``sampling`` is given.
        sampling: How to sample free-running trajectories; None for none.
        rounding_floor: Whether to measure the QDQ model in fp16 too.
        timestep_input: Name of the timestep input where it cannot be found.
        latent_input: Name of the latent input where it cannot be found.
        prediction_output: Name of the output that is compared where it is not the first of the
            latent's rank.
        providers: ONNX Runtime execution providers, first choice first.
        limits: What must hold.
        recordings: Which files to write for other tools.
        report: Where the caller will write the report; checked like the recordings.
        also_read: Files that the request was made from, such as a recipe; never overwritten.
    """

    float_model: Path
    qdq_model: Path
    engine: Path | None = None
    float_engine: Path | None = None
    engine_outputs: tuple[Path, ...] = ()
    runtime: Runtime = "auto"
    plugin: Path | None = None
    calibration: tuple[Path, ...] = ()
    sampling: SelfSamplingOptions | None = None
    rounding_floor: bool = True
    timestep_input: str | None = None
    latent_input: str | None = None
    prediction_output: str | None = None
    providers: tuple[str, ...] = CPU
    limits: Limits = field(default_factory=Limits)
    recordings: RecordingPaths = field(default_factory=RecordingPaths)
    report: Path | None = None
    also_read: tuple[Path, ...] = ()

    def check_outputs(self, model_files: Iterable[Path] = ()) -> None:
        """Refuse outputs that cannot be written, or that would replace an input or each other.

        Args:
            model_files: The files of the two ONNX models, external weights among them.

        Raises:
            UserError: naming the option and the file.
        """
        files = (
            ("--report", self.report),
            ("--save-inputs", self.recordings.inputs),
            ("--save-outputs", self.recordings.outputs),
        )
        refuse_overwriting(
            [*files, ("--save-raw", self.recordings.raw)],
            [
                *(self.float_model, self.qdq_model, *model_files),
                *(self.engine, self.float_engine, self.plugin),
                *self.engine_outputs,
                *self.calibration,
                *self.also_read,
            ],
        )
        for option, path in files:
            if path is None:
                continue
            if path.exists() and not path.is_file():
                raise UserError(f"{option} {path} {not_a_file(path)}; name a file")
            require_writable(path)
        self.recordings.check_raw()
