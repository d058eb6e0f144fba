from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qvd_trt.calibrators.temporal.td_score import separation, td_score
from qvd_trt.export.arrays import AnyArray


def oracle(features: AnyArray, quantized: AnyArray, timesteps: AnyArray) -> float:
    """The definition, pair by pair."""
    f, q = features.astype(np.float64), quantized.astype(np.float64)
    margins = []
    for t in range(len(f)):
        rivals = [
            s
            for s in range(len(f))
            if timesteps[s] != timesteps[t] and not np.array_equal(f[s], f[t])
        ]
        if rivals:
            distance = min(np.sqrt(((f[t] - f[s]) ** 2).sum()) for s in rivals)
            away = min(np.sqrt(((q[t] - f[s]) ** 2).sum()) for s in rivals)
            own = np.sqrt(((q[t] - f[t]) ** 2).sum())
            margins.append(np.clip((away - own) / distance, -1, 1))
    return float(np.mean(margins)) if margins else 1.0


small = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 4)),
    elements=st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0, 3.0]),
)


@given(small, st.integers(0, 2**32 - 1))
def test_equals_the_definition(features: AnyArray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    timesteps = rng.integers(0, 5, len(features)).astype(np.float64)
    quantized = features + rng.normal(scale=0.3, size=features.shape)
    assert td_score(features, quantized, timesteps) == pytest.approx(
        oracle(features, quantized, timesteps), abs=1e-12
    )


@given(small)
def test_lossless_is_one(features: AnyArray) -> None:
    timesteps = np.arange(len(features), dtype=np.float64)
    assert td_score(features, features, timesteps) == 1.0


def test_many_rows_equal_the_definition_across_chunks() -> None:
    rng = np.random.default_rng(3)
    features = np.cumsum(rng.normal(size=(300, 5)), axis=0).astype(np.float32)
    quantized = np.round(features)
    timesteps = np.arange(300.0)
    assert td_score(features, quantized, timesteps) == pytest.approx(
        oracle(features, quantized, timesteps), abs=1e-12
    )


def test_close_rows_far_from_the_origin_suffer_no_cancellation() -> None:
    timesteps = np.arange(40.0)
    features = 1e6 + 1e-6 * timesteps[:, None] * np.ones((1, 3))
    exact = np.diff(features, axis=0)[0]
    assert separation(features, timesteps)[0] == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    outlier = np.concatenate([features, [[-1e9, 0.0, 0.0]]])
    distance = separation(outlier, np.arange(41.0))
    brute = [np.linalg.norm(np.delete(outlier, t, 0) - outlier[t], axis=1).min() for t in range(41)]
    np.testing.assert_allclose(distance, brute, rtol=1e-12)


def test_known_value_and_its_sign() -> None:
    features = np.array([[0.0], [1.0]])
    timesteps = np.array([0.0, 1.0])
    right = np.array([[0.4], [1.0]])
    wrong = np.array([[0.6], [1.0]])
    assert td_score(features, right, timesteps) == pytest.approx((0.2 + 1.0) / 2)
    assert td_score(features, wrong, timesteps) == pytest.approx((-0.2 + 1.0) / 2)


def test_swapped_timesteps_score_minus_one() -> None:
    features = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert td_score(features, features[::-1], np.array([1.0, 2.0])) == -1.0


def test_rows_of_one_timestep_and_identical_rows_are_no_rivals() -> None:
    features = np.array([[0.0], [0.001], [1.0], [1.0], [-0.0]])
    timesteps = np.array([5.0, 5.0, 6.0, 7.0, 8.0])
    np.testing.assert_allclose(separation(features, timesteps), [1.0, 0.001, 0.999, 0.999, 0.001])


def test_nothing_to_tell_apart_scores_one() -> None:
    constant = np.ones((3, 2))
    assert td_score(constant, constant + 5, np.arange(3.0)) == 1.0
    assert np.isinf(separation(constant, np.arange(3.0))).all()
    assert td_score(np.eye(3), np.zeros((3, 3)), np.full(3, 7.0)) == 1.0


@pytest.mark.parametrize(
    ("features", "quantized", "timesteps", "message"),
    [
        (np.ones(3), np.ones(3), np.ones(3), r"expected a non-empty \[S, C\]"),
        (np.ones((0, 2)), np.ones((0, 2)), np.ones(0), "non-empty"),
        (np.ones((3, 2)), np.ones((3, 1)), np.ones(3), "quantized has shape"),
        (np.ones((3, 2)), np.ones((3, 2)), np.ones(2), "timesteps have shape"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), np.ones(2), "features hold"),
        (np.ones((2, 2)), np.full((2, 2), np.inf), np.ones(2), "quantized holds"),
    ],
)
def test_bad_input_is_refused(
    features: AnyArray, quantized: AnyArray, timesteps: AnyArray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        td_score(features, quantized, timesteps)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_more_noise_scores_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(30, 16))
    noise = rng.normal(size=(30, 16))
    scores = [td_score(features, features + s * noise, np.arange(30.0)) for s in (0.01, 0.3, 3.0)]
    assert scores == sorted(scores, reverse=True)


def test_memory_does_not_grow_with_the_square_of_the_steps() -> None:
    """Differences of all pairs of rows would take 1000 times the features, in float64 twice."""
    features = np.random.default_rng(0).normal(size=(1000, 640)).astype(np.float32)
    tracemalloc.start()
    td_score(features, features + np.float32(0.01), np.arange(1000.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * features.nbytes
