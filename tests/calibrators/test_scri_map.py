"""SCRI's map per channel, and that the folded layer is the original one."""

from __future__ import annotations

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms.problem import (
    layer_output,
    output_error,
    reference_output,
    transformed_rows,
)
from qvd_trt.calibrators.algorithms.scri_map import (
    half_range,
    mid_shift,
    smooth_scale,
    weight_reach,
)
from qvd_trt.export.plan.fold_math import folded_weight, reciprocal, shift_bias
from qvd_trt.export.plan.quant_plan import ActivationQuant
from tests.calibrators.made_up_sites import SHAPES, conv, linear, product, scattered, site_problem


class TestScri:
    def test_mid_shift_and_half_range(self) -> None:
        values = np.array([[-1.0, 2], [3, 8], [0, 4]], np.float32)
        problem = site_problem(values, [linear(channels=2)])
        shift = mid_shift(problem)
        np.testing.assert_array_equal(shift, [1, 5])
        np.testing.assert_array_equal(half_range(problem, shift), [2, 3])
        np.testing.assert_array_equal(half_range(problem, None), [3, 8])

    @pytest.mark.parametrize("alpha", [0.35, 0.5, 1.0])
    def test_smooth_scale_is_the_formula(self, alpha: float) -> None:
        problem = site_problem(scattered(2), [linear("q"), linear("k")])
        ranges = half_range(problem, None)
        smooth = smooth_scale(ranges, weight_reach(problem), alpha)
        reach = np.maximum(*(np.abs(w).max(axis=(0, 2)) for w in problem.weights.values()))
        formula = ranges**alpha / reach ** (1 - alpha)
        np.testing.assert_allclose(smooth / smooth[0], formula / formula[0], rtol=1e-4)
        assert (ranges / smooth).max() == pytest.approx(ranges.max(), rel=1e-5)
        if alpha == 1:
            np.testing.assert_allclose(ranges / smooth, ranges.max(), rtol=1e-5)

    @pytest.mark.parametrize("alpha", [0.35, 0.5, 0.65, 0.8, 1.0])
    def test_scales_of_dead_channels_stay_within_float16(self, alpha: float) -> None:
        """A channel of zeros and a channel that no weight reads: the others count as 1.

        Both get a range (or reach) of 1e-4 of the largest: `s = 1e-4^a` and `1 / 1e-4^(1-a)`. The
        graph multiplies by `1 / s`, in float16 too, where 65504 is the end.
        """
        values = np.tile(np.array([[1.0], [-1.0]], np.float32), (32, 16))
        values[:, 3] = 0
        problem = site_problem(values, [linear()])
        problem.weights["linear"][:] = 1
        problem.weights["linear"][:, 5] = 0
        smooth = smooth_scale(half_range(problem, None), weight_reach(problem), alpha)
        expected = np.ones(16)
        expected[3], expected[5] = 1e-4**alpha, 1e4 ** (1 - alpha)
        np.testing.assert_allclose(smooth / smooth[0], expected, rtol=1e-4)
        assert smooth[0] == pytest.approx(1, rel=1e-6)
        assert np.isfinite(reciprocal(smooth).astype(np.float16)).all()

    def test_weight_reach_of_a_grouped_convolution(self) -> None:
        """Every group's weights meet its own channels only."""
        problem = site_problem(scattered(2), [conv(groups=2)])
        problem.weights["conv"][12:] *= 50  # the filters of the second group
        weight = problem.weights["conv"]
        expected = np.concatenate([np.abs(part).max(axis=(0, 2)) for part in np.split(weight, 2)])
        np.testing.assert_array_equal(weight_reach(problem), expected)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_folded_layer_is_the_original(self, shape: str) -> None:
        """In the windows of a convolution too, with the zeros of its padding."""
        rng = np.random.default_rng(4)
        problem = site_problem(scattered(4), SHAPES[shape])
        activation = ActivationQuant(
            8,
            1.0,
            rng.normal(size=16).astype(np.float32),
            np.exp(rng.normal(size=16)).astype(np.float32),
        )
        for layer in problem.site.layers:
            rows, weight = problem.rows(layer), problem.weights[layer.name]
            if layer.window.padded:
                assert (rows == 0).all(axis=1).any()
            expected = product(layer, rows.astype(np.float64), weight)
            folded = folded_weight(layer, weight, activation)
            gained = shift_bias(layer, weight, activation)
            assert gained is not None
            output = layer_output(layer, transformed_rows(rows, activation), folded) + gained
            scale = np.abs(expected).max()
            np.testing.assert_allclose(output / scale, expected / scale, atol=1e-5)
            # Negative control: nothing of it may be left out.
            for wrong in (
                layer_output(layer, transformed_rows(rows, activation), folded),
                layer_output(layer, transformed_rows(rows, activation), weight) + gained,
                layer_output(layer, rows, folded) + gained,
            ):
                assert np.abs(wrong - expected).max() > 1e-3 * scale

    def test_map_is_rounded_as_the_graph_rounds_it(self) -> None:
        rows = scattered(5)[:, :, None]
        smooth = np.exp(np.random.default_rng(0).normal(size=16)).astype(np.float32)
        activation = ActivationQuant(8, 1.0, None, smooth)
        expected = rows * reciprocal(smooth)[None, :, None]
        np.testing.assert_array_equal(transformed_rows(rows, activation), expected)
        assert (rows / smooth[None, :, None] != expected).any()

    def test_error_without_rounding_is_nothing(self) -> None:
        problem = site_problem(scattered(6), [conv(groups=2)])
        (layer,) = problem.site.layers
        reference = reference_output(problem, layer)
        error = output_error(problem, layer, reference, None, None)
        np.testing.assert_array_equal(error, 0)
        expected = product(layer, problem.rows(layer).astype(np.float64), problem.weights["conv"])
        np.testing.assert_allclose(reference.output, expected, rtol=1e-3, atol=1e-3)
