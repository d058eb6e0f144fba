"""The algorithms on made-up sites: what each of them is for, and the rules around them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvd_trt.calibrators.algorithms.layer_plans import bias_correction
from qvd_trt.calibrators.algorithms.problem import (
    SiteProblem,
    layer_output,
    output_error,
    reference_output,
    transformed_rows,
)
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.algorithms.scri_scale import (
    half_range,
    mid_shift,
    smooth_scale,
    weight_reach,
)
from qvd_trt.calibrators.solve import TEMPORAL_FLOAT, SolveOptions, solve
from qvd_trt.calibrators.statistics.stats import (
    ActivationStats,
    ChannelRanges,
    SampleRows,
    SiteStats,
    TemporalFeatures,
)
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.calibrators.weight_grids import absmax_grid, mse_grid
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.fold_math import (
    canonical_weight,
    folded_weight,
    per_input_channel,
    reciprocal,
    restored_weight,
    shift_bias,
)
from qvd_trt.export.plan.grid import (
    MIN_SCALE,
    activation_levels,
    codes,
    fake_quantized,
    quantize_dequantize,
    scale_for,
    weight_levels,
)
from qvd_trt.export.plan.quant_plan import (
    W8A8,
    ActivationQuant,
    Bits,
    DensePlan,
    QuantPlan,
    WeightQuant,
)
from qvd_trt.export.plan.sites import KeptLayer, Layer, LayerOp, Site, SiteKind, Window

Array = npt.NDArray[Any]
PADDED = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
MEASURING = ("mse", "percentile", "qvd")


def linear(name: str = "linear", channels: int = 16, out: int = 24) -> Layer:
    return Layer(name, LayerOp.MATMUL, f"{name}.w", f"{name}_out", 1, 0, out, channels * out)


def conv(name: str = "conv", channels: int = 16, out: int = 24, groups: int = 1) -> Layer:
    size = channels // groups * out * 9
    return Layer(name, LayerOp.CONV, f"{name}.w", f"{name}_out", 0, 1, out, size, PADDED, groups)


def site_problem(
    values: Array, layers: Sequence[Layer], bits: Bits = W8A8, seed: int = 0
) -> SiteProblem:
    """A site whose activation takes the given `[rows, C]` values; windows are filled with them.

    In a padded window a sixth of the rows has its first three taps outside, where zeros are.
    """
    rng = np.random.default_rng(seed)
    channels = values.shape[1]
    axis = 1 if layers[0].op is LayerOp.CONV else -1
    site = Site("x", SiteKind.DENSE, axis, channels, tuple(layers))
    rows = {}
    for window in site.windows:
        drawn = values[rng.integers(0, len(values), (len(values), window.taps))]
        patches = np.moveaxis(drawn, 1, 2).copy()
        if window.padded:
            patches[::6, :, :3] = 0
        count = len(patches)
        rows[window.key] = SampleRows(
            patches.astype(np.float32), np.sort(rng.random(count)), np.full(count, 5.0)
        )
    ranges = ChannelRanges(
        values.min(axis=0, keepdims=True).astype(np.float32),
        values.max(axis=0, keepdims=True).astype(np.float32),
    )
    weights = {
        layer.name: rng.normal(
            size=(layer.out_channels, channels // layer.groups, layer.window.taps)
        ).astype(np.float32)
        for layer in layers
    }
    return SiteProblem(site, SiteStats(ranges, rows, len(values)), weights, bits)


def scattered(seed: int, channels: int = 16, rows: int = 160, shifted: float = 2.0) -> Array:
    """Channels with scales over two decades and centres far from zero."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 1.5, channels))
    centre = shifted * scale * rng.normal(size=channels)
    values: Array = (rng.normal(size=(rows, channels)) * scale + centre).astype(np.float32)
    return values


def measured_error(problem: SiteProblem, plan: DensePlan) -> float:
    """Mean squared error of the outputs over their power, summed over the layers, by hand."""
    total = 0.0
    for layer, quant in zip(problem.site.layers, plan.layers, strict=True):
        rows, weight = problem.rows(layer).astype(np.float64), problem.weights[layer.name]
        shift: Array = np.zeros(problem.site.channels)
        smooth: Array = np.ones(problem.site.channels)
        used = rows
        if plan.activation is not None:
            if plan.activation.shift is not None:
                shift = plan.activation.shift
            if plan.activation.smooth is not None:
                smooth = plan.activation.smooth
            mapped = (rows - shift[:, None]) / smooth[:, None]
            low, high = activation_levels(plan.activation.bits)
            used = np.clip(np.rint(mapped / plan.activation.scale), low, high)
            used = used * plan.activation.scale
        folded = weight * spread(layer, smooth)
        if quant.weight is not None:
            scales = quant.weight.scales[:, None, None]
            _, high = weight_levels(quant.weight.bits)
            folded = np.clip(np.rint(folded / scales), -high, high) * scales
        output = product(layer, used, folded) + (weight * spread(layer, shift)).sum((1, 2))
        if quant.bias_correction is not None:
            output = output + quant.bias_correction
        expected = product(layer, rows, weight)
        total += float(np.square(output - expected).mean() / np.square(expected).mean())
    return total


def spread(layer: Layer, values: Array) -> Array:
    """A vector over the activation's channels at the weight elements that read them."""
    per_group = len(values) // layer.groups
    group = np.arange(layer.out_channels) // (layer.out_channels // layer.groups)
    found: Array = values.reshape(layer.groups, per_group)[group][:, :, None]
    return found


def product(layer: Layer, rows: Array, weight: Array) -> Array:
    per_group = rows.shape[1] // layer.groups
    per_output = layer.out_channels // layer.groups
    columns = []
    for index in range(layer.out_channels):
        first = index // per_output * per_group
        columns.append((rows[:, first : first + per_group] * weight[index]).sum((1, 2)))
    return np.stack(columns, axis=1)


SHAPES: Mapping[str, Sequence[Layer]] = {
    "linear": [linear()],
    "three that share an input": [linear("q"), linear("k", out=8), linear("v")],
    "padded": [conv()],
    "grouped": [conv(groups=2)],
    "padded and shortcut": [
        conv(), replace(conv("short"), window=Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0))),
    ],
}  # fmt: skip


class TestEveryAlgorithm:
    def test_registry(self) -> None:
        assert list(ALGORITHMS) == ["qvd", "shift", "smoothquant", "mse", "percentile", "minmax"]
        for name, algorithm in ALGORITHMS.items():
            assert algorithm.name == name
            assert algorithm.temporal_quantizer in CODEBOOKS
            assert algorithm.requests().rows == (name in MEASURING)

    @pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a6", "w16a8", "w8a16", "w2a2"])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_solves_every_kind_of_site(self, name: str, shape: str, bits: str) -> None:
        problem = site_problem(scattered(0), SHAPES[shape], Bits.parse(bits))
        plan = ALGORITHMS[name].solve(problem)
        assert (plan.tensor, plan.channel_axis) == ("x", problem.site.channel_axis)
        assert [q.name for q in plan.layers] == [layer.name for layer in problem.site.layers]
        if problem.bits.activation == 16:
            assert plan.activation is None
        else:
            assert plan.activation is not None
            assert plan.activation.bits == problem.bits.activation
            assert plan.activation.scale > 0
            for vector in (plan.activation.shift, plan.activation.smooth):
                if vector is not None:
                    assert vector.shape == (16,)
                    assert vector.dtype == np.float32
                    assert np.isfinite(vector).all()
            if plan.activation.smooth is not None:
                assert (plan.activation.smooth > 0).all()
        for layer, quant in zip(problem.site.layers, plan.layers, strict=True):
            if problem.bits.weight == 16:
                assert quant.weight is None
            else:
                assert quant.weight is not None
                assert quant.weight.scales.shape == (layer.out_channels,)
                assert (quant.weight.scales > 0).all()
            if bits == "w8a8":
                assert measured_error(problem, plan) < 0.05 * len(plan.layers)

    @pytest.mark.parametrize("name", MEASURING)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_stated_sqnr_is_the_true_one(self, name: str, shape: str) -> None:
        for layer in SHAPES[shape]:
            problem = site_problem(scattered(3), [layer])
            (quant,) = (plan := ALGORITHMS[name].solve(problem)).layers
            expected = -10 * np.log10(measured_error(problem, plan))
            assert quant.sqnr == pytest.approx(expected, abs=0.02)

    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_dead_and_constant_channels(self, name: str) -> None:
        values = scattered(1)
        values[:, 3] = 0
        values[:, 7] = 4.5
        problem = site_problem(values, [linear()])
        problem.weights["linear"][:, 5] = 0
        plan = ALGORITHMS[name].solve(problem)
        assert np.isfinite(measured_error(problem, plan))
        assert measured_error(problem, plan) < 0.05

    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_site_that_is_all_zero(self, name: str) -> None:
        problem = site_problem(np.zeros((64, 16), np.float32), [linear()])
        plan = ALGORITHMS[name].solve(problem)
        assert plan.activation is not None
        assert plan.activation.scale > 0
        assert np.isfinite(plan.activation.scale)


class TestQvd:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        shape=st.sampled_from(sorted(SHAPES)),
        bits=st.sampled_from(["w8a8", "w8a6", "w4a8", "w16a8"]),
    )
    def test_never_worse_than_minmax(self, seed: int, shape: str, bits: str) -> None:
        problem = site_problem(scattered(seed), SHAPES[shape], Bits.parse(bits), seed)
        errors = {
            name: measured_error(problem, ALGORITHMS[name].solve(problem))
            for name in ("qvd", "minmax")
        }
        assert errors["qvd"] <= errors["minmax"]

    @pytest.mark.parametrize("seed", range(5))
    def test_far_better_on_scattered_asymmetric_channels(self, seed: int) -> None:
        problem = site_problem(scattered(seed), [linear()], Bits.parse("w16a8"))
        errors = {
            name: measured_error(problem, algorithm.solve(problem))
            for name, algorithm in ALGORITHMS.items()
        }
        assert errors["qvd"] == min(errors.values())
        assert errors["qvd"] < errors["minmax"] / 2

    @pytest.mark.parametrize("seed", range(5))
    def test_shift_alone_can_be_worse_than_nothing(self, seed: int) -> None:
        """The reason for the gate (METHOD, SCRI).

        Channels of scattered scales that the next weights undo, mostly near zero with a tail on
        one side: a small channel has the code 0 throughout, which a mid shift moves to the middle
        of its range, far from where its values are.
        """
        rng = np.random.default_rng(seed)
        scale = np.exp(rng.normal(0, 2, 16)).astype(np.float32)
        values = np.maximum(rng.normal(size=(160, 16)) - 1.5, 0).astype(np.float32) * scale
        problem = site_problem(values, [linear()], Bits.parse("w16a8"))
        problem.weights["linear"][:] /= scale[None, :, None]
        errors = {
            name: measured_error(problem, ALGORITHMS[name].solve(problem))
            for name in ("qvd", "shift", "minmax")
        }
        assert errors["shift"] > 2 * errors["minmax"]
        assert errors["qvd"] < 0.1 * errors["minmax"]

    def test_padding_must_pay_for_itself(self) -> None:
        """A centred activation gains nothing from a shift: no Pad node is worth it."""
        values = np.random.default_rng(0).normal(size=(160, 16)).astype(np.float32)
        values = np.concatenate([values, -values])
        plan = ALGORITHMS["qvd"].solve(site_problem(values, [conv()]))
        assert plan.activation is not None
        assert plan.activation.shift is None

    @pytest.mark.parametrize("may_shift", [False, True])
    @pytest.mark.parametrize("name", ["qvd", "shift"])
    def test_shift_that_the_runtime_does_not_want(self, name: str, may_shift: bool) -> None:
        problem = replace(site_problem(scattered(0, shifted=9.0), [conv()]), may_shift=may_shift)
        activation = ALGORITHMS[name].solve(problem).activation
        assert activation is not None
        assert (activation.shift is not None) == may_shift
        assert (activation.smooth is not None) == (name == "qvd")

    def test_zero_belongs_to_the_range_of_a_padded_site(self) -> None:
        values = 5 + np.random.default_rng(0).random((64, 16)).astype(np.float32)
        low, high = site_problem(values, [linear()]).channel_range()
        assert low.min() >= 5
        low, high = site_problem(values, [conv()]).channel_range()
        assert (low == 0).all()
        assert high.min() > 5


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
        smooth = smooth_scale(problem, ranges, alpha)
        reach = np.maximum(*(np.abs(w).max(axis=(0, 2)) for w in problem.weights.values()))
        formula = ranges**alpha / reach ** (1 - alpha)
        np.testing.assert_allclose(smooth / smooth[0], formula / formula[0], rtol=1e-4)
        assert (ranges / smooth).max() == pytest.approx(ranges.max(), rel=1e-5)
        if alpha == 1:
            np.testing.assert_allclose(ranges / smooth, ranges.max(), rtol=1e-5)

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


class TestBiasCorrection:
    def test_removes_a_systematic_error(self) -> None:
        rng = np.random.default_rng(0)
        error = (rng.normal(size=(200, 32)) * 0.1 + rng.normal(size=32)).astype(np.float32)
        corrected = error + bias_correction(error)
        assert np.abs(corrected.mean(axis=0)).max() < 0.1 * np.abs(error.mean(axis=0)).mean()
        assert np.square(corrected).mean() < 0.2 * np.square(error).mean()

    def test_adds_no_noise_to_an_error_without_mean(self) -> None:
        """On fresh rows: the plain mean would add its own sampling noise, var / rows."""
        rng = np.random.default_rng(1)
        seen, fresh = rng.normal(size=(2, 64, 4000)).astype(np.float32)
        correction = bias_correction(seen)
        plain = -seen.mean(axis=0)
        assert (correction == 0).mean() > 0.6
        assert np.square(correction).mean() < 0.4 * np.square(plain).mean()
        added = np.square(fresh + correction).mean() - np.square(fresh).mean()
        assert added < 0.4 * (np.square(fresh + plain).mean() - np.square(fresh).mean())

    def test_never_beyond_the_mean(self) -> None:
        error = np.random.default_rng(2).normal(0.1, 1, (50, 100)).astype(np.float32)
        correction, mean = bias_correction(error), error.mean(axis=0)
        assert (np.abs(correction) <= np.abs(mean) + 1e-6).all()
        assert (correction * mean <= 0).all()

    def test_improves_the_plan(self) -> None:
        """Where clipping is one-sided, the output's mean moves."""
        values = np.maximum(scattered(3), 0) ** 2
        problem = site_problem(values, [linear()], Bits.parse("w8a4"))
        plan = ALGORITHMS["qvd"].solve(problem)
        without = replace(
            plan, layers=tuple(replace(quant, bias_correction=None) for quant in plan.layers)
        )
        assert measured_error(problem, plan) <= measured_error(problem, without)
        assert plan.layers[0].bias_correction is not None


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


class TestSolve:
    """The rules around the algorithms: what becomes of layers that do not pay."""

    def solve(
        self,
        layers: Sequence[Layer],
        *,
        algorithm: str = "qvd",
        bits: Bits = W8A8,
        min_sqnr: float | None = None,
        rows: bool = True,
        rows_per_call: float = 100,
        temporal: Sequence[Layer] = (),
        quantizer: str = "hidi",
        values: Array | None = None,
        shift_padded: bool = True,
    ) -> QuantPlan:
        problem = site_problem(scattered(0) if values is None else values, layers, bits)
        sites = [problem.site] if layers else []
        feature = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
        stats = ActivationStats(
            model_hash="sha256:x",
            samples=3,
            timesteps=np.array([5.0]),
            sites={"x": problem.stats if rows else replace(problem.stats, rows={})},
            temporal={"t": TemporalFeatures(feature, np.arange(20.0))},
            output_elements={
                layer.name: rows_per_call * layer.out_channels for layer in (*layers, *temporal)
            },
        )
        weights = {
            layer.weight: restored_weight(layer, problem.weights[layer.name], (24, 16, 3, 3))
            for layer in layers
        }
        weights |= {layer.weight: np.ones((16, 24), np.float32) for layer in temporal}
        seen: list[None] = []
        sites_of_time = [Site("t", SiteKind.TEMPORAL, -1, 16, tuple(temporal))] if temporal else []
        plan = solve(
            sites,
            sites_of_time,
            [KeptLayer("known", "Conv", "first layer")],
            stats,
            weights.__getitem__,
            SolveOptions(bits, ALGORITHMS[algorithm], quantizer, min_sqnr, shift_padded),
            lambda: seen.append(None),
        )
        assert len(seen) == len(sites) + len(sites_of_time)
        return plan

    @pytest.mark.parametrize("bits", ["w4a8", "w8a6", "w16a8", "w8a16"])
    def test_widths(self, bits: str) -> None:
        plan = self.solve([linear()], bits=Bits.parse(bits), temporal=[linear("p")])
        (site,) = plan.dense
        weight, activation = site.layers[0].weight, site.activation
        assert (weight.bits if weight else 16) == plan.bits.weight
        assert (activation.bits if activation else 16) == plan.bits.activation
        assert site.layers[0].sqnr is not None
        assert site.layers[0].sqnr > 15
        if bits == "w8a16":
            assert plan.temporal == ()
            assert plan.kept[-1] == KeptLayer("p", "MatMul", "temporal site, kept float")
        else:
            assert len(plan.temporal[0].codebook.levels) <= 2**plan.bits.activation

    def test_sqnr_falls_with_the_width(self) -> None:
        found = [
            self.solve([linear()], bits=Bits.parse(bits)).dense[0].layers[0].sqnr
            for bits in ("w8a8", "w8a6", "w4a6", "w2a2")
        ]
        assert len(found) == 4
        for wider, narrower in itertools.pairwise(found):
            assert wider is not None
            assert narrower is not None
            assert wider > narrower + 3

    def test_no_shift_before_padding(self) -> None:
        for layer, shift_padded, shifted in (
            (conv(), True, True),
            (conv(), False, False),
            (linear(), False, True),
        ):
            values = scattered(0, shifted=9.0)
            (site,) = self.solve([layer], values=values, shift_padded=shift_padded).dense
            assert site.activation is not None
            assert (site.activation.shift is not None) == shifted

    def test_kept_layers_are_passed_on(self) -> None:
        assert self.solve([linear()]).kept == (KeptLayer("known", "Conv", "first layer"),)

    def test_min_sqnr(self) -> None:
        layers = [linear("q"), linear("k")]
        found = self.solve(layers).dense[0].layers
        low, high = sorted(quant.sqnr or 0 for quant in found)
        assert low < high
        plan = self.solve(layers, min_sqnr=(low + high) / 2)
        (site,) = plan.dense
        assert [quant.sqnr for quant in site.layers] == [high]
        kept = plan.kept[-1]
        assert kept.op == "MatMul"
        assert kept.reason == f"output SQNR {low:.1f} dB is below --min-sqnr {(low + high) / 2:g}"

    def test_min_sqnr_that_nothing_reaches(self) -> None:
        plan = self.solve([linear("q"), linear("k")], min_sqnr=200)
        assert plan.dense == ()
        assert [layer.name for layer in plan.kept] == ["known", "q", "k"]

    @pytest.mark.parametrize("algorithm", ["minmax", "shift", "smoothquant"])
    def test_min_sqnr_needs_a_measurement(self, algorithm: str) -> None:
        # Statistics without rows are those that these algorithms ask for.
        with pytest.raises(UserError, match="--min-sqnr needs an algorithm"):
            self.solve([linear()], algorithm=algorithm, min_sqnr=20, rows=False)

    @pytest.mark.parametrize(("rows", "quantized"), [(15.9, False), (16, True), (1, False)])
    def test_matrix_vector_products_stay_float(self, rows: float, quantized: bool) -> None:
        plan = self.solve([linear()], rows_per_call=rows)
        assert bool(plan.dense) == quantized
        if not quantized:
            assert plan.kept[-1].name == "linear"
            assert f"reads {rows:.0f} rows per call" in plan.kept[-1].reason

    def test_convolutions_have_no_such_rule(self) -> None:
        assert self.solve([conv()], rows_per_call=1).dense

    def test_temporal_sites_kept_float_on_request(self) -> None:
        plan = self.solve([linear()], temporal=[linear("p")], quantizer=TEMPORAL_FLOAT)
        assert plan.temporal == ()
        assert plan.kept[-1] == KeptLayer("p", "MatMul", "temporal site, kept float")

    @pytest.mark.parametrize("quantizer", sorted(CODEBOOKS))
    def test_temporal_plan(self, quantizer: str) -> None:
        (site,) = self.solve([linear()], temporal=[linear("p")], quantizer=quantizer).temporal
        assert (site.tensor, site.quantizer) == ("t", quantizer)
        assert site.td_score_after <= 1
        if quantizer == "uniform":
            assert site.td_score_after == site.td_score_before

    def test_statistics_without_the_site(self) -> None:
        problem = site_problem(scattered(0), [linear()])
        stats = ActivationStats(
            "sha256:x", 1, np.array([5.0]), {}, {}, {"linear": 2400.0, "p": 2400.0}
        )
        options = SolveOptions(W8A8, ALGORITHMS["minmax"], "hidi")
        weight = np.ones((16, 24), np.float32)
        with pytest.raises(UserError, match="no site 'x'"):
            solve([problem.site], [], [], stats, lambda _: weight, options)
        temporal = Site("t", SiteKind.TEMPORAL, -1, 16, (linear("p"),))
        with pytest.raises(UserError, match="no feature 't'"):
            solve([], [temporal], [], stats, lambda _: weight, options)

    def test_statistics_without_rows(self) -> None:
        problem = site_problem(scattered(0), [linear()])
        bare = replace(problem.stats, rows={})
        stats = ActivationStats("sha256:x", 1, np.array([5.0]), {"x": bare}, {}, {"linear": 2400.0})
        weight = np.ones((16, 24), np.float32)

        def solved(name: str) -> QuantPlan:
            options = SolveOptions(W8A8, ALGORITHMS[name], "hidi")
            return solve([problem.site], [], [], stats, lambda _: weight, options)

        with pytest.raises(UserError, match="no sample rows, which --algorithm qvd needs"):
            solved("qvd")
        quant = solved("minmax").dense[0].layers[0]
        assert quant.sqnr is None
        assert isinstance(quant.weight, WeightQuant)
