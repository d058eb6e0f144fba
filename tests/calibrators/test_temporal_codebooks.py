from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qvd_trt.calibrators.statistics.activation_stats import TemporalFeatures
from qvd_trt.calibrators.temporal import weighted_values
from qvd_trt.calibrators.temporal.codebooks import (
    CODEBOOKS,
    best_mu_law,
    codebook_from_levels,
    least_error_levels,
)
from qvd_trt.calibrators.temporal.hidi import hidi_row_weights
from qvd_trt.calibrators.temporal.td_score import td_score
from qvd_trt.calibrators.temporal.weighted_values import collect
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.plan.quant_plan import Codebook

NAMES = sorted(CODEBOOKS)


def temporal(values: AnyArray) -> TemporalFeatures:
    return TemporalFeatures(
        values.astype(np.float32),
        np.arange(len(values), dtype=np.float64),
        np.ones(len(values), np.uint8),
    )


def silu_features(steps: int = 200, channels: int = 64, seed: int = 0) -> TemporalFeatures:
    """A sinusoidal embedding through a random MLP with log-normal gains, then SiLU: skewed."""
    rng = np.random.default_rng(seed)
    timesteps = np.linspace(0.0, 999.0, steps)
    angles = timesteps[:, None] * np.exp(-np.log(10000.0) * np.arange(32) / 32)
    embedding = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    hidden = silu(embedding @ rng.normal(size=(64, channels)) / 6)
    gains = np.exp(1.2 * rng.normal(size=channels)) * 2
    mixed = hidden @ rng.normal(size=(channels, channels)) / np.sqrt(channels) * gains - 1
    return TemporalFeatures(
        silu(mixed).astype(np.float32), timesteps, np.ones(len(timesteps), np.uint8)
    )


def silu(x: AnyArray) -> AnyArray:
    return x * (0.5 + 0.5 * np.tanh(x / 2))


def squared_error(codebook: Codebook, values: AnyArray) -> float:
    return float(np.square(codebook(values).astype(np.float64) - values).sum())


finite = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
features = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=finite
).map(temporal)


def assert_valid(codebook: Codebook, bits: int) -> None:
    levels, thresholds = codebook.levels, codebook.thresholds
    assert levels.dtype == thresholds.dtype == np.float32
    assert 2 <= len(levels) <= max(2, 2**bits)
    assert len(thresholds) == len(levels) - 1
    assert np.isfinite(levels).all()
    assert (levels[1:] > levels[:-1]).all()
    assert (thresholds[1:] >= thresholds[:-1]).all()
    np.testing.assert_array_equal(codebook(levels), levels)


@pytest.mark.parametrize("name", NAMES)
@given(feature=features, bits=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_codebook_is_valid_idempotent_and_monotone(
    name: str, feature: TemporalFeatures, bits: int
) -> None:
    codebook = CODEBOOKS[name](feature, bits)
    assert_valid(codebook, bits)
    quantized = codebook(feature.values)
    np.testing.assert_array_equal(codebook(quantized), quantized)
    order = np.sort(feature.values, axis=None)
    assert (np.diff(codebook(order)) >= 0).all()


@given(feature=features, bits=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_quantizing_takes_the_nearest_level(feature: TemporalFeatures, bits: int) -> None:
    codebook = CODEBOOKS["mu-law"](feature, bits)
    values = feature.values.reshape(-1, 1).astype(np.float64)
    nearest = np.abs(values - codebook.levels).min(axis=1)
    error = np.abs(values[:, 0] - codebook(values[:, 0]))
    # A threshold is a float32: it may lie half a float32 step from the true midpoint.
    assert (error <= nearest + np.spacing(np.abs(values[:, 0]).astype(np.float32))).all()


@pytest.mark.parametrize("name", ["lloyd-max", "hidi"])
@given(
    values=hnp.arrays(
        np.float32, (4, 8), elements=st.sampled_from([-2.5, -0.125, 0.0, 1e-6, 0.5, 7.0, 1e4])
    ),
    bits=st.integers(3, 8),
)
@settings(max_examples=40, deadline=None)
def test_few_distinct_values_are_kept_exactly(name: str, values: AnyArray, bits: int) -> None:
    feature = temporal(values)
    codebook = CODEBOOKS[name](feature, bits)
    np.testing.assert_array_equal(codebook(feature.values), feature.values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3e-8, 6e4, 1.7e38, -1.7e38])
def test_a_constant_feature_has_two_levels_and_stays(name: str, value: float) -> None:
    feature = temporal(np.full((3, 2), value))
    codebook = CODEBOOKS[name](feature, 4)
    assert_valid(codebook, 4)
    np.testing.assert_allclose(codebook(feature.values), feature.values, rtol=1e-6)


@given(feature=features, bits=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_lloyd_is_never_worse_than_its_start(feature: TemporalFeatures, bits: int) -> None:
    data = collect(feature)
    start = codebook_from_levels(best_mu_law(data, 2**bits))
    found = codebook_from_levels(least_error_levels(data, 2**bits))
    assert data.error(found) <= data.error(start)


@given(feature=features, bits=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_running_sums_equal_the_direct_error(feature: TemporalFeatures, bits: int) -> None:
    weights = np.linspace(0.5, 2.0, len(feature.values))
    data = collect(feature, weights)
    values = feature.values.astype(np.float64)
    levels = np.sort(np.linspace(values.flat[0], values.flat[-1], 2**bits))
    direct = (np.square(values[..., None] - levels).min(axis=-1) * weights[:, None]).sum()
    scale = (np.square(values) * weights[:, None]).sum() + np.square(levels).max()
    assert data.grid_error(levels) == pytest.approx(direct, abs=1e-10 * scale)


def test_lloyd_reaches_the_optimum_of_dynamic_programming() -> None:
    values = np.sort(silu_features(12, 10).values.reshape(-1)).astype(np.float64)
    best = optimal_error(values, 8)
    found = squared_error(CODEBOOKS["lloyd-max"](temporal(values[:, None]), 3), values)
    assert best <= found * (1 + 1e-6)
    assert found <= 1.35 * best


def optimal_error(values: AnyArray, count: int) -> float:
    """Least squared error of any ``count`` levels: exact k-means of sorted values."""
    n = len(values)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            cost[i, j] = np.square(values[i:j] - values[i:j].mean()).sum()
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    for _ in range(count):
        best = np.array([min(best[i] + cost[i, j] for i in range(j + 1)) for j in range(n + 1)])
    return float(best[n])


def test_weights_pull_levels_towards_heavy_rows() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(0, 1, 400), rng.uniform(2, 3, 400)]).astype(np.float32)
    data = collect(temporal(values))
    heavier = collect(temporal(values), np.array([1.0, 100.0]))
    even, heavy = (codebook_from_levels(least_error_levels(d, 8)) for d in (data, heavier))
    assert (heavy.levels > 1.5).sum() > (even.levels > 1.5).sum()
    assert squared_error(heavy, values[1]) < squared_error(even, values[1])


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("seed", range(3))
def test_hidi_beats_uniform_on_skewed_features(bits: int, seed: int) -> None:
    feature = silu_features(seed=seed)
    score = {
        name: td_score(feature.values, build(feature, bits)(feature.values), feature.timesteps)
        for name, build in CODEBOOKS.items()
    }
    assert score["hidi"] > score["uniform"] + 0.01
    assert score["hidi"] > score["log2"]
    assert score["hidi"] >= score["lloyd-max"] - 0.02


def test_expected_ranking_of_squared_errors() -> None:
    feature = silu_features()
    error = {n: squared_error(b(feature, 6), feature.values) for n, b in CODEBOOKS.items()}
    order = ["lloyd-max", "hidi", "mu-law", "log2-uniform", "uniform-asymmetric"]
    assert sorted(error, key=error.__getitem__)[:5] == order
    assert max(error["uniform"], error["log2"]) == max(error.values())


def test_row_weights_follow_the_separation_and_are_bounded() -> None:
    values = np.array([[0.0], [1.0], [3.0], [3.0 + 1e-6], [10.0]])
    weights = hidi_row_weights(temporal(values))
    assert weights[2] == weights[3] == weights.max() <= 1e4
    assert weights[1] > weights[4] > 0
    np.testing.assert_array_equal(hidi_row_weights(temporal(np.ones((3, 2)))), np.ones(3))


def test_adjacent_floats_stay_apart() -> None:
    base = np.float32(1.0)
    levels = np.array([base, np.nextafter(base, np.float32(2)), 2.0], np.float32)
    for shifted in (levels, -levels):
        codebook = codebook_from_levels(shifted)
        assert len(codebook.levels) == 3
        assert_valid(codebook, 2)


def test_a_plain_rounded_midpoint_would_not_keep_adjacent_floats_apart() -> None:
    low = np.nextafter(np.float32(1.0), np.float32(2.0))
    high = np.nextafter(low, np.float32(2.0))
    naive = Codebook(np.array([low, high]), np.array([(float(low) + float(high)) / 2], np.float32))
    assert naive(naive.levels)[1] != high
    assert_valid(codebook_from_levels(np.array([low, high])), 1)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_a_single_level_at_the_end_of_float32(value: float) -> None:
    codebook = codebook_from_levels(np.array([value]))
    assert_valid(codebook, 1)
    assert codebook(np.array([value]))[0] == np.float32(value)


def test_repeated_levels_merge() -> None:
    codebook = codebook_from_levels(np.array([3.0, 1.0, 3.0, 1.0 + 1e-12, -0.0, 0.0]))
    np.testing.assert_array_equal(codebook.levels, np.array([0.0, 1.0, 3.0], np.float32))
    np.testing.assert_array_equal(codebook.thresholds, np.array([0.5, 2.0], np.float32))


def test_many_values_are_sampled_deterministically(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = silu_features(100, 50)
    full = collect(feature)
    monkeypatch.setattr(weighted_values, "SAMPLE_LIMIT", 500)
    sampled, again = collect(feature), collect(feature)
    assert len(sampled.values) <= 502 < len(full.values)
    np.testing.assert_array_equal(sampled.sums, again.sums)
    assert sampled.values[0] == feature.values.min()
    assert sampled.values[-1] == feature.values.max()
    assert abs(sampled.origin - full.origin) < 0.5 * float(feature.values.std())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [0, 9, 16])
def test_impossible_widths_are_refused(name: str, bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        CODEBOOKS[name](temporal(np.eye(3)), bits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values", [np.zeros((0, 4)), np.array([[1.0, np.nan]]), np.full((2, 2), np.inf)]
)
def test_unusable_features_are_refused(name: str, values: AnyArray) -> None:
    with pytest.raises(ValueError, match="finite and not empty"):
        CODEBOOKS[name](temporal(values), 4)


def test_no_levels_and_overflowing_levels_are_refused() -> None:
    for levels in ([], [1e39], [np.nan]):
        with pytest.raises(ValueError, match="at least one level"):
            codebook_from_levels(np.array(levels))


def test_memory_does_not_grow_with_values_times_levels() -> None:
    """Distances of all values to all levels would take 256 times the features, in float64 twice."""
    values = np.random.default_rng(0).lognormal(size=(400, 640)).astype(np.float32)
    tracemalloc.start()
    CODEBOOKS["lloyd-max"](temporal(values), 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * values.nbytes
