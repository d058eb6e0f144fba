"""Time of an engine by CUDA kernel, also inside of fused regions, through `kernel_trace.cpp`.

    g++ -std=c++17 -O2 -shared -fPIC -I$CUPTI/include -I/usr/local/cuda/include \
        benchmarks/real_size/kernel_trace.cpp -o kernel_trace.so \
        -L$CUPTI/lib -l:libcupti.so.13 -Wl,-rpath,'$ORIGIN'

CUPTI is in /usr/local/cuda/extras/CUPTI, or in the wheel nvidia-cuda-cupti (its major version must
be the driver's); with libcupti.so.13 beside kernel_trace.so both can be carried to another machine.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.real_size.layer_report import FLOAT_PRODUCT, HTDQ, INT8_PRODUCT, OTHER, REFORMAT

TRACED_RUNS = 3
TOP_KERNELS = 30

_KINDS = (
    (REFORMAT, ("cuint8",)),
    (OTHER, ("softmax",)),
    (INT8_PRODUCT, ("i8i32", "i8i8", "int8", "imma", "s8s8", "_s8_", "_i8_")),
    ("attention", ("mha", "flash")),
    (FLOAT_PRODUCT, ("gemm", "conv", "xmma", "cutlass", "cublas", "f16f16", "hmma")),
    (HTDQ, ("htdq",)),
    (REFORMAT, ("copyvectorized", "reformat", "permut", "copypacked", "transpose")),
)
"""Kinds of kernels by parts of their lower-case names; the first that fits: namespace cuInt8 is one
of layouts, and TensorRT's softmax is called xmma like its products."""


class KernelTrace:
    """The loaded library.

    Args:
        library: Path of ``kernel_trace.so``.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library.resolve()))

    def kernels(self, run: Callable[[], None]) -> dict[str, Any]:
        """Milliseconds by kind and of the slowest kernels, for one ``run``, for JSON.

        Raises:
            RuntimeError: CUPTI cannot trace here.
        """
        run()
        self._check(self._library.kernel_trace_start())
        for _ in range(TRACED_RUNS):
            run()
        with tempfile.TemporaryDirectory(prefix="qvd-") as folder:
            path = Path(folder) / "kernels.txt"
            self._check(self._library.kernel_trace_stop(str(path).encode()))
            lines = [line.split(" ", 2) for line in path.read_text(errors="replace").splitlines()]
        found = [(name, int(count), int(time) / 1e6 / TRACED_RUNS) for count, time, name in lines]
        found.sort(key=lambda kernel: -kernel[2])
        total = sum(time for _, _, time in found) or 1.0
        kinds: dict[str, float] = {}
        for name, _, time in found:
            kind = kernel_kind(name)
            kinds[kind] = kinds.get(kind, 0.0) + time
        return {
            "total_ms": round(total, 4),
            "kinds": {
                kind: {"ms": round(time, 4), "share": round(time / total, 4)}
                for kind, time in sorted(kinds.items(), key=lambda item: -item[1])
            },
            "top": [
                {"name": name, "launches": count // TRACED_RUNS, "ms": round(time, 5)}
                for name, count, time in found[:TOP_KERNELS]
            ],
        }

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"CUPTI error {code}")


def kernel_kind(name: str) -> str:
    """What a kernel does, by its name."""
    lower = name.lower()
    return next((kind for kind, parts in _KINDS if any(p in lower for p in parts)), OTHER)
