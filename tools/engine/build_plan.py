"""From what the user asks and a file to all that a build does with one TensorRT.

That TensorRT need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.onnx_file import OnnxFile
from qvd_trt.tools.engine.plugin import FIRST_WITH_V3, choose_plugin, plugin_warnings
from qvd_trt.tools.engine.shape_ranges import ShapeRange, resolve_shapes
from qvd_trt.tools.engine.tensorrt8 import attention_warnings, write_implicit
from qvd_trt.tools.engine.tensorrt_install import Runtime, RuntimeKind, Version, product_label

EngineFloat = Literal["fp16", "fp32"]

FIRST_STRONGLY_TYPED: Version = (10,)
FIRST_ONLY_STRONGLY_TYPED: Version = (11,)


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
        also_read: Files that the request was made from, such as a recipe; never overwritten.
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
    also_read: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """One build, with every choice made.

    Attributes:
        model: The ONNX file to parse, absolute.
        kind: Which TensorRT.
        version: Its version.
        strongly_typed: Whether the types of the file are those of the engine.
        fp16: Whether layers may run in fp16 (TensorRT 8 and 9).
        int8: Whether layers may run in INT8 (TensorRT 8 and 9).
        shapes: Shapes of all dynamic inputs.
        timing_cache: File of kernel timings.
        log: File of TensorRT's messages.
        workspace: Most bytes of scratch memory.
        plugin: The HTDQ library to load, absolute.
        optimization_level: TensorRT's builder optimization level.
        cublas: Whether TensorRT 8.6 may use cuBLAS and cuDNN.
        source: The user's file, where `model` was made of it.
        ranges: ``{Conv node: range}`` of a build with dynamic ranges, see ``tensorrt8.py``;
            None where the Q/DQ of the file say what is INT8.
        compute_capabilities: GPU generations of a TensorRT-RTX engine.
        notes: What the user should know of the choices.
        warnings: What the user should change.
    """

    model: Path
    kind: RuntimeKind
    version: Version
    strongly_typed: bool = True
    fp16: bool = False
    int8: bool = False
    shapes: tuple[ShapeRange, ...] = ()
    timing_cache: Path | None = None
    log: Path | None = None
    workspace: int | None = None
    plugin: Path | None = None
    optimization_level: int | None = None
    cublas: bool = True
    source: Path | None = None
    ranges: Mapping[str, float] | None = None
    compute_capabilities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def embeds_plugin(self) -> bool:
        """Whether the engine carries the plugin library, so that it runs alone."""
        return self.plugin is not None and self.version >= FIRST_WITH_V3

    @property
    def flags(self) -> tuple[str, ...]:
        """The types the builder may use, as trtexec calls them."""
        chosen = (
            ("stronglyTyped", self.strongly_typed),
            ("int8", self.int8),
            ("fp16", self.fp16),
        )
        return tuple(name for name, on in chosen if on)


def plan_build(
    request: BuildRequest, model: OnnxFile, kind: RuntimeKind, version: Version
) -> BuildPlan:
    """Decide everything.

    Raises:
        UserError: The options, the file and this TensorRT do not go together.
    """
    _check_options(request, kind, version)
    _check_symmetric(request, model, kind, version)
    _check_implicit(request, model, kind, version)
    strongly_typed = _is_strongly_typed(kind, version)
    plugin = choose_plugin(model, kind, version, use=request.use_plugin, library=request.plugin)
    unfused = kind == "tensorrt" and version[0] == 8 and not request.implicit
    return BuildPlan(
        model=request.model.absolute(),
        kind=kind,
        version=version,
        strongly_typed=strongly_typed,
        fp16=not strongly_typed and request.dtype != "fp32",
        int8=not strongly_typed and model.is_quantized,
        shapes=resolve_shapes(request.shapes, model.inputs),
        timing_cache=request.timing_cache,
        log=None if request.log is None else request.log.absolute(),
        workspace=request.workspace,
        plugin=None if plugin is None else plugin.absolute(),
        optimization_level=request.optimization_level,
        cublas=request.cublas,
        compute_capabilities=request.compute_capabilities,
        notes=_notes(model, kind, version, strongly_typed),
        warnings=(
            *_target_warnings(model, kind, version),
            *plugin_warnings(plugin, model, kind, version),
            *(attention_warnings(model) if unfused else ()),
            *_turing_warnings(request),
        ),
    )


def with_ranges(plan: BuildPlan, folder: Path) -> BuildPlan:
    """The plan of a build with ranges, from that of a QDQ file, whose float form it writes.

    Raises:
        UserError: See :func:`write_implicit`.
    """
    implicit = write_implicit(plan.model, folder)
    return replace(plan, source=plan.model, model=implicit.model, ranges=implicit.ranges)


def _is_strongly_typed(kind: RuntimeKind, version: Version) -> bool:
    """Whether this TensorRT takes all types from the file."""
    return kind == "rtx" or version >= FIRST_STRONGLY_TYPED


def _check_options(request: BuildRequest, kind: RuntimeKind, version: Version) -> None:
    label = product_label(kind, version)
    if request.compute_capabilities and kind != "rtx":
        raise UserError(
            f"--ahead-of-time is for TensorRT-RTX; {label} builds for the GPU it runs on "
            "(give --runtime rtx, or leave it out)"
        )
    if request.timing_cache is not None and kind == "rtx":
        raise UserError(
            "--timing-cache: TensorRT-RTX times no kernels while it builds; leave it out"
        )
    if not request.cublas and _is_strongly_typed(kind, version):
        raise UserError(f"--no-cublas: {label} uses no cuBLAS; leave it out")
    if request.dtype is not None and _is_strongly_typed(kind, version):
        raise UserError(
            f"--dtype: {label} takes all types from the file; choose them with "
            "`qvd-export --dtype`, or leave it out"
        )


def _check_symmetric(
    request: BuildRequest, model: OnnxFile, kind: RuntimeKind, version: Version
) -> None:
    if not model.is_symmetric:
        raise UserError(
            f"{request.model} has zero points other than 0, as --target ort writes them, and "
            f"{product_label(kind, version)} reads symmetric codes only; export the model with "
            f"`qvd-export --target {_own_target(kind, version)}`"
        )


def _own_target(kind: RuntimeKind, version: Version) -> str:
    """The ``--target`` of `qvd-export` that is made for this TensorRT."""
    return "rtx" if kind == "rtx" else "trt" if version >= FIRST_STRONGLY_TYPED else "trt8"


def _check_implicit(
    request: BuildRequest, model: OnnxFile, kind: RuntimeKind, version: Version
) -> None:
    if not request.implicit:
        return
    if _is_strongly_typed(kind, version):
        raise UserError(
            f"--implicit is for TensorRT 8; {product_label(kind, version)} takes INT8 from Q/DQ "
            "alone, leave it out"
        )
    if not model.is_quantized:
        raise UserError(
            f"--implicit: {request.model} has no Q/DQ to take scales from; quantize it with "
            "`qvd-export --target trt8`"
        )


def _notes(
    model: OnnxFile, kind: RuntimeKind, version: Version, strongly_typed: bool
) -> tuple[str, ...]:
    if model.is_quantized or not (strongly_typed and model.is_float32):
        return ()
    return (
        f"{product_label(kind, version)} is strongly typed: this float32 file is built as a "
        "float32 engine",
    )


def _target_warnings(model: OnnxFile, kind: RuntimeKind, version: Version) -> tuple[str, ...]:
    """Files that `qvd-export` wrote for another runtime, where that costs something."""
    target, dtype = model.metadata.get("qvd.target"), model.metadata.get("qvd.dtype")
    if target is None:
        return ()
    label = product_label(kind, version)
    wanted = _own_target(kind, version)
    cost = None
    if wanted == "rtx" and target == "trt" and dtype == "fp16":
        cost = "the sums of wide layers may overflow fp16"
    elif wanted == "trt8" and target != "trt8":
        cost = "its opset, its weights or its scales may be refused"
    elif wanted != "trt8" and target == "trt8":
        cost = "all that is not INT8 stays float32"
    elif wanted == "trt" and target == "rtx" and dtype != "fp32":
        cost = "the casts around its scales may keep layers from INT8"
    if cost is None:
        return ()
    return (
        f"the file was exported with --target {target}: on {label} {cost}; "
        f"export it with `qvd-export --target {wanted}`",
    )


def _turing_warnings(request: BuildRequest) -> tuple[str, ...]:
    if "7.5" in request.compute_capabilities:
        return ("SM75 has no INT8 convolution and takes it away from all other GPUs of the engine",)
    return ()
