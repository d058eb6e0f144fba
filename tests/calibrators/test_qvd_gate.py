"""QVD's choice among maps and clippings, against the errors of all candidates taken by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms import qvd
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.qvd import gated_grid
from qvd_trt.calibrators.algorithms.scri_map import (
    affine_grid,
    half_range,
    mid_shift,
    smooth_scale,
    weight_reach,
)
from qvd_trt.calibrators.statistics.activation_stats import ChannelRanges
from qvd_trt.calibrators.weight_scales import absmax_grid
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant, Bits, DensePlan, LayerQuant
from qvd_trt.export.plan.site_types import Window
from tests.calibrators.made_up_sites import (
    Array,
    conv,
    linear,
    measured_error,
    scattered,
    site_problem,
)


@pytest.mark.parametrize("seed", range(3))
class TestUnseenTrajectories:
    """What the sample shows of other trajectories decides, and not how well it is fitted."""

    def test_channels_that_differ_between_trajectories_keep_the_plain_grid(self, seed: int) -> None:
        """Each channel is all but constant along a trajectory: cross attention under a prompt."""
        rng = np.random.default_rng(seed)
        levels = rng.normal(size=(20, 16))
        seen, unseen = constant_channels(levels[:2], rng), constant_channels(levels[2:], rng)
        chosen = gated_grid(seen)
        fitted = scaled(min(unclipped_grids(seen), key=lambda g: error_of(seen, g)), 1.25)
        plain = affine_grid(seen, None, None)
        assert error_of(unseen, chosen) < 1.3 * error_of(unseen, plain)
        assert error_of(unseen, chosen) < 0.3 * error_of(unseen, fitted)

    def test_many_trajectories_allow_the_sharp_map(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        scale = np.exp(rng.normal(0, 1.5, 16))
        seen, unseen = scattered_site(rng, scale), scattered_site(rng, scale)
        chosen, plain = gated_grid(seen), affine_grid(seen, None, None)
        assert error_of(unseen, chosen) < 0.1 * error_of(unseen, plain)

    def test_headroom_follows_from_how_trajectories_differ(self, seed: int) -> None:
        """Uniform noise clips badly: a range that grows with each trajectory leaves room."""
        rng = np.random.default_rng(seed)
        alike = rng.uniform(-1, 1, (160, 16))
        grown = alike * np.array([1, 1, 1, 1.5])[np.arange(160) % 4][:, None]
        reaches = []
        for values in (alike, grown):
            problem = site_problem(values.astype(np.float32), [linear()])
            reaches.append(reach(problem, gated_grid(problem)))
        assert reaches[0] < 1.1
        assert reaches[1] > 1.2

    def test_one_trajectory_keeps_the_plain_grid_where_that_serves(self, seed: int) -> None:
        values = (np.random.default_rng(seed).normal(size=(160, 16)) + 1).astype(np.float32)
        alone = gated_grid(site_problem(values, [linear()], trajectories=1))
        assert (alone.shift, alone.smooth) == (None, None)
        assert gated_grid(site_problem(values, [linear()])).shift is not None

    def test_noise_of_weights_is_no_reason_to_leave_it(self, seed: int) -> None:
        """At four bits the weights' noise is above the limit, and no map would lower it."""
        values = np.random.default_rng(seed).uniform(-1, 1, (160, 16)).astype(np.float32)
        problem = site_problem(values, [linear()], Bits.parse("w4a8"), trajectories=1)
        chosen = gated_grid(problem)
        assert (chosen.shift, chosen.smooth) == (None, None)

    def test_one_trajectory_takes_a_map_where_the_plain_grid_is_poor(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        problem = scattered_site(rng, np.exp(rng.normal(0, 1.5, 16)), trajectories=1)
        chosen = gated_grid(problem)
        assert chosen.smooth is not None
        assert error_of(problem, chosen) < 0.1 * error_of(problem, affine_grid(problem, None, None))

    def test_clipping_where_it_pays(self, seed: int) -> None:
        """Eight even levels fit a normal density best up to 2.3 deviations (Max, 1960)."""
        values = np.random.default_rng(seed).normal(size=(160, 16)).astype(np.float32)
        problem = site_problem(values, [linear()], Bits.parse("w16a3"))
        chosen = gated_grid(problem)
        assert reach(problem, chosen) < 0.9
        assert error_of(problem, chosen) < 0.7 * min(
            error_of(problem, grid) for grid in unclipped_grids(problem)
        )


def test_a_single_call_gets_the_plain_grid() -> None:
    problem = site_problem(scattered(0), [linear()], trajectories=1)
    once = replace(
        problem,
        timesteps=np.zeros(1),
        stats=replace(problem.stats, ranges=one_part(problem.stats.ranges)),
    )
    chosen = gated_grid(once)
    assert (chosen.shift, chosen.smooth) == (None, None)
    assert chosen.scale == affine_grid(once, None, None).scale


def test_choice_at_few_bits_is_near_the_best_on_unseen_rows() -> None:
    """Long tails, where the map that is best unclipped is not best in the end."""
    lost = []
    for seed in range(4):
        seen, unseen = long_tailed(seed)
        best = min(
            error_of(unseen, scaled(grid, ratio))
            for grid in unclipped_grids(seen)
            for ratio in np.geomspace(0.2, 2, 30)
        )
        lost.append(10 * np.log10(error_of(unseen, gated_grid(seen)) / best))
    assert np.mean(lost) < 2


@pytest.mark.parametrize("seed", [14, 44, 56])
def test_the_map_that_is_best_at_the_range_seen_is_not_the_only_one_clipped(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, unseen = long_tailed(seed)
    chosen = gated_grid(seen)
    monkeypatch.setattr(qvd, "FINALISTS", 1)
    assert error_of(unseen, chosen) < 0.8 * error_of(unseen, gated_grid(seen))


def test_a_tenth_less_noise_is_no_reason_to_clip() -> None:
    """The ranges hold rare values that no row shows."""
    rng = np.random.default_rng(0)
    even = np.stack([rng.permutation(np.linspace(-1, 1, 400)) for _ in range(16)], axis=1)
    problem = site_problem(even.astype(np.float32), [linear()], Bits.parse("w16a8"))
    for ranges in (problem.stats.ranges, problem.stats.fold_ranges):
        seen = np.isfinite(ranges.maximum)
        ranges.minimum[seen], ranges.maximum[seen] = -1.2235, 1.2235
    plain = affine_grid(problem, None, None)
    assert 0.86 < error_of(problem, scaled(plain, 0.8)) / error_of(problem, plain) < 0.95
    assert reach(problem, gated_grid(problem)) == pytest.approx(1)


def test_a_shift_before_padding_must_pay_for_the_pad() -> None:
    """Padded and not, on the very same rows: only the Pad node tells them apart."""
    values = (np.random.default_rng(0).normal(size=(160, 16)) + 0.6).astype(np.float32)
    padded = site_problem(values, [conv()])
    assert gated_grid(without_padding(padded)).shift is not None
    assert gated_grid(padded).shift is None


def test_a_shift_before_padding_that_gains_more_is_taken() -> None:
    values = (np.random.default_rng(0).normal(size=(160, 16)) + 1.0).astype(np.float32)
    assert gated_grid(site_problem(values, [conv()])).shift is not None


def scattered_site(rng: np.random.Generator, scale: Array, trajectories: int = 4) -> SiteProblem:
    """Channels of these scales, all of which matter as much behind the weight."""
    values = (rng.normal(size=(160, 16)) * scale).astype(np.float32)
    problem = site_problem(values, [linear()], trajectories=trajectories)
    problem.weights["linear"][:] /= scale[None, :, None]
    return problem


def constant_channels(levels: Array, rng: np.random.Generator) -> SiteProblem:
    """Trajectories `[n, 16]` along which every channel stays near its level."""
    of_row = levels[np.arange(160) % len(levels)]
    values = (of_row + 0.02 * rng.normal(size=of_row.shape)).astype(np.float32)
    return site_problem(values, [linear()], trajectories=min(len(levels), 8))


def long_tailed(seed: int) -> tuple[SiteProblem, SiteProblem]:
    """Three bits and channels of unlike scales: a few rows, and many others, behind one weight."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 1, 16))
    seen, unseen = (
        site_problem(
            (rng.standard_t(3, (rows, 16)) * scale).astype(np.float32),
            [linear()],
            Bits.parse("w16a3"),
        )
        for rows in (160, 2000)
    )
    unseen.weights["linear"][:] = seen.weights["linear"]
    return seen, unseen


def one_part(ranges: ChannelRanges) -> ChannelRanges:
    low, high = ranges.over()
    return ChannelRanges(low[None], high[None])


def unclipped_grids(problem: SiteProblem) -> Iterator[ActivationQuant]:
    """Every map that QVD knows: a mid shift or none, five scales or none."""
    for shift in (None, mid_shift(problem)):
        ranges = half_range(problem, shift)
        yield affine_grid(problem, shift, None)
        for alpha in (0.35, 0.5, 0.65, 0.8, 1.0):
            yield affine_grid(problem, shift, smooth_scale(ranges, weight_reach(problem), alpha))


def scaled(grid: ActivationQuant, ratio: float) -> ActivationQuant:
    return replace(grid, scale=grid.scale * float(ratio))


def reach(problem: SiteProblem, grid: ActivationQuant) -> float:
    """The greatest value on the grid over the greatest that was seen, after the map."""
    low, high = problem.channel_range()
    ends = np.stack([low, high])
    if grid.shift is not None:
        ends = ends - grid.shift
    if grid.smooth is not None:
        ends = ends / grid.smooth
    return float(grid.scale * (2 ** (grid.bits - 1) - 1) / np.abs(ends).max())


def error_of(problem: SiteProblem, grid: ActivationQuant) -> float:
    """Noise over signal with weights on scales that clip nothing."""
    layers = []
    for layer in problem.site.layers:
        weight = None
        if problem.bits.weight != FLOAT_BITS:
            folded = folded_weight(layer, problem.weights[layer.name], grid)
            weight = absmax_grid(folded, problem.bits.weight)
        layers.append(LayerQuant(layer.name, weight))
    axis = problem.site.channel_axis
    return measured_error(problem, DensePlan("x", axis, grid, tuple(layers)))


def without_padding(problem: SiteProblem) -> SiteProblem:
    """The same rows, weights and ranges at a convolution whose window needs no padding."""
    (layer,) = problem.site.layers
    (sample,) = problem.stats.rows.values()
    window = Window(layer.window.kernel, (1, 1), (1, 1), (0, 0), (0, 0))
    site = replace(problem.site, layers=(replace(layer, window=window),))
    found = replace(problem, site=site, stats=replace(problem.stats, rows={window.key: sample}))
    assert problem.site.padded
    assert not found.site.padded
    return found
