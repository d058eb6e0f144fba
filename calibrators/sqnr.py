"""Signal to quantization-noise ratio."""

from __future__ import annotations

import numpy as np

from qvd_trt.calibrators.arrays import Float32Array


def output_sqnr(reference: Float32Array, output: Float32Array) -> float:
    """SQNR in dB of two arrays of equal shape."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(output - reference, dtype=np.float64).sum()
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
