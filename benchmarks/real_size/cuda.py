"""The few calls of the CUDA runtime that timing an engine needs, through ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PLACES = (
    "usr/local/cuda/lib64/libcudart.so*",
    "usr/local/cuda*/targets/*/lib/libcudart.so*",
    "usr/lib/*/libcudart.so*",
)
_TO_DEVICE, _TO_HOST = 1, 2
_CAPTURE_THREAD_LOCAL = 1


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed."""


class Cuda:
    """One stream of the current device; graphs, events and memory are freed with the process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_find_runtime())
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        stream = c_void_p()
        self._call("cudaStreamCreate", byref(stream))
        self._stream = stream
        assert stream.value is not None
        self.stream: int = stream.value

    def allocate(self, size: int) -> int:
        """Address of new device memory."""
        pointer = c_void_p()
        self._call("cudaMalloc", byref(pointer), c_size_t(max(size, 1)))
        return pointer.value or 0

    def upload(self, array: npt.NDArray[Any]) -> int:
        """Address of a device copy of the array."""
        array = np.ascontiguousarray(array)
        pointer = self.allocate(array.nbytes)
        self._copy(pointer, array.ctypes.data, array.nbytes, _TO_DEVICE)
        return pointer

    def download(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copy device memory into the array."""
        self._copy(array.ctypes.data, pointer, array.nbytes, _TO_HOST)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A function that launches what ``enqueue`` puts on the stream, as one graph.

        Raises:
            CudaError: something in it cannot be captured.
        """
        graph, executable = c_void_p(), c_void_p()
        self._call("cudaStreamBeginCapture", self._stream, c_int(_CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        finally:
            self._call("cudaStreamEndCapture", self._stream, byref(graph))
        # CUDA 12's form; CUDA 11 takes two more arguments and ignores null ones.
        zeros = (c_void_p(), c_void_p(), c_size_t(0))
        self._call("cudaGraphInstantiate", byref(executable), graph, *zeros)

        def launch() -> None:
            self._call("cudaGraphLaunch", executable, self._stream)

        return launch

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Time of what ``work`` puts on the stream, between two events."""
        start, stop = c_void_p(), c_void_p()
        for event in (start, stop):
            self._call("cudaEventCreate", byref(event))
        self._call("cudaEventRecord", start, self._stream)
        work()
        self._call("cudaEventRecord", stop, self._stream)
        self._call("cudaEventSynchronize", stop)
        elapsed = c_float()
        self._call("cudaEventElapsedTime", byref(elapsed), start, stop)
        for event in (start, stop):
            self._call("cudaEventDestroy", event)
        return elapsed.value

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        pointers = c_void_p(target), c_void_p(source)
        self._call("cudaMemcpy", *pointers, c_size_t(size), c_int(kind))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            reason = self._library.cudaGetErrorString(code).decode()
            raise CudaError(f"{name}: {reason} ({code})")


def _find_runtime() -> str:
    """Path of libcudart: the system's, else the newest in the usual places."""
    found = sorted(str(path) for place in _PLACES for path in Path("/").glob(place))
    name = ctypes.util.find_library("cudart") or (found[-1] if found else None)
    if name is None:
        raise CudaError(f"no libcudart in /{', /'.join(_PLACES)}; set LD_LIBRARY_PATH")
    return name
