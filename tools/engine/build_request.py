"""What the user asks of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvd_trt.tools.engine.shape_ranges import ShapeRange
from qvd_trt.tools.engine.tensorrt_install import Runtime

EngineFloat = Literal["fp16", "fp32"]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        model: The ONNX file.
        output: The engine to write.
        runtime: Which TensorRT builds it.
        dtype: Type of the layers that are not INT8; only TensorRT 8 and 9 take it from here.
        shapes: Shapes of the inputs with dynamic dimensions.
        timing_cache: File with kernel timings, read and added to.
        log: File that gets all that TensorRT says, while it builds.
        workspace: Most bytes of scratch memory; None for TensorRT's default.
        use_plugin: Whether to load the HTDQ plugin.
        plugin: Its library; None for the one that ``trt_plugins build`` wrote.
        optimization_level: 0 (fast build) to 5 (fast engine); None for TensorRT's default.
        cublas: Whether TensorRT 8.6 may take kernels from cuBLAS and cuDNN, and hands them to
            plugins; it then needs both.
        implicit: Whether TensorRT 8 gets the scales as dynamic ranges instead of Q/DQ.
        compute_capabilities: GPU generations of a TensorRT-RTX engine, such as ``8.9``; empty for
            TensorRT-RTX's default.
    """

    model: Path
    output: Path
    runtime: Runtime = "auto"
    dtype: EngineFloat | None = None
    shapes: tuple[ShapeRange, ...] = ()
    timing_cache: Path | None = None
    log: Path | None = None
    workspace: int | None = None
    use_plugin: bool = False
    plugin: Path | None = None
    optimization_level: int | None = None
    cublas: bool = True
    implicit: bool = False
    compute_capabilities: tuple[str, ...] = ()
