"""The command line of ``trtexec`` (``tensorrt_rtx`` for TensorRT-RTX) that does the same build.

Flags as in NVIDIA's ``samples/common/sampleOptions.cpp`` of 8.6, 10.0 and 11.1, and in the
documentation of TensorRT-RTX.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from qvd_trt.tools.engine.build_plan import FIRST_ONLY_STRONGLY_TYPED, BuildPlan
from qvd_trt.tools.engine.shape_ranges import shape_text

_MEBIBYTE = 1 << 20


def trtexec_command(plan: BuildPlan, engine: Path) -> str:
    """One line for a shell."""
    return shlex.join([_program(plan), *_arguments(plan, engine)])


def _program(plan: BuildPlan) -> str:
    return "tensorrt_rtx" if plan.kind == "rtx" else "trtexec"


def _arguments(plan: BuildPlan, engine: Path) -> Iterator[str]:
    yield f"--onnx={plan.model}"
    yield f"--saveEngine={engine.absolute()}"
    if plan.kind == "tensorrt":
        yield from _types(plan)
        yield from _plugin(plan)
    if plan.shapes:
        for option in ("min", "opt", "max"):
            shapes = (f"{s.name}:{shape_text(getattr(s, option))}" for s in plan.shapes)
            yield f"--{option}Shapes={','.join(shapes)}"
    if plan.compute_capabilities:
        names = (capability.replace(".", "") for capability in plan.compute_capabilities)
        yield f"--computeCapabilities={','.join(names)}"
    if plan.workspace is not None:
        yield f"--memPoolSize=workspace:{plan.workspace / _MEBIBYTE:g}"
    if not plan.cublas:
        yield "--tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN"
    if plan.optimization_level is not None:
        yield f"--builderOptimizationLevel={plan.optimization_level}"
    if plan.timing_cache is not None:
        yield f"--timingCacheFile={plan.timing_cache}"
    yield "--profilingVerbosity=detailed"
    yield "--skipInference"


def _types(plan: BuildPlan) -> Iterator[str]:
    if plan.strongly_typed and plan.version < FIRST_ONLY_STRONGLY_TYPED:
        yield "--stronglyTyped"
    if plan.int8:
        yield "--int8"
    if plan.fp16:
        yield "--fp16"


def _plugin(plan: BuildPlan) -> Iterator[str]:
    if plan.plugin is None:
        return
    if plan.embeds_plugin:
        yield f"--dynamicPlugins={plan.plugin}"
        yield f"--setPluginsToSerialize={plan.plugin}"
    else:
        yield f"--plugins={plan.plugin}"
