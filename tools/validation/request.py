"""What to validate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions
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
        providers: ONNX Runtime execution providers, first choice first.
        limits: What must hold.
        recordings: Which files to write for other tools.
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
    providers: tuple[str, ...] = CPU
    limits: Limits = field(default_factory=Limits)
    recordings: RecordingPaths = field(default_factory=RecordingPaths)
