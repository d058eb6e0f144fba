from __future__ import annotations

import math

import numpy as np
import pytest

from qvd_trt.export.metrics import decibels, psnr, sqnr

ONES = np.ones(4, np.float32)


def test_sqnr_is_the_ratio_of_powers() -> None:
    reference = np.array([3, -4], np.float32)
    assert sqnr(reference, reference + np.float32(0.5)) == pytest.approx(10 * math.log10(25 / 0.5))
    assert decibels(100.0, 1.0) == pytest.approx(20.0)


def test_psnr_is_relative_to_the_range() -> None:
    error = np.full(4, 0.1, np.float32)
    assert psnr(ONES, ONES + error, 2.0) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4)
    assert psnr(ONES, ONES + error, 20.0) - psnr(ONES, ONES + error, 2.0) == pytest.approx(20.0)


def test_what_has_no_psnr() -> None:
    assert psnr(ONES, ONES, 0.0) == math.inf
    assert psnr(ONES, ONES + 1, 0.0) == -math.inf
    assert psnr(ONES, np.full(4, np.inf, np.float32), 2.0) == -math.inf
    assert psnr(ONES, np.full(4, np.nan, np.float32), 2.0) == -math.inf
