"""The numbers of a comparison."""

from __future__ import annotations

import math

import numpy as np

from qvd_trt.calibrators.arrays import AnyArray, Float32Array
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.sqnr import output_sqnr
from qvd_trt.tools.validation.report import PSNR_DATA_RANGE, Comparison, ErrorMeasure


def measure_error(
    reference: Float32Array, candidate: Float32Array, comparison: Comparison
) -> ErrorMeasure:
    """SQNR and relative RMS error of two arrays.

    Raises:
        UserError: their shapes differ.
    """
    if reference.shape != candidate.shape:
        raise UserError(
            f"{comparison.name}: the {comparison.candidate} output has shape "
            f"{list(candidate.shape)}, that of {comparison.reference} {list(reference.shape)}; "
            "give models and outputs that belong together"
        )
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return ErrorMeasure(-math.inf, math.inf)
    sqnr = output_sqnr(reference, candidate)
    # Equal arrays would get the 1e-15 of the SQNR's guard against a division by zero.
    equal = np.array_equal(reference, candidate)
    return ErrorMeasure(sqnr, 0.0 if equal else 10 ** (-sqnr / 20))


def psnr(reference: Float32Array, candidate: Float32Array) -> float:
    """Peak signal-to-noise ratio in dB for :data:`PSNR_DATA_RANGE`; inf for equal arrays."""
    error = float(np.square(candidate - reference, dtype=np.float64).mean())
    return math.inf if error == 0 else 10 * math.log10(PSNR_DATA_RANGE**2 / error)


def as_float32(output: AnyArray) -> Float32Array:
    """A model's output as it is compared."""
    return np.asarray(output).astype(np.float32, copy=False)
