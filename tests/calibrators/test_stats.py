from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qvd_trt.calibrators.statistics.activation_stats import (
    FOLDS,
    ActivationStats,
    ChannelRanges,
    SampleRows,
    SiteStats,
    TemporalFeatures,
)
from qvd_trt.calibrators.statistics.stats_file import load_stats, save_stats
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError

CHANNELS = 3
WINDOWS = {"row": 1, "k3x3 s1x1 d1x1 p1x1-1x1": 9}


@dataclass(frozen=True)
class Seen:
    """What one denoiser call would contribute."""

    timestep: float
    rows: Float32Array
    priorities: tuple[float, ...]
    fold: int


def one_pass(calls: Sequence[Seen], limit: int = 6) -> ActivationStats:
    """A plain oracle: the statistics of all calls at once."""
    steps = np.unique([call.timestep for call in calls])
    minimum = np.stack(
        [
            np.concatenate([c.rows for c in calls if c.timestep == step]).min(axis=0)
            for step in steps
        ]
    )
    maximum = np.stack(
        [
            np.concatenate([c.rows for c in calls if c.timestep == step]).max(axis=0)
            for step in steps
        ]
    )
    rows = np.concatenate([call.rows for call in calls])
    priorities = np.concatenate([call.priorities for call in calls])
    times = np.concatenate([np.full(len(call.rows), call.timestep) for call in calls])
    folds = np.concatenate([np.full(len(call.rows), call.fold) for call in calls])
    kept = np.argsort(priorities, kind="stable")[:limit]
    samples = {
        key: SampleRows(
            np.repeat(rows[kept][:, :, None], taps, axis=2),
            priorities[kept],
            times[kept],
            folds[kept],
        )
        for key, taps in WINDOWS.items()
    }
    features = np.unique(
        [[call.timestep, np.float32(call.timestep) / 3, 1] for call in calls], axis=0
    )
    masks = [
        reduce(int.__or__, [1 << call.fold for call in calls if call.timestep == step])
        for step in features[:, 0]
    ]
    return ActivationStats(
        model_hash="abc",
        samples=len(calls),
        timesteps=steps,
        sites={"x": SiteStats(ChannelRanges(minimum, maximum), fold_ranges(calls), samples, limit)},
        temporal={
            "emb": TemporalFeatures(
                features[:, 1:].astype(np.float32), features[:, 0], np.array(masks, np.uint8)
            )
        },
        output_elements={"conv": float(np.mean([len(call.rows) for call in calls]))},
        magnitudes={"hidden": float(np.abs(rows).max())},
        input_ranges={"sample": (float(rows.min()), float(rows.max()))},
    )


def fold_ranges(calls: Sequence[Seen]) -> ChannelRanges:
    found = ChannelRanges.unseen(FOLDS, CHANNELS)
    for fold in {call.fold for call in calls}:
        rows = np.concatenate([call.rows for call in calls if call.fold == fold])
        found.minimum[fold], found.maximum[fold] = rows.min(axis=0), rows.max(axis=0)
    return found


def merged(parts: Sequence[ActivationStats]) -> ActivationStats:
    return reduce(ActivationStats.merged, parts)


def assert_same(left: Any, right: Any, path: str = "stats") -> None:
    """Exact for arrays and their dtypes; to rounding for the one running mean."""
    assert type(left) is type(right), path
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, path
        np.testing.assert_array_equal(left, right, err_msg=path)
    elif is_dataclass(left):
        for field in fields(left):
            a, b = getattr(left, field.name), getattr(right, field.name)
            assert_same(a, b, f"{path}.{field.name}")
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}[{key}]")
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-12), path
    else:
        assert left == right, path


@st.composite
def call_lists(draw: st.DrawFn, least: int = 1) -> list[Seen]:
    count = draw(st.integers(least, 8))
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=count, max_size=count, unique=True))
    calls = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        size = int(random.integers(1, 5))
        values = random.standard_normal((size, CHANNELS)).astype(np.float32)
        timestep = float(random.choice([0, 250, 500, 999]))
        fold = int(random.integers(FOLDS))
        calls.append(Seen(timestep, values, tuple(random.random(size)), fold))
    return calls


@settings(max_examples=100, deadline=None)
@given(call_lists(), st.data())
def test_merging_any_partition_is_one_pass(calls: list[Seen], data: st.DataObject) -> None:
    order = data.draw(st.permutations(calls))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(calls)), max_size=3)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(calls)], strict=True) if a < b]
    assert_same(merged([one_pass(part) for part in parts]), one_pass(calls))


@settings(max_examples=50, deadline=None)
@given(call_lists(least=2), st.integers(1, 7), st.integers(1, 7))
def test_merge_is_commutative(calls: list[Seen], left_limit: int, right_limit: int) -> None:
    half = len(calls) // 2
    left, right = one_pass(calls[:half], left_limit), one_pass(calls[half:], right_limit)
    assert_same(left.merged(right), right.merged(left))


@settings(max_examples=100, deadline=None)
@given(call_lists(least=3), st.lists(st.integers(1, 7), min_size=3, max_size=3))
def test_merge_is_associative(calls: list[Seen], limits: list[int]) -> None:
    third = len(calls) // 3
    parts = (calls[:third], calls[third : 2 * third], calls[2 * third :])
    a, b, c = (one_pass(part, limit) for part, limit in zip(parts, limits, strict=True))
    assert_same(a.merged(b).merged(c), a.merged(b.merged(c)))


@settings(max_examples=50, deadline=None)
@given(call_lists(least=2), st.data())
def test_different_row_limits_leave_the_sample_of_the_smaller(
    calls: list[Seen], data: st.DataObject
) -> None:
    half = len(calls) // 2
    left, right = one_pass(calls[:half], 2), one_pass(calls[half:], 7)
    assert_same(left.merged(right), one_pass(calls, 2))


@settings(max_examples=50, deadline=None)
@given(call_lists(), st.data())
def test_the_order_of_the_samples_does_not_matter(calls: list[Seen], data: st.DataObject) -> None:
    order = data.draw(st.permutations(calls))
    singles = [one_pass([call]) for call in order]
    assert_same(merged(singles), merged([one_pass([call]) for call in calls]))


@given(*[st.integers(0, 2**40), st.integers(1, 5000)] * 2)
@hypothesis.example(1061228434200, 1669, 1265848529, 3679)
def test_means_of_counts_are_merged_exactly(a: int, calls_a: int, b: int, calls_b: int) -> None:
    left, right = (
        replace(example(), samples=calls, output_elements={"conv": total / calls})
        for total, calls in ((a, calls_a), (b, calls_b))
    )
    assert left.merged(right).output_elements == {"conv": (a + b) / (calls_a + calls_b)}


@settings(max_examples=50, deadline=None)
@given(call_lists())
def test_comparison_sees_a_change(calls: list[Seen]) -> None:
    stats = one_pass(calls)
    ranges = stats.sites["x"].ranges
    changed = replace(
        stats.sites["x"], ranges=ChannelRanges(ranges.minimum, ranges.maximum + np.float32(1))
    )
    with pytest.raises(AssertionError):
        assert_same(stats, replace(stats, sites={"x": changed}))


@settings(max_examples=30, deadline=None)
@given(call_lists())
def test_save_and_load_round_trip(calls: list[Seen]) -> None:
    stats = one_pass(calls)
    with tempfile.TemporaryDirectory() as folder:
        save_stats(stats, Path(folder) / "stats.npz")
        assert [file.name for file in Path(folder).iterdir()] == ["stats.npz"]
        loaded = load_stats(Path(folder) / "stats.npz")
    assert_same(loaded, stats)
    # A mean of small integers is exact in JSON.
    assert loaded.output_elements == stats.output_elements


def example() -> ActivationStats:
    random = np.random.default_rng(0)
    rows = [random.standard_normal((4, CHANNELS)).astype(np.float32) for _ in range(3)]
    return one_pass(
        [Seen(100.0 * i, row, tuple(random.random(4)), i) for i, row in enumerate(rows)]
    )


def saved(folder: Path) -> Path:
    path = folder / "stats.npz"
    save_stats(example(), path)
    return path


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_byte_is_refused_or_harmless(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))
        try:
            loaded = load_stats(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert_same(loaded, example())


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_truncated_file_is_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder))
        content = path.read_bytes()
        length = data.draw(st.integers(0, len(content) - 1))
        assume(length < len(content))
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="calibrate again"):
            load_stats(path)


@pytest.mark.parametrize("header", ["[]", "3", "{}", "{", '{"format": 4, "sites": [3]}'])
def test_a_wrong_header_is_refused(tmp_path: Path, header: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(header))
    (tmp_path / "stats.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="not a complete statistics file"):
        load_stats(tmp_path / "stats.npz")


def test_other_formats_and_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", header=np.array(json.dumps({"format": 99})))
    with pytest.raises(UserError, match="has format 99, this version reads 4"):
        load_stats(tmp_path / "stats.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(UserError, match="not a complete statistics file"):
        load_stats(tmp_path / "array.npy")
    with pytest.raises(UserError, match="does not exist"):
        load_stats(tmp_path / "missing.npz")


def test_statistics_that_do_not_belong_together_are_not_merged() -> None:
    stats = example()
    site = stats.sites["x"]
    no_rows = replace(stats, sites={"x": replace(site, rows={})})
    for other in (replace(stats, model_hash="def"), replace(stats, sites={}), no_rows):
        with pytest.raises(UserError, match="cannot be merged"):
            stats.merged(other)
        with pytest.raises(UserError, match="cannot be merged"):
            other.merged(stats)
