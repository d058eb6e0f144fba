"""Where TensorRT takes its kernels from."""

from __future__ import annotations

from typing import Any

_LIBRARIES = frozenset({"CUBLAS", "CUBLAS_LT", "CUDNN"})


def own_tactic_sources(tensorrt: Any) -> list[Any]:
    """All sources but cuBLAS and cuDNN, which TensorRT 8.6 else needs for plugins."""
    members = tensorrt.TacticSource.__members__
    return [getattr(tensorrt.TacticSource, name) for name in sorted(set(members) - _LIBRARIES)]
