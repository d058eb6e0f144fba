"""Building one TensorRT engine of the latency benchmark, opening it and timing its layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.real_size.cuda import Cuda, CudaError
from qvd_trt.export.atomic_files import write_atomically
from qvd_trt.tools.engine.build_plan import FIRST_STRONGLY_TYPED, BuildPlan, with_ranges
from qvd_trt.tools.engine.compile_process import compile_in_child
from qvd_trt.tools.engine.engine_layers import read_entry
from qvd_trt.tools.engine.plugin import load_plugin
from qvd_trt.tools.engine.tensorrt_install import find_tensorrt

os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")

WARM_UP_RUNS = 3
PROFILED_RUNS = 5


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How engines are built.

    Attributes:
        level: Builder optimization level.
        timing_cache: File that is read and written, shared by all builds.
        plugin: Library with the HTDQ plugin, or None.
        logs: Folder that gets TensorRT's whole log of every build, or None.
    """

    level: int
    timing_cache: Path
    plugin: Path | None
    logs: Path | None


def open_tensorrt(plugin: Path | None) -> tuple[Any, Any]:
    """The module and a logger that prints warnings; plugins are registered."""
    install = find_tensorrt("tensorrt")
    trt: Any = install.module
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    if plugin is not None:
        load_plugin(trt, install.version, str(plugin.resolve()), logger)
    return trt, logger


def build_to(
    model: Path, plan: Path, int8: bool, options: BuildOptions, *, implicit: bool = False
) -> float:
    """Build one file as qvd-build does, with ``--fp16`` or ``--int8 --fp16``; returns the seconds.

    Args:
        model: The file, in a folder that can be written to.
        plan: The engine to write.
        int8: Whether it may use INT8.
        options: The builder's.
        implicit: Whether as ``qvd-build --implicit`` does.

    Raises:
        UserError: the parser or the builder failed.
    """
    version = find_tensorrt("tensorrt").version
    build_plan = BuildPlan(
        model=model.absolute(),
        kind="tensorrt",
        version=version,
        strongly_typed=False,
        fp16=True,
        int8=int8,
        timing_cache=options.timing_cache.absolute(),
        log=None if options.logs is None else options.logs.absolute() / f"{plan.stem}.log",
        plugin=None if options.plugin is None else options.plugin.absolute(),
        optimization_level=options.level,
        cublas=version >= FIRST_STRONGLY_TYPED,
    )
    if implicit:
        folder = model.parent / "implicit"
        folder.mkdir()
        build_plan = with_ranges(build_plan, folder)
    answer = compile_in_child(build_plan)
    assert answer.engine is not None
    write_atomically(plan, answer.engine)
    return answer.seconds


class TimedEngine:
    """An engine with its buffers, ready to be launched and profiled."""

    def __init__(self, trt: Any, logger: Any, plan: Path, cuda: Cuda, seed: int = 0) -> None:
        self._trt, self._cuda = trt, cuda
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise RuntimeError(f"{plan} cannot be loaded; see the log above")
        self._context = self._engine.create_execution_context()
        self._outputs: dict[str, tuple[int, npt.NDArray[Any]]] = {}
        generator = np.random.default_rng(seed)
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(self._engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                values = generator.standard_normal(shape)
                if dtype.kind in "iu":
                    values = np.full(shape, 500.0)
                pointer = cuda.upload(values.astype(dtype))
            else:
                array = np.empty(shape, dtype)
                pointer = cuda.allocate(array.nbytes)
                self._outputs[name] = pointer, array
            self._context.set_tensor_address(name, pointer)
        self.graph = False
        self.launch: Callable[[], None] = self._enqueue

    def warm_up(self) -> None:
        """Run a few times, then go over to a CUDA graph if the engine can be captured."""
        for _ in range(WARM_UP_RUNS):
            self._enqueue()
        self._cuda.synchronize()
        try:
            self.launch, self.graph = self._cuda.capture(self._enqueue), True
        except (CudaError, RuntimeError) as error:
            print(f"no CUDA graph: {error}", flush=True)
        self.launch()
        self._cuda.synchronize()

    def run(self) -> None:
        """Run once without the graph, and wait."""
        self._enqueue()
        self._cuda.synchronize()

    def output_summary(self) -> Mapping[str, Mapping[str, float]]:
        """Share of finite values and their standard deviation, of every output."""
        summary = {}
        for name, (pointer, array) in self._outputs.items():
            self._cuda.download(pointer, array)
            finite = np.isfinite(array)
            deviation = float(array[finite].astype(np.float64).std()) if finite.any() else 0.0
            summary[name] = {"finite": float(finite.mean()), "deviation": deviation}
        return summary

    def layers(self) -> list[dict[str, Any]]:
        """What the inspector says of every layer."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        form = self._trt.LayerInformationFormat.JSON
        entries = [
            read_entry(inspector.get_layer_information(index, form))
            for index in range(self._engine.num_layers)
        ]
        return [entry if isinstance(entry, dict) else {"Name": entry} for entry in entries]

    def profile(self) -> dict[str, float]:
        """Mean milliseconds of every layer, run one by one; replaces the CUDA graph."""
        base: Any = self._trt.IProfiler
        totals: dict[str, float] = {}

        class Profiler(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        self._profiler = Profiler()
        self._context.profiler = self._profiler
        self.run()
        totals.clear()
        for _ in range(PROFILED_RUNS):
            self.run()
        return {name: total / PROFILED_RUNS for name, total in totals.items()}

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RuntimeError("the engine did not run; see the log above")
