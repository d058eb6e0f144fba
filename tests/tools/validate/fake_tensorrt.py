"""A stand-in for the TensorRT module: an engine `y = x + t` on host addresses."""

from __future__ import annotations

import ctypes
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT32", "FP8"])


class ILogger:
    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])

    def log(self, severity: Any, message: str) -> None: ...


class Engine:
    """x: [-1, 4] with 1 to 8 rows, t: int32 [1], y like x."""

    def __init__(self, dtype: DataType) -> None:
        self.dtype = dtype
        self.num_io_tensors = 3

    def get_tensor_name(self, index: int) -> str:
        return ("x", "t", "y")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name == "y" else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.INT32 if name == "t" else self.dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1,) if name == "t" else (-1, 4)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("x", 0)
        return [(1, 4), (2, 4), (8, 4)]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    """Reads and writes the addresses it is given, as the CUDA kernels would."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Array | None] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get("x" if name == "y" else name, (-1, 4))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, memory: Array | None) -> bool:
        """An allocator, here the memory it gives, goes before an address."""
        self.allocators[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        dtype = {DataType.FLOAT: np.float32, DataType.HALF: np.float16}[self.engine.dtype]
        x = view(self.addresses["x"], self.shapes["x"], dtype)
        t = view(self.addresses["t"], (1,), np.int32)
        y = self.allocators.get("y")
        if y is None:
            y = view(self.addresses["y"], self.shapes["x"], dtype)
        y[:] = x + t
        return True


STREAM = 77


def view(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The memory at an address as an array."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_byte * count).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class Runtime:
    """Takes files that hold the name of a dtype."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        name = content.decode()
        if name not in DataType.__members__:
            self._logger.log(ILogger.Severity.ERROR, "Version tag\ndoes not match")
            self._logger.log(ILogger.Severity.INFO, "not this")
            return None
        return Engine(DataType[name])


module = SimpleNamespace(
    ILogger=ILogger,
    Runtime=Runtime,
    TensorIOMode=TensorIOMode,
    init_libnvinfer_plugins=lambda logger, namespace: True,
)


class Runner:
    """Stands for Polygraphy's TrtRunner: it checks dtypes, and leaves an allocator behind."""

    def __init__(self, context: Context) -> None:
        self._context = context
        kinds = {DataType.FLOAT: np.float32, DataType.HALF: np.float16}
        self._dtype = kinds[context.engine.dtype]
        self._buffer: Array = np.zeros((0, 4), self._dtype)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None: ...

    def infer(self, feeds: dict[str, Array]) -> dict[str, Array]:
        assert {name: array.dtype for name, array in feeds.items()} == {
            "x": np.dtype(self._dtype),
            "t": np.dtype(np.int32),
        }
        assert all(array.flags.c_contiguous for array in feeds.values())
        if self._buffer.shape != feeds["x"].shape:
            self._buffer = np.zeros_like(feeds["x"])
        self._context.set_output_allocator("y", self._buffer)
        self._buffer[:] = feeds["x"] + feeds["t"]
        return {"y": self._buffer}
