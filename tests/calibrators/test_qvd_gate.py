"""QVD's choice among maps and clippings, against the errors of all candidates taken by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.qvd import gated_grid
from qvd_trt.calibrators.algorithms.scri_map import (
    affine_grid,
    half_range,
    mid_shift,
    smooth_scale,
)
from qvd_trt.calibrators.weight_scales import absmax_grid
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant, Bits, DensePlan, LayerQuant
from qvd_trt.export.plan.site_types import Window
from tests.calibrators.made_up_sites import conv, linear, measured_error, site_problem


class TestHeadroom:
    @pytest.mark.parametrize("seed", range(3))
    def test_an_unclipped_grid_reaches_beyond_the_range_seen(self, seed: int) -> None:
        """Uniform noise clips badly; what the next trajectory adds, a fifth here, must fit."""
        problem = even_site(seed)
        assert reach(problem, gated_grid(problem)) > 1.2

    @pytest.mark.parametrize("seed", range(3))
    def test_is_given_up_for_a_third_of_the_noise_and_no_less(self, seed: int) -> None:
        """The range seen, without headroom, has less noise here on the rows it is judged on."""
        problem = even_site(seed)
        chosen = gated_grid(problem)
        tight = scaled(chosen, 1 / reach(problem, chosen))
        gain = error_of(problem, tight) / error_of(problem, chosen)
        assert 0.75 < gain < 0.95

    @pytest.mark.parametrize("seed", range(3))
    def test_is_given_up_where_clipping_pays(self, seed: int) -> None:
        """Eight even levels fit a normal density best up to 2.3 deviations (Max, 1960)."""
        values = np.random.default_rng(seed).normal(size=(160, 16)).astype(np.float32)
        problem = site_problem(values, [linear()], Bits.parse("w16a3"))
        chosen = gated_grid(problem)
        assert reach(problem, chosen) < 0.9
        unclipped = min(error_of(problem, scaled(grid, 1.25)) for grid in unclipped_grids(problem))
        assert error_of(problem, chosen) < 0.7 * unclipped


@pytest.mark.parametrize("seed", [1, 16, 20])
def test_clipping_is_searched_for_more_maps_than_the_best_unclipped_one(seed: int) -> None:
    """Long tails at three bits, where the map that is best unclipped is not best in the end."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 1, 16))
    values = (rng.standard_t(3, (160, 16)) * scale).astype(np.float32)
    problem = site_problem(values, [linear()], Bits.parse("w16a3"), seed)
    chosen = gated_grid(problem)
    first = min(unclipped_grids(problem), key=lambda grid: error_of(problem, scaled(grid, 1.25)))
    reached = min(error_of(problem, scaled(first, ratio)) for ratio in np.linspace(0.2, 1.25, 43))
    assert error_of(problem, chosen) < 0.9 * reached


def test_a_shift_before_padding_must_gain_a_tenth() -> None:
    """Padded and not, on the very same rows: only the Pad node tells them apart."""
    values = (np.random.default_rng(0).normal(size=(160, 16)) + 0.3).astype(np.float32)
    padded = site_problem(values, [conv()])
    bare = without_padding(padded)
    errors = {
        shifted: min(
            error_of(padded, scaled(grid, 1.25))
            for grid in unclipped_grids(padded)
            if (grid.shift is not None) == shifted
        )
        for shifted in (False, True)
    }
    assert 1.02 < errors[False] / errors[True] < 1.08
    assert gated_grid(bare).shift is not None
    assert gated_grid(padded).shift is None


def test_a_shift_before_padding_that_gains_more_is_taken() -> None:
    values = (np.random.default_rng(0).normal(size=(160, 16)) + 0.6).astype(np.float32)
    assert gated_grid(site_problem(values, [conv()])).shift is not None


def even_site(seed: int) -> SiteProblem:
    """Uniform noise in [-1, 1], alike in all channels."""
    values = np.random.default_rng(seed).uniform(-1, 1, (160, 16)).astype(np.float32)
    return site_problem(values, [linear()])


def unclipped_grids(problem: SiteProblem) -> Iterator[ActivationQuant]:
    """Every map that QVD knows: a mid shift or none, five scales or none."""
    for shift in (None, mid_shift(problem)):
        ranges = half_range(problem, shift)
        yield affine_grid(problem, shift, None)
        for alpha in (0.35, 0.5, 0.65, 0.8, 1.0):
            yield affine_grid(problem, shift, smooth_scale(problem, ranges, alpha))


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
