"""Casting a call's arrays to what a model takes, without changing what they say."""

from __future__ import annotations

import numpy as np

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError


def cast_exactly(array: AnyArray, dtype: str, what: str) -> AnyArray:
    """The array in another dtype.

    Floats may be rounded to narrower floats. Everything else must keep its value: int64 timesteps
    become int32 or float32, and floats become integers only where they are integral.

    Args:
        array: Any shape.
        dtype: Name of a numpy dtype.
        what: Names the array in the error.

    Raises:
        UserError: a value cannot be kept, or numpy lacks the dtype.
    """
    try:
        target = np.dtype(dtype)
    except TypeError as error:
        raise UserError(
            f"{what} is {dtype}, which cannot be given from numpy; build the model with float32 "
            "inputs and outputs, as qvd-export writes them"
        ) from error
    if array.dtype == target:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(target)
    if array.dtype.kind == "f" and target.kind == "f":
        kept = np.isfinite(cast) == np.isfinite(array)
    else:
        kept = cast == array
    if not kept.all():
        value = array[~kept].ravel()[0] if array.ndim else array[()]
        raise UserError(f"{what}: the {array.dtype} value {value} cannot be given as {dtype}")
    return cast
