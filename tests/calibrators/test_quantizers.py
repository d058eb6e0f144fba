"""The uniform grids of activations and weights, and the layouts of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvd_trt.calibrators.weight_scales import absmax_grid, mse_grid
from qvd_trt.export.plan.fold_math import canonical_weight, per_input_channel, restored_weight
from qvd_trt.export.plan.scale_math import (
    MIN_SCALE,
    activation_levels,
    codes,
    fake_quantized,
    quantize_dequantize,
    scale_for,
    weight_levels,
)
from qvd_trt.export.plan.site_types import Layer, LayerOp
from tests.calibrators.made_up_sites import conv, linear, spread


class TestGrids:
    @pytest.mark.parametrize("bits", [2, 4, 6, 8])
    def test_levels(self, bits: int) -> None:
        values = np.linspace(-3, 3, 4001, dtype=np.float32)
        scale = scale_for(2.0, bits)
        for levels in (activation_levels(bits), weight_levels(bits)):
            found = codes(values, scale, levels)
            assert (found.min(), found.max()) == levels
        assert activation_levels(bits) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert weight_levels(bits)[0] == -weight_levels(bits)[1]

    def test_ties_go_to_even(self) -> None:
        values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
        found = codes(values, np.float32(1), (-128, 127))
        np.testing.assert_array_equal(found, [0, 2, 2, 0, -2])

    def test_scale_is_never_zero(self) -> None:
        assert scale_for(0.0, 8) == MIN_SCALE

    def test_largest_value_is_kept(self) -> None:
        weight = np.random.default_rng(0).normal(size=(8, 16, 9)).astype(np.float32)
        snapped = fake_quantized(weight, absmax_grid(weight, 8))
        largest = np.abs(weight).max(axis=(1, 2))
        np.testing.assert_allclose(np.abs(snapped).max(axis=(1, 2)), largest, rtol=1e-6)
        np.testing.assert_array_less(np.abs(snapped - weight).max(axis=(1, 2)), largest / 253)

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), tail=st.booleans())
    def test_mse_is_never_worse_than_absmax(self, seed: int, bits: int, tail: bool) -> None:
        rng = np.random.default_rng(seed)
        drawn = rng.standard_t(2, (6, 16, 3)) if tail else rng.normal(size=(6, 16, 3))
        weight = drawn.astype(np.float32)
        power = rng.random((1, 16, 3)).astype(np.float32)
        for importance in (None, power):
            errors = [
                (np.square(fake_quantized(weight, grid) - weight)
                 * (1 if importance is None else importance)).sum(axis=(1, 2), dtype=np.float64)
                for grid in (mse_grid(weight, bits, importance), absmax_grid(weight, bits))
            ]  # fmt: skip
            assert (errors[0] <= errors[1] * (1 + 1e-6)).all()

    def test_mse_clips_long_tails(self) -> None:
        weight = np.random.default_rng(0).laplace(size=(6, 64, 9)).astype(np.float32)
        clipped, whole = mse_grid(weight, 4).scales, absmax_grid(weight, 4).scales
        assert (clipped < 0.9 * whole).all()

    def test_importance_decides(self) -> None:
        """Where the outlier's input is silent it may be clipped; where it is loud it may not."""
        weight = np.random.default_rng(0).normal(size=(1, 64, 1)).astype(np.float32)
        weight[0, 0] = 12
        loud, silent = np.ones((1, 64, 1), np.float32), np.ones((1, 64, 1), np.float32)
        loud[0, 0], silent[0, 0] = 100, 0
        assert mse_grid(weight, 4, silent).scales < 0.7 * mse_grid(weight, 4, loud).scales

    def test_quantize_dequantize_is_idempotent(self) -> None:
        values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
        once = quantize_dequantize(values, np.float32(0.03), (-128, 127))
        again = quantize_dequantize(once, np.float32(0.03), (-128, 127))
        np.testing.assert_array_equal(again, once)


class TestWeights:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (linear(), (16, 24)),
            (replace(linear(), op=LayerOp.GEMM, out_axis=0, in_axis=1), (24, 16)),
            (conv(), (24, 16, 3, 3)),
            (conv(groups=2), (24, 8, 3, 3)),
        ],
    )
    def test_canonical_layout_and_back(self, layer: Layer, shape: tuple[int, ...]) -> None:
        weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        canonical = canonical_weight(layer, weight)
        assert canonical.shape == (24, 16 // layer.groups, layer.window.taps)
        np.testing.assert_array_equal(restored_weight(layer, canonical, shape), weight)
        integers = np.rint(canonical * 9).astype(np.int8)
        assert restored_weight(layer, integers, shape).dtype == np.int8
        if layer.op is LayerOp.MATMUL:
            np.testing.assert_array_equal(canonical[3, :, 0], weight[:, 3])

    def test_per_input_channel(self) -> None:
        values = np.arange(16, dtype=np.float32)
        np.testing.assert_array_equal(per_input_channel(conv(), values)[0, :, 0], values)
        grouped = np.broadcast_to(per_input_channel(conv(groups=2), values), (24, 8, 1))
        np.testing.assert_array_equal(grouped, spread(conv(groups=2), values))
