"""Judging a choice on trajectories that it was not made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import numpy as np

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.statistics.activation_stats import ChannelRanges, SampleRows
from qvd_trt.export.arrays import AnyArray

STEP_PARTS = 5
"""A single trajectory is left out by fifths of its timesteps."""

MIN_ROWS = 4
"""A fold of fewer sample rows says too little to count like the others."""


def left_out(problem: SiteProblem) -> tuple[SiteProblem, ...]:
    """The problem once for each fold: the ranges of all others, and the fold's sample rows.

    Folds are those of the trajectories, or parts of the timesteps where there is one trajectory.
    Folds of few rows, such as of a trajectory much shorter than others, are left out. Empty for a
    single timestep of a single trajectory.
    """
    stats = problem.stats
    trajectories = stats.fold_ranges.called()
    if len(trajectories) > 1:
        folds = [
            _left_out(problem, stats.fold_ranges, np.setdiff1d(trajectories, fold), _FOLD, fold)
            for fold in trajectories
        ]
    else:
        steps = np.arange(len(problem.timesteps))
        folds = [
            _left_out(
                problem, stats.ranges, np.setdiff1d(steps, part), _TIMESTEP, problem.timesteps[part]
            )
            for part in np.array_split(steps, min(STEP_PARTS, len(steps)))
            if len(part) < len(steps)
        ]
    return tuple(
        fold
        for fold in folds
        if all(len(sample.values) >= MIN_ROWS for sample in fold.stats.rows.values())
    )


_FOLD: Callable[[SampleRows], AnyArray] = attrgetter("folds")
_TIMESTEP: Callable[[SampleRows], AnyArray] = attrgetter("timesteps")


def _left_out(
    problem: SiteProblem,
    ranges: ChannelRanges,
    others: AnyArray,
    label: Callable[[SampleRows], AnyArray],
    wanted: AnyArray,
) -> SiteProblem:
    """The problem with the ranges of the other parts and the rows whose label is wanted."""
    low, high = ranges.over(others)
    rows = {
        key: sample.at(np.isin(label(sample), wanted)) for key, sample in problem.stats.rows.items()
    }
    stats = replace(problem.stats, ranges=ChannelRanges(low[None], high[None]), rows=rows)
    return replace(problem, stats=stats)
