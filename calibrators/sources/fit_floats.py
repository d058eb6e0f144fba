"""Recorded floats of one width for a model that takes another: a recording serves fp16 and fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.signature import ModelSignature

_FITTING = (np.dtype(np.float16), np.dtype(np.float32))


def fit_floats(inputs: Mapping[str, AnyArray], signature: ModelSignature) -> dict[str, AnyArray]:
    """One call's arrays, with the 16-bit and 32-bit floats among them in their inputs' dtypes.

    What is wider than its input is rounded, as a pipeline rounds it; what is beyond fp16 becomes
    infinite. Everything else, float64 too, stays as it is, for ``check_inputs`` to judge.
    """
    wanted = {spec.name: spec.dtype for spec in signature.inputs}
    return {
        name: fit_float(array, wanted[name]) if name in wanted else array
        for name, array in inputs.items()
    }


def fit_float(array: AnyArray, dtype: str) -> AnyArray:
    """The array in an input's dtype, if both are floats of 16 or 32 bits; else as it is."""
    target = np.dtype(dtype)
    if array.dtype == target or target not in _FITTING:
        return array
    if is_bfloat16(array.dtype):
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype not in _FITTING:
        return array
    with np.errstate(over="ignore"):
        return array.astype(target)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether these are bfloat16 numbers of ``ml_dtypes``, which ``.npz`` files hold as bytes."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
