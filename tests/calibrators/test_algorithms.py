"""The algorithms on made-up sites: what each of them is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvd_trt.calibrators.algorithms.algorithm import bias_correction
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.export.plan.quant_plan import Bits
from tests.calibrators.made_up_sites import (
    SHAPES,
    conv,
    linear,
    measured_error,
    scattered,
    site_problem,
)

MEASURING = ("mse", "percentile", "qvd")


class TestEveryAlgorithm:
    def test_registry(self) -> None:
        assert list(ALGORITHMS) == ["qvd", "shift", "smoothquant", "mse", "percentile", "minmax"]
        for name, algorithm in ALGORITHMS.items():
            assert algorithm.name == name
            assert algorithm.temporal_quantizer in CODEBOOKS
            assert algorithm.needs_rows == (name in MEASURING)

    def test_bias_correction_without_sample_rows_is_refused(self) -> None:
        """It would be left out without a word."""
        with pytest.raises(ValueError, match="corrects the bias but needs no sample rows"):
            replace(ALGORITHMS["qvd"], needs_rows=False)

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
        """The reason for the gate (docs/method.md#gate).

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


class TestBiasCorrection:
    def test_removes_a_systematic_error(self) -> None:
        rng = np.random.default_rng(0)
        error = (rng.normal(size=(200, 32)) * 0.1 + rng.normal(size=32)).astype(np.float32)
        corrected = error + bias_correction(error)
        assert np.abs(corrected.mean(axis=0)).max() < 0.1 * np.abs(error.mean(axis=0)).mean()
        assert np.square(corrected).mean() < 0.2 * np.square(error).mean()

    @pytest.mark.parametrize(
        ("mean", "deviation", "expected"),
        [(1.0, 2.0, -0.75), (-3.0, 2.0, 3 * (1 - 4 / 16 / 9)), (0.5, 2.0, 0.0), (0.4, 2.0, 0.0),
         (2.0, 0.0, -2.0), (0.0, 0.0, 0.0)],
    )  # fmt: skip
    def test_is_shrunk_by_the_variance_of_the_mean(
        self, mean: float, deviation: float, expected: float
    ) -> None:
        """Sixteen rows, half of them a deviation above the mean and half below.

        The mean's variance is `deviation^2 / 16`: at a deviation of 2 a quarter of a mean of 1
        squared, so that three quarters of the mean are taken off.
        """
        rows = mean + deviation * np.array([1.0, -1.0] * 8)
        correction = bias_correction(rows[:, None].astype(np.float32))
        np.testing.assert_allclose(correction, [expected], rtol=1e-5, atol=1e-6)

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
