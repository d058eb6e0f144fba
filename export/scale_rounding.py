"""What a scale becomes in the type that a target's file holds it in."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.export.targets import ScaleType

_SMALLEST_FP16_SCALE = np.float32(2.0**-20)


def representable_scale(scale: Float32Array | np.float32, scale_type: ScaleType) -> Float32Array:
    """The scale as the file will hold it, still float32, so that codes are rounded against it.

    fp16 scales keep at least four bits of a subnormal; smaller ones belong to channels that are
    all but zero.
    """
    array = np.asarray(scale, np.float32)
    if scale_type is ScaleType.FLOAT16:
        array = np.maximum(array, _SMALLEST_FP16_SCALE).astype(np.float16).astype(np.float32)
    return array
