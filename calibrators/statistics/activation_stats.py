"""Activation statistics: streamed, mergeable, independent of the order of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qvd_trt.export.arrays import AnyArray, Float32Array, Float64Array, IntArray, UInt8Array
from qvd_trt.export.errors import UserError

FOLDS = 8
"""Trajectory ``i`` belongs to fold ``i % FOLDS``, so that a fold can be left out of what a choice
is made on and the choice be judged on it."""

EVERY_FOLD = (1 << FOLDS) - 1
"""``TemporalFeatures.folds`` of a row that no trajectory is needed for."""


@dataclass(frozen=True, slots=True)
class ChannelRanges:
    """Per-channel ranges of one activation tensor, a row for each part of the calls.

    Attributes:
        minimum: ``[P, C]`` float32, P the number of parts; +inf in a part without calls.
        maximum: ``[P, C]`` float32; -inf in a part without calls.
    """

    minimum: Float32Array
    maximum: Float32Array

    @classmethod
    def unseen(cls, parts: int, channels: int) -> ChannelRanges:
        """Ranges of parts without calls, to be filled."""
        low = np.full((parts, channels), np.inf, np.float32)
        return cls(low, -low)

    def called(self) -> IntArray:
        """Indices of the parts that had calls."""
        return np.flatnonzero((self.minimum <= self.maximum).any(axis=1))

    def over(self, parts: AnyArray | slice = slice(None)) -> tuple[Float32Array, Float32Array]:
        """Least and greatest value over some of the parts, ``[C]`` each."""
        return self.minimum[parts].min(axis=0), self.maximum[parts].max(axis=0)


@dataclass(frozen=True, slots=True)
class SampleRows:
    """A bounded, order-independent random sample of what the layers of one window read.

    Rows carry a random priority and the lowest priorities stay, so that the sample of merged
    statistics is the sample of one pass over everything.

    Attributes:
        values: ``[R, C, taps]`` float32; taps is 1 for linear layers. Padded taps hold zero.
        priorities: ``[R]`` float64, ascending.
        timesteps: ``[R]`` float64, the timestep at which each row was seen.
        folds: ``[R]`` integers, the fold of the trajectory in which it was seen.
    """

    values: Float32Array
    priorities: Float64Array
    timesteps: Float64Array
    folds: IntArray

    def at(self, chosen: AnyArray) -> SampleRows:
        """Some of the rows, by a mask ``[R]`` or by indices."""
        return SampleRows(
            self.values[chosen], self.priorities[chosen], self.timesteps[chosen], self.folds[chosen]
        )

    def lowest(self, count: int) -> SampleRows:
        """Keep the ``count`` rows of lowest priority."""
        # Calls of equal content have equal priorities: only the fold can tell their rows apart.
        return self.at(np.lexsort((self.folds, self.priorities))[:count])

    def merged(self, other: SampleRows, count: int) -> SampleRows:
        """The ``count`` rows of lowest priority among both."""
        return SampleRows(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.priorities, other.priorities]),
            np.concatenate([self.timesteps, other.timesteps]),
            np.concatenate([self.folds, other.folds]),
        ).lowest(count)


@dataclass(frozen=True, slots=True)
class SiteStats:
    """Statistics of one dense site.

    Attributes:
        ranges: Ranges per timestep and channel, ``[T, C]``.
        fold_ranges: Ranges per fold and channel, ``[FOLDS, C]``.
        rows: Sample rows by ``Window.key``; empty when the algorithm asked for none.
        row_limit: How many rows are kept per window.
    """

    ranges: ChannelRanges
    fold_ranges: ChannelRanges
    rows: Mapping[str, SampleRows]
    row_limit: int


@dataclass(frozen=True, slots=True)
class TemporalFeatures:
    """The values of one temporal feature, one row per distinct (timestep, conditioning).

    Attributes:
        values: ``[S, C]`` float32, ordered by timestep.
        timesteps: ``[S]`` float64.
        folds: ``[S]`` uint8, bit ``f`` set where a trajectory of fold ``f`` had this row.
    """

    values: Float32Array
    timesteps: Float64Array
    folds: UInt8Array

    def at(self, chosen: AnyArray) -> TemporalFeatures:
        """Some of the rows, by a mask ``[S]``."""
        return TemporalFeatures(self.values[chosen], self.timesteps[chosen], self.folds[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCall:
    """A denoiser call and the float model's answer, to measure the quantized model on.

    Attributes:
        inputs: One array per graph input, by name.
        prediction: What the float model returned, float32.
        timestep: The call's timestep.
        step: Index of the call within its trajectory.
    """

    inputs: Mapping[str, AnyArray]
    prediction: Float32Array
    timestep: float
    step: int


@dataclass(frozen=True, slots=True)
class ActivationStats:
    """All statistics of one model.

    Attributes:
        model_hash: ``sha256`` of the float model that was run.
        samples: Number of denoiser calls that were reduced.
        timesteps: ``[T]`` float64, ascending; the first axis of every range.
        sites: Dense sites by tensor name.
        temporal: Temporal features by tensor name.
        output_elements: Elements written per denoiser call, by layer name; gives the layer's cost.
        held_out: Calls kept out of the statistics.
        seen: Some of the calls that are in the statistics, to compare held-out ones of the same
            step and timestep with.
        magnitudes: Largest magnitude of every measured float32 tensor, over all calls. Infinite
            where a tensor reached infinity; values below -1e30 are masks and do not count.
        input_ranges: Least and greatest value of every graph input, over all calls.
    """

    model_hash: str
    samples: int
    timesteps: Float64Array
    sites: Mapping[str, SiteStats]
    temporal: Mapping[str, TemporalFeatures]
    output_elements: Mapping[str, float]
    held_out: tuple[ReferenceCall, ...] = ()
    seen: tuple[ReferenceCall, ...] = ()
    magnitudes: Mapping[str, float] = field(default_factory=dict)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def merged(self, other: ActivationStats) -> ActivationStats:
        """Statistics of the union of both calibration sets; commutative and associative.

        Trajectories of both must have been numbered apart: those of one fold count as one.

        Raises:
            UserError: the two belong to different models or hold different sites or windows.
        """
        if self.model_hash != other.model_hash:
            raise UserError("statistics of two different models cannot be merged")
        if self.sites.keys() != other.sites.keys() or self.temporal.keys() != other.temporal.keys():
            raise UserError("statistics with different quantization sites cannot be merged")
        for name, site in self.sites.items():
            if site.rows.keys() != other.sites[name].rows.keys():
                raise UserError(
                    f"statistics with different sample rows of {name!r} cannot be merged; "
                    "collect both for the same algorithm"
                )
        steps = np.union1d(self.timesteps, other.timesteps)
        total = self.samples + other.samples
        return ActivationStats(
            model_hash=self.model_hash,
            samples=total,
            timesteps=steps,
            sites={
                name: _merge_site(steps, self.timesteps, site, other.timesteps, other.sites[name])
                for name, site in self.sites.items()
            },
            temporal={
                name: merge_temporal(feature, other.temporal[name])
                for name, feature in self.temporal.items()
            },
            output_elements={
                # Rounded to the counts that they are means of, so that parts give equal bits.
                name: (
                    round(mean * self.samples) + round(other.output_elements[name] * other.samples)
                )
                / max(total, 1)
                for name, mean in self.output_elements.items()
            },
            held_out=self.held_out + other.held_out,
            seen=self.seen + other.seen,
            magnitudes=merge_magnitudes(self.magnitudes, other.magnitudes),
            input_ranges=merge_ranges(self.input_ranges, other.input_ranges),
        )


def merge_magnitudes(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """The larger of both, by tensor name."""
    return {name: max(left.get(name, 0.0), right.get(name, 0.0)) for name in {**left, **right}}


def merge_ranges(
    left: Mapping[str, tuple[float, float]], right: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The range that spans both, by name."""
    merged = {**left, **right}
    for name in left.keys() & right.keys():
        (low, high), (other_low, other_high) = left[name], right[name]
        merged[name] = min(low, other_low), max(high, other_high)
    return merged


def merge_temporal(left: TemporalFeatures, right: TemporalFeatures) -> TemporalFeatures:
    """The distinct rows of both, ordered by timestep and then by value."""
    rows = np.concatenate(
        [
            np.column_stack([left.timesteps, left.values.astype(np.float64)]),
            np.column_stack([right.timesteps, right.values.astype(np.float64)]),
        ]
    )
    rows, place = np.unique(rows, axis=0, return_inverse=True)
    folds = np.zeros(len(rows), np.uint8)
    np.bitwise_or.at(folds, place.reshape(-1), np.concatenate([left.folds, right.folds]))
    return TemporalFeatures(
        values=rows[:, 1:].astype(np.float32), timesteps=rows[:, 0].copy(), folds=folds
    )


def _merge_site(
    steps: Float64Array,
    left_steps: Float64Array,
    left: SiteStats,
    right_steps: Float64Array,
    right: SiteStats,
) -> SiteStats:
    # The smaller one: rows beyond it are missing on one side, which would bias the sample.
    limit = min(left.row_limit, right.row_limit)
    merged = ChannelRanges.unseen(len(steps), left.ranges.minimum.shape[1])
    for own_steps, ranges in ((left_steps, left.ranges), (right_steps, right.ranges)):
        at = np.searchsorted(steps, own_steps)
        merged.minimum[at] = np.minimum(merged.minimum[at], ranges.minimum)
        merged.maximum[at] = np.maximum(merged.maximum[at], ranges.maximum)
    rows = {key: sample.merged(right.rows[key], limit) for key, sample in left.rows.items()}
    folds = ChannelRanges(
        np.minimum(left.fold_ranges.minimum, right.fold_ranges.minimum),
        np.maximum(left.fold_ranges.maximum, right.fold_ranges.maximum),
    )
    return SiteStats(merged, folds, rows, limit)
