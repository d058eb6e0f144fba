"""The two measures of an error: SQNR of activations and predictions, PSNR of states and frames."""

from __future__ import annotations

import math

import numpy as np

from qvd_trt.export.arrays import Float32Array

_LEAST_POWER = 1e-30
"""Stands for zero, so that equal arrays get a finite SQNR."""


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two powers; neither counts as less than 1e-30."""
    return float(10 * np.log10(max(signal, _LEAST_POWER) / max(noise, _LEAST_POWER)))


def sqnr(reference: Float32Array, output: Float32Array) -> float:
    """Signal to quantization-noise ratio in dB of two arrays of equal shape."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(output - reference, dtype=np.float64).sum()
    return decibels(float(signal), float(noise))


def psnr(reference: Float32Array, output: Float32Array, data_range: float) -> float:
    """Peak signal to noise ratio in dB of two arrays of equal shape; inf for equal ones.

    It is -inf where the output is not finite, or the data have no range.

    Args:
        reference: What should have come out.
        output: What came out.
        data_range: Greatest minus least value that the data can take.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.square(output - reference, dtype=np.float64).mean())
    if error == 0:
        return math.inf
    if not math.isfinite(error) or not data_range > 0:
        return -math.inf
    return 10 * math.log10(data_range**2 / error)
