"""From a request to an engine and its report beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from qvd_trt.export.errors import UserError
from qvd_trt.export.files import write_atomically
from qvd_trt.export.progress import Progress
from qvd_trt.tools.engine.build_plan import BuildPlan, plan_build
from qvd_trt.tools.engine.build_report import BuildReport, count_layers
from qvd_trt.tools.engine.build_request import BuildRequest
from qvd_trt.tools.engine.compile_process import compile_in_child
from qvd_trt.tools.engine.compiler import CompileAnswer
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.node_precision import node_precisions
from qvd_trt.tools.engine.onnx_file import OnnxFile, read_onnx
from qvd_trt.tools.engine.qdq_to_ranges import with_ranges
from qvd_trt.tools.engine.tensorrt_install import (
    RuntimeKind,
    TensorRTInstall,
    Version,
    find_tensorrt,
)
from qvd_trt.tools.engine.trtexec import trtexec_command


def build_engine(request: BuildRequest, progress: Progress) -> BuildReport:
    """Build an engine and write it, with its report beside it as ``.build.json``.

    Raises:
        UserError: The request, the file and the installed TensorRT do not go together, or TensorRT
            fails. Nothing is written then.
    """
    model = read_onnx(request.model)
    _check_output(request)
    install = find_tensorrt(request.runtime)
    _check_capabilities(request, install)
    plan = plan_build(request, model, install.kind, install.version)
    with ExitStack() as temporary:
        if request.implicit:
            space = TemporaryDirectory(prefix=".qvd-build-", dir=_existing_folder(request.output))
            plan = with_ranges(plan, Path(temporary.enter_context(space)))
        with progress.step(f"building with {install.label}", None):
            answer = compile_in_child(plan)
    assert answer.engine is not None
    report = _report(request, model, plan, answer)
    write_atomically(request.output, answer.engine)
    write_atomically(report_path(request.output), report.to_json().encode())
    return report


def report_path(engine: Path) -> Path:
    """Where the report of an engine lies."""
    return engine.with_suffix(".build.json")


def equivalent_command(
    request: BuildRequest, kind: RuntimeKind, version: Version
) -> tuple[str, tuple[str, ...]]:
    """The trtexec command line of a request, and the warnings it comes with; needs no TensorRT.

    Raises:
        UserError: The request, the file and that TensorRT do not go together.
    """
    plan = plan_build(request, read_onnx(request.model), kind, version)
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
            *(_stray_int8(answer.layers) if request.implicit else ()),
        ),
        counts=count_layers(answer.layers, model.htdq_nodes),
        nodes=() if unlisted is not None else tuple(nodes),
        layers=answer.layers,
    )


def _stray_int8(layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """Layers that read INT8 although no range was meant for them."""
    found = [
        layer.name
        for layer in layers
        if "Int8" in layer.inputs and not (layer.is_int8_product or layer.is_copy)
    ]
    if not found:
        return ()
    return (
        f"{len(found)} layers beside the convolutions read INT8, {found[0]} first, by a range that "
        "may not be theirs: compare the engine with the float model (`qvd-validate --min-sqnr`)",
    )


def _check_output(request: BuildRequest) -> None:
    """Refuse before the build what would fail after it."""
    taken = {request.model.absolute(): "the model itself"}
    written = (
        ("--output", request.output),
        ("--timing-cache", request.timing_cache),
        ("--log", request.log),
    )
    for option, path in written:
        if path is None:
            continue
        if path.absolute() in taken:
            raise UserError(f"{option} is {taken[path.absolute()]}; name another file")
        taken[path.absolute()] = f"the file of {option}, too"
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")
        folder = _existing_folder(path)
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"{option} {path}: {folder} is not a folder that can be written to")


def _existing_folder(path: Path) -> Path:
    """The nearest one above a path."""
    return next(parent for parent in path.absolute().parents if parent.exists())


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
