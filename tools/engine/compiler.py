"""The build itself: TensorRT's parser and builder, set up by Polygraphy, in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from qvd_trt.tools.engine.build_plan import FIRST_ONLY_STRONGLY_TYPED, BuildPlan
from qvd_trt.tools.engine.engine_layers import EngineLayer, inspector_layers, rtx_log_layers
from qvd_trt.tools.engine.onnx_file import node_name
from qvd_trt.tools.engine.plugin import load_plugin
from qvd_trt.tools.engine.tensorrt8 import own_tactic_sources, set_ranges
from qvd_trt.tools.engine.tensorrt_install import TensorRTInstall, find_tensorrt

Step = Literal["device", "plugin", "parse", "build"]

ERRORS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CompileAnswer:
    """What came of it.

    Attributes:
        engine: The engine, or None where a step failed.
        layers: Its layers; empty where they could not be listed.
        seconds: Time of the build alone.
        failed: The step that failed.
        errors: What TensorRT says of it, the most telling message last.
        inspector_error: Why there are no layers, if so.
    """

    engine: bytes | None = None
    layers: tuple[EngineLayer, ...] = ()
    seconds: float = 0.0
    failed: Step | None = None
    errors: tuple[str, ...] = ()
    inspector_error: str | None = None


class StepError(Exception):
    """A step of the build failed."""

    def __init__(self, step: Step, errors: Sequence[str]) -> None:
        super().__init__(step)
        self.step: Step = step
        self.errors = tuple(errors)


def compile_plan(plan: BuildPlan) -> CompileAnswer:
    """Build in this process.

    Raises:
        StepError: TensorRT failed without ending the process.
    """
    install = find_tensorrt(plan.kind)
    log = make_log(install.module, plan.log)
    builder, network = create_network(install, plan, log)
    _parse(install, plan, network, log)
    if plan.ranges is not None and (missing := set_ranges(install.module, network, plan.ranges)):
        raise StepError("parse", [f"it has no convolution {missing[0]}; leave --implicit out"])
    started = time.monotonic()
    engine = _build(install, plan, builder, network, log)
    seconds = time.monotonic() - started
    layers, error = _list_layers(install, engine, log)
    return CompileAnswer(engine=engine, layers=layers, seconds=seconds, inspector_error=error)


def make_log(trt: Any, path: Path | None = None) -> Any:
    """A logger for TensorRT that keeps all it is told, and writes it to a file as it comes."""
    started = time.monotonic()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    file = None if path is None else path.open("w", buffering=1, encoding="utf-8")

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps every message; prints what went wrong, in case the process dies."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if file is not None:
                print(f"{time.monotonic() - started:8.1f} {message}", file=file)
            if severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                print(message, file=sys.stderr, flush=True)

    return Log()


def create_network(install: TensorRTInstall, plan: BuildPlan, log: Any) -> tuple[Any, Any]:
    """A builder and an empty network, with the plugin registered.

    Raises:
        StepError: There is no GPU, or the plugin cannot be loaded.
    """
    trt = install.module
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its bindings make of a null pointer
        told = [*log.warnings, *log.errors][-1:] or [str(error)]
        raise StepError("device", told) from error
    if plan.plugin is not None:
        try:
            load_plugin(trt, install.version, str(plan.plugin), log)
        except RuntimeError as error:
            raise StepError("plugin", [*log.errors[-ERRORS_SHOWN:], str(error)]) from error
    flags = 0
    if not plan.strongly_typed:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    elif plan.kind == "tensorrt" and plan.version < FIRST_ONLY_STRONGLY_TYPED:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder, builder.create_network(flags)


def _parse(install: TensorRTInstall, plan: BuildPlan, network: Any, log: Any) -> None:
    trt = install.module
    if plan.kind == "tensorrt":
        trt.init_libnvinfer_plugins(log, "")
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(plan.model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [_parser_error(error, plan.model) for error in errors]
        raise StepError("parse", told or log.errors[-ERRORS_SHOWN:])


def _parser_error(error: Any, model: Path) -> str:
    """``NODE (OPERATOR): description``; TensorRT 8 tells the index of the node alone."""
    if hasattr(error, "node_name"):
        return f"{error.node_name()} ({error.node_operator()}): {error.desc()}"
    graph = ir.load(model).graph
    if not 0 <= error.node() < len(graph):
        return str(error.desc())
    node = graph[error.node()]
    return f"{node_name(node)} ({node.op_type}): {error.desc()}"


def _build(
    install: TensorRTInstall, plan: BuildPlan, builder: Any, network: Any, log: Any
) -> bytes:
    from polygraphy.backend.trt import EngineBytesFromNetwork
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    cache = None if plan.timing_cache is None else str(plan.timing_cache)
    if plan.timing_cache is not None:
        plan.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    build = EngineBytesFromNetwork(
        (builder, network), config=_make_config(install, plan), save_timing_cache=cache
    )
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            return bytes(build())
    except PolygraphyException as error:
        raise StepError("build", log.errors[-ERRORS_SHOWN:] or [str(error)]) from error


def _make_config(install: TensorRTInstall, plan: BuildPlan) -> Callable[[Any, Any], Any]:
    """Polygraphy's config with what it has no option for."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    trt = install.module
    profile = Profile()
    for shape in plan.shapes:
        profile.add(shape.name, min=shape.min, opt=shape.opt, max=shape.max)
    common: dict[str, Any] = {
        "profiles": [profile] if plan.shapes else [],
        "builder_optimization_level": plan.optimization_level,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
    }
    if plan.workspace is not None:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: plan.workspace}
    if plan.kind == "rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        pairs = [tuple(map(int, text.split("."))) for text in plan.compute_capabilities]
        config: Any = CreateConfigRTX(compute_capabilities=pairs or None, **common)
        return config  # type: ignore[no-any-return]
    if plan.timing_cache is not None and plan.timing_cache.exists():
        common["load_timing_cache"] = str(plan.timing_cache)
    if not plan.cublas:
        common["tactic_sources"] = own_tactic_sources(trt)
    if plan.ranges is not None:
        common["precision_constraints"] = "obey"
    # TF32 is on by default in TensorRT and trtexec, but not in Polygraphy.
    config = CreateConfig(tf32=True, fp16=plan.fp16, int8=plan.int8, **common)
    if plan.embeds_plugin:

        def embed(builder: Any, network: Any, settings: Any) -> None:
            settings.plugins_to_serialize = [str(plan.plugin)]

        config = PostprocessConfig(config, embed)
    return config  # type: ignore[no-any-return]


def _list_layers(
    install: TensorRTInstall, engine: bytes, log: Any
) -> tuple[tuple[EngineLayer, ...], str | None]:
    """The layers, or why there are none: a report must not cost the engine."""
    if install.kind == "rtx":
        layers = tuple(rtx_log_layers("\n".join(log.messages)))
        return layers, None if layers else "the build log lists no layers"
    trt = install.module
    try:
        runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = True
        built = runtime.deserialize_cuda_engine(engine)
        inspector, form = built.create_engine_inspector(), trt.LayerInformationFormat.JSON
        texts = [inspector.get_layer_information(at, form) for at in range(built.num_layers)]
        return tuple(inspector_layers(texts)), None
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return (), " ".join([*log.errors[-1:], str(error)])
