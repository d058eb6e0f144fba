"""From a request to an engine, and its report beside it: how it was built, what runs in INT8."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qvd_trt.export.atomic_files import (
    beside,
    existing_folder,
    json_text,
    not_a_file,
    refuse_overwriting,
    written_together,
)
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.insert_htdq import HTDQ_OP
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.tools.engine.build_plan import BuildPlan, BuildRequest, plan_build, with_ranges
from qvd_trt.tools.engine.compile_process import compile_in_child
from qvd_trt.tools.engine.compiler import CompileAnswer
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.node_precision import NodePrecision, node_precisions
from qvd_trt.tools.engine.onnx_file import OnnxFile, read_onnx
from qvd_trt.tools.engine.tensorrt8 import stray_int8_warnings
from qvd_trt.tools.engine.tensorrt_install import (
    RuntimeKind,
    TensorRTInstall,
    Version,
    find_tensorrt,
)
from qvd_trt.tools.engine.trtexec import trtexec_command


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Numbers of engine layers.

    Attributes:
        all: Layers of the engine.
        int8_products: Matrix products and convolutions in INT8.
        copies: Layers that only change the layout or type of a tensor.
        htdq_plugins: HTDQ plugin layers.
        opaque: Fused blocks that do not list their kernels.
    """

    all: int
    int8_products: int
    copies: int
    htdq_plugins: int
    opaque: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """One build.

    Attributes:
        model: The ONNX file.
        engine: The engine file.
        report: The file of this report.
        runtime: ``tensorrt`` or ``rtx``.
        version: Version of TensorRT, dotted.
        flags: Types the builder could use, by trtexec's names.
        shapes: ``NAME:MIN:OPT:MAX`` of the dynamic inputs.
        compute_capabilities: GPU generations of a TensorRT-RTX engine.
        implicit: Whether dynamic ranges stood for the file's Q/DQ.
        plugin: The plugin library, or None.
        plugin_embedded: Whether the engine carries it.
        seconds: Time of the build.
        engine_bytes: Size of the engine.
        trtexec: The command line that does the same; None where trtexec cannot.
        notes: What the user should know of the choices.
        warnings: What the user should change.
        counts: Numbers of layers.
        nodes: Every Conv, ConvTranspose, MatMul and Gemm with constant weights.
        layers: Every layer of the engine.
        written: All files that the build wrote.
    """

    model: str
    engine: str
    report: str
    runtime: RuntimeKind
    version: str
    flags: tuple[str, ...]
    shapes: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    implicit: bool
    plugin: str | None
    plugin_embedded: bool
    seconds: float
    engine_bytes: int
    trtexec: str | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: LayerCounts
    nodes: tuple[NodePrecision, ...]
    layers: tuple[EngineLayer, ...]
    written: tuple[str, ...] = ()

    @property
    def int8_nodes(self) -> int:
        """How many of `nodes` run in INT8."""
        return sum(node.runs == "int8" for node in self.nodes)

    @property
    def lost_nodes(self) -> tuple[NodePrecision, ...]:
        """Nodes that the file quantizes and the engine does not run in INT8, as far as told."""
        return tuple(node for node in self.nodes if node.quantized and node.runs == "float")

    def to_json(self) -> str:
        """Indented JSON; numbers that JSON cannot write are strings."""
        return json_text(asdict(self))


def build_engine(request: BuildRequest, progress: Progress = SILENT) -> BuildReport:
    """Build an engine and write it, with its report beside it as ``.build.json``.

    Raises:
        UserError: The request, the file and the installed TensorRT do not go together, or TensorRT
            fails. Nothing is written then.
    """
    model = read_onnx(request.model)
    _check_output(request, model)
    install = find_tensorrt(request.runtime)
    _check_capabilities(request, install)
    plan = plan_build(request, model, install.kind, install.version)
    refuse_overwriting(_outputs(request), [plan.plugin])
    with ExitStack() as temporary:
        if request.implicit:
            space = TemporaryDirectory(prefix=".qvd-build-", dir=existing_folder(request.output))
            plan = with_ranges(plan, Path(temporary.enter_context(space)))
        with progress.step(f"building with {install.label}", None):
            answer = compile_in_child(plan)
    assert answer.engine is not None
    report = _report(request, model, plan, answer)
    with written_together(request.output) as staged:
        staged.write_bytes(answer.engine)
        report_path(staged).write_text(report.to_json(), encoding="utf-8")
    return report


def report_path(engine: Path) -> Path:
    """Where the report of an engine lies."""
    return beside(engine, ".build.json")


def equivalent_command(
    request: BuildRequest, kind: RuntimeKind, version: Version
) -> tuple[str, tuple[str, ...]]:
    """The trtexec command line of a request, and the warnings it comes with; needs no TensorRT.

    Raises:
        UserError: The request, the file and that TensorRT do not go together.
    """
    model = read_onnx(request.model)
    plan = plan_build(request, model, kind, version)
    refuse_overwriting(_outputs(request), [*model.files, plan.plugin, *request.also_read])
    if request.implicit:
        raise UserError(
            "--print-trtexec: trtexec cannot read the ranges of an --implicit build; build it with "
            "qvd-build"
        )
    return trtexec_command(plan, request.output), plan.warnings


def _report(
    request: BuildRequest, model: OnnxFile, plan: BuildPlan, answer: CompileAnswer
) -> BuildReport:
    assert answer.engine is not None
    unlisted = answer.inspector_error
    nodes = node_precisions(model, answer.layers, plan.compute_capabilities, plan.ranges)
    return BuildReport(
        model=str(request.model),
        engine=str(request.output),
        report=str(report_path(request.output)),
        runtime=plan.kind,
        version=".".join(map(str, plan.version)),
        flags=plan.flags,
        shapes=tuple(map(str, plan.shapes)),
        compute_capabilities=plan.compute_capabilities,
        implicit=request.implicit,
        plugin=None if plan.plugin is None else str(plan.plugin),
        plugin_embedded=plan.embeds_plugin,
        seconds=answer.seconds,
        engine_bytes=len(answer.engine),
        trtexec=None if request.implicit else trtexec_command(plan, request.output),
        notes=plan.notes,
        warnings=(
            *plan.warnings,
            *([] if unlisted is None else [f"the layers cannot be listed: {unlisted}"]),
            *(stray_int8_warnings(answer.layers) if request.implicit else ()),
        ),
        counts=count_layers(answer.layers, model.htdq_nodes),
        nodes=() if unlisted is not None else tuple(nodes),
        layers=answer.layers,
        written=tuple(str(path) for _, path in _outputs(request) if path is not None),
    )


def count_layers(layers: Sequence[EngineLayer], htdq_nodes: Sequence[str]) -> LayerCounts:
    """Count the layers; ``htdq_nodes`` are the ONNX nodes that the plugin may run."""
    return LayerCounts(
        all=len(layers),
        int8_products=sum(layer.is_int8_product for layer in layers),
        copies=sum(layer.is_copy for layer in layers),
        htdq_plugins=sum(_is_htdq_plugin(layer, htdq_nodes) for layer in layers),
        opaque=sum(layer.is_opaque for layer in layers),
    )


def _is_htdq_plugin(layer: EngineLayer, htdq_nodes: Sequence[str]) -> bool:
    return layer.is_plugin and (HTDQ_OP in layer.raw or bool({*htdq_nodes} & {*layer.onnx_nodes}))


def _outputs(request: BuildRequest) -> tuple[tuple[str, Path | None], ...]:
    """Every file that a build writes, with the option that names it."""
    return (
        ("--output", request.output),
        ("the report of --output", report_path(request.output)),
        ("--timing-cache", request.timing_cache),
        ("--log", request.log),
    )


def _check_output(request: BuildRequest, model: OnnxFile) -> None:
    """Refuse before the build what would fail after it, or would replace what it reads."""
    for option, path in _outputs(request):
        if path is None:
            continue
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path} {not_a_file(path)}; name a file")
        folder = existing_folder(path)
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"{option} {path}: {folder} is not a folder that can be written to")
    refuse_overwriting(_outputs(request), [*model.files, request.plugin, *request.also_read])


def _check_capabilities(request: BuildRequest, install: TensorRTInstall) -> None:
    if install.kind != "rtx":
        return
    names = getattr(install.module.ComputeCapability, "__members__", {})
    known = sorted(
        (f"{digits[:-1]}.{digits[-1]}" for name in names if (digits := name[2:]).isdigit()),
        key=lambda text: tuple(map(int, text.split("."))),
    )
    for capability in request.compute_capabilities:
        if capability not in known:
            raise UserError(
                f"--ahead-of-time: {install.label} does not build for SM"
                f"{capability.replace('.', '')}; use one of "
                f"{', '.join('SM' + text.replace('.', '') for text in known)}"
            )
