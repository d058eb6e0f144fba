"""Running a TensorRT engine file, on host arrays or on device memory that the caller owns."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.array_cast import cast_exactly
from qvd_trt.tools.engine.plugin import load_plugin
from qvd_trt.tools.engine.tensorrt_install import Runtime, TensorRTInstall, find_tensorrt

Shape = tuple[int, ...]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_PROFILE = 0
"""The optimization profile in use; trtexec makes one."""
ALIGNMENT = 256
"""What TensorRT asks of every device address, in bytes."""


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """One input or output of an engine.

    Attributes:
        name: Its name.
        dtype: The numpy dtype's name, or ``bfloat16``.
        shape: Extents; -1 where they are dynamic.
    """

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """Contiguous memory on the engine's GPU.

    Attributes:
        pointer: Its device address, a multiple of :data:`ALIGNMENT`.
        shape: Its extents.
        dtype: The numpy dtype's name, or ``bfloat16``.
    """

    pointer: int
    shape: Shape
    dtype: str


class EngineSession:
    """An engine of the installed TensorRT; use it in a ``with`` block or call :meth:`close`.

    Attributes:
        inputs: The engine's inputs by name, in its order.
        outputs: Its outputs by name, in its order.
    """

    def __init__(self, path: Path, runtime: Runtime = "auto", plugin: Path | None = None) -> None:
        """Load an engine file onto the current GPU.

        Args:
            path: The file.
            runtime: Which TensorRT it was built by.
            plugin: Library of the HTDQ plugin, if the engine uses it and does not carry it.

        Raises:
            UserError: There is no such file, no TensorRT or no GPU; or the engine is of another
                TensorRT or GPU, or lacks a plugin.
        """
        if not path.is_file():
            raise UserError(f"{path} {not_a_file(path)}; give an engine of qvd-build or trtexec")
        if path.suffix == ".onnx":
            raise UserError(f"{path} is an ONNX model; build it with qvd-build")
        install = find_tensorrt(runtime)
        _require_gpu()
        self._path = path
        self._trt: Any = install.module
        self._messages = _message_collector(self._trt)
        self._runtime = self._trt.Runtime(self._messages)
        self._engine: Any = self._deserialize(path, plugin, install)
        self.inputs, self.outputs = self._tensors()
        self._resources = ExitStack()
        self._runner: Any = None
        self._context: Any = None

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the contexts and their buffers; the session may not be used any more."""
        self._resources.close()
        self._runner = self._context = self._engine = self._runtime = None

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run once on host arrays.

        Args:
            inputs: One array per engine input, by name. Arrays are cast to the engine's dtypes
                where that keeps every value (fp16 inputs are rounded): TensorRT 8.6 takes int32
                timesteps, for example.

        Returns:
            Every output by name, on the host; 16-bit floats as float32.

        Raises:
            UserError: An input is missing, is outside of the engine's optimization profile or
                cannot be cast; an output is bfloat16; or TensorRT fails.
        """
        for tensor in self.outputs.values():
            if tensor.dtype == "bfloat16":
                raise UserError(
                    f"{self._path}: output {tensor.name!r} is bfloat16, which numpy lacks; build "
                    "the model with float32 inputs and outputs, as qvd-export writes them"
                )
        feeds = {}
        for tensor in self.inputs.values():
            if tensor.name not in inputs:
                raise UserError(
                    f"{self._path}: no array for the engine's input {tensor.name!r}; "
                    f"there are {sorted(inputs)}"
                )
            array = inputs[tensor.name]
            self._check_shape(tensor, array.shape)
            cast = cast_exactly(array, tensor.dtype, f"{self._path}: input {tensor.name!r}")
            feeds[tensor.name] = np.ascontiguousarray(cast).reshape(array.shape)
        outputs = self._infer(feeds)
        # The runner owns the arrays it returns and overwrites them in the next call.
        return {name: _widened(np.array(array)) for name, array in outputs.items()}

    def output_shapes(self, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all outputs for these input shapes.

        Raises:
            UserError: A shape is outside of the profile, or an output's depends on the data.
        """
        context = self._device_context()
        for name, shape in input_shapes.items():
            self._set_shape(name, shape)
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        for name, shape in shapes.items():
            if any(extent < 0 for extent in shape):
                raise UserError(
                    f"{self._path}: the shape of output {name!r} is unknown, {list(shape)}; "
                    "give the shapes of all inputs"
                )
        return shapes

    def run_device(
        self,
        inputs: Mapping[str, DeviceTensor],
        outputs: Mapping[str, DeviceTensor],
        stream: int,
    ) -> None:
        """Enqueue one run on device memory; nothing is copied, converted or waited for.

        Args:
            inputs: Every engine input, of exactly the engine's dtype.
            outputs: Every engine output, of its dtype and of :meth:`output_shapes`.
            stream: The CUDA stream's handle. The memory must live until its work is done.

        Raises:
            UserError: A tensor is missing, has another dtype, or a shape outside of the profile;
                or TensorRT refuses an address or fails.
        """
        context = self._device_context()
        for name, spec in self.inputs.items():
            tensor = self._device_tensor(inputs, spec)
            self._set_shape(name, tensor.shape)
            self._set_address(name, tensor)
        for name, spec in self.outputs.items():
            tensor = self._device_tensor(outputs, spec)
            if (wanted := tuple(context.get_tensor_shape(name))) != tensor.shape:
                raise UserError(
                    f"{self._path}: output {name!r} needs shape {list(wanted)}, the given memory "
                    f"has {list(tensor.shape)}"
                )
            # Polygraphy's runner, in the same context, leaves its own allocator there.
            context.set_output_allocator(name, None)
            self._set_address(name, tensor)
        if not context.execute_async_v3(stream):
            raise self._failed("run")

    def _deserialize(self, path: Path, plugin: Path | None, install: TensorRTInstall) -> Any:
        if hasattr(self._trt, "init_libnvinfer_plugins"):
            self._trt.init_libnvinfer_plugins(self._messages, "")
        if plugin is not None:
            if not plugin.is_file():
                raise UserError(f"--plugin {plugin} {not_a_file(plugin)}; name the built library")
            try:
                load_plugin(self._trt, install.version, str(plugin.resolve()), self._messages)
            except RuntimeError as error:
                raise UserError(f"--plugin {plugin}: {error}") from error
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True  # version-compatible engines carry code
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise UserError(
                f"{path} cannot be loaded by {install.label}: {self._messages.last()}; build it "
                "again with this TensorRT on this GPU, or give the plugin it needs with --plugin"
            )
        return engine

    def _tensors(self) -> tuple[dict[str, EngineTensor], dict[str, EngineTensor]]:
        engine, tensors = self._engine, []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise UserError(f"{self._path}: {name!r} has the unsupported type {kind}")
            tensors.append(EngineTensor(name, _DTYPES[kind], tuple(engine.get_tensor_shape(name))))
        input_mode = self._trt.TensorIOMode.INPUT
        modes = {tensor.name: engine.get_tensor_mode(tensor.name) for tensor in tensors}
        return (
            {tensor.name: tensor for tensor in tensors if modes[tensor.name] == input_mode},
            {tensor.name: tensor for tensor in tensors if modes[tensor.name] != input_mode},
        )

    def _infer(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        # Here, because Polygraphy reads the choice of find_tensorrt when it is imported.
        from polygraphy.backend.trt import TrtRunner
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            try:
                if self._runner is None:
                    # Two contexts of one profile would exclude each other in TensorRT 8.6.
                    runner = TrtRunner(self._device_context())
                    self._runner = self._resources.enter_context(runner)
                return dict(self._runner.infer(dict(feeds)))
            except PolygraphyException as error:
                raise self._failed(str(error)) from error

    def _device_context(self) -> Any:
        if self._context is None:
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise self._failed("make an execution context")
        return self._context

    def _set_shape(self, name: str, shape: Shape) -> None:
        if name not in self.inputs:
            raise UserError(f"{self._path}: {name!r} is no input; it has {list(self.inputs)}")
        self._check_shape(self.inputs[name], shape)
        if not self._device_context().set_input_shape(name, shape):
            raise self._failed(f"take shape {list(shape)} for {name!r}")

    def _set_address(self, name: str, tensor: DeviceTensor) -> None:
        if not self._device_context().set_tensor_address(name, tensor.pointer):
            raise self._failed(f"take address {tensor.pointer:#x} for {name!r}")

    def _device_tensor(self, given: Mapping[str, DeviceTensor], spec: EngineTensor) -> DeviceTensor:
        if spec.name not in given:
            raise UserError(f"{self._path}: no device memory for {spec.name!r}")
        if given[spec.name].dtype != spec.dtype:
            raise UserError(
                f"{self._path}: {spec.name!r} is {given[spec.name].dtype}, "
                f"the engine takes {spec.dtype}"
            )
        return given[spec.name]

    def _check_shape(self, tensor: EngineTensor, shape: Shape) -> None:
        lowest = highest = tensor.shape
        if -1 in tensor.shape:
            limits = self._engine.get_tensor_profile_shape(tensor.name, _PROFILE)
            lowest, highest = tuple(limits[0]), tuple(limits[2])
        if len(shape) != len(tensor.shape) or not all(
            low <= extent <= high for low, extent, high in zip(lowest, shape, highest, strict=True)
        ):
            takes = list(lowest) if lowest == highest else f"{list(lowest)} to {list(highest)}"
            raise UserError(
                f"{self._path}: input {tensor.name!r} has shape {list(shape)}, the engine takes "
                f"{takes}; build it for such shapes (trtexec --minShapes --maxShapes)"
            )

    def _failed(self, what: str) -> UserError:
        reason = self._messages.last()
        return UserError(f"{self._path}: TensorRT failed ({what}): {reason}; check the GPU memory")


def _require_gpu() -> None:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(library)
        works = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except OSError:
        works = False
    if not works or count.value == 0:
        raise UserError(
            "engines need an NVIDIA GPU and its driver, and none was found; run the engine "
            "elsewhere and give what it returned with --engine-outputs"
        )


def _message_collector(trt: Any) -> Any:
    """A TensorRT logger that prints nothing and keeps the latest error."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(message)

        def last(self) -> str:
            return " ".join(self._errors[-1].split()) if self._errors else "no reason was given"

    return Collector()


def _widened(array: AnyArray) -> AnyArray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
