"""``qvd``: SCRI gated per site by cross-validation, HTDQ on temporal sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from operator import itemgetter

import numpy as np

from qvd_trt.calibrators.algorithms.algorithm import Algorithm, mse_weights
from qvd_trt.calibrators.algorithms.cross_validation import left_out
from qvd_trt.calibrators.algorithms.judge import Judge
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.scri_map import MapRule, weight_reach
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.quant_plan import ActivationQuant

ALPHAS = (0.35, 0.5, 0.65, 0.8, 1.0)

HEADROOM_RATIOS = (2.0, 1.6, 1.25, 1.0)
"""Candidates of the scale, times the range seen."""

CLIP_RATIOS = (0.8, 0.64, 0.5, 0.4, 0.3)

CLIP_GAIN = 0.85
"""Sample rows miss what is rare, so clipping must remove a seventh of the noise that they show."""

FIRST_RATIOS = (1.6, 1.0)
"""Maps are compared first at the better of these."""

FINALISTS = 4
"""How many maps of the first round are tried with all ratios."""

PAD_BEFORE_SHIFT_COST = 1.10
"""A shift in front of a zero-padded convolution needs a Pad node: it must gain a tenth. Where the
node costs more than INT8 gains, a target forbids such shifts (``TargetProfile.shifts_padded``)."""

SAFE_SQNR = 33.0
"""dB at 8 bits. One trajectory tells nothing about other conditions, so a layer that the plain grid
serves that well along it keeps that grid."""

DECIBELS_PER_BIT = 6.02

PLAIN = MapRule()


def gated_grid(problem: SiteProblem) -> ActivationQuant:
    """Shift, alpha and ratio by the least error on trajectories that were left out.

    Where nothing tells how these would differ, the plain grid of the range seen. The paper (arXiv
    2407.11585) shifts everywhere; docs/method.md#gate says why that needs a gate: under scattered
    scales a mid shift alone can be worse than nothing.
    """
    folds = left_out(problem)
    if not folds:
        return PLAIN.grid(problem, weight_reach(problem))
    judge = Judge(problem, folds)
    if problem.called_folds == 1:
        plain = _Candidate(judge, PLAIN, weight_reach(problem))
        if plain.activation_noise(1.0) < _safe_noise(problem):
            return plain.grid(1.0)
    return _best(judge, _rules(problem))


def _safe_noise(problem: SiteProblem) -> float:
    """Noise over signal, of all the site's layers, up to which a map is not worth its risk."""
    decibels = SAFE_SQNR - DECIBELS_PER_BIT * (8 - problem.bits.activation)
    return len(problem.site.layers) * float(10 ** (-decibels / 10))


def _best(judge: Judge, rules: Sequence[MapRule]) -> ActivationQuant:
    """The grid of the rule and ratio of least cost: all at some ratios, then the best at all."""
    reach = weight_reach(judge.problem)
    maps = sorted((_Candidate(judge, rule, reach) for rule in rules), key=_Candidate.first_cost)
    roomy, clipped = (
        min(
            ((found.cost(ratio), found, ratio) for found in maps[:FINALISTS] for ratio in ratios),
            key=itemgetter(0),
        )
        for ratios in (HEADROOM_RATIOS, CLIP_RATIOS)
    )
    _, best, ratio = clipped if clipped[0] < CLIP_GAIN * roomy[0] else roomy
    return best.grid(ratio)


class _Candidate:
    """A rule, with its maps of every fold."""

    def __init__(self, judge: Judge, rule: MapRule, reach: Float32Array) -> None:
        self._judge = judge
        self._whole = rule.grid(judge.problem, reach)
        self._folds = [rule.grid(fold, reach) for fold in judge.folds]
        self._noise: dict[float, float] = {}
        self._price = PAD_BEFORE_SHIFT_COST if rule.shifted and judge.problem.site.padded else 1.0

    def grid(self, ratio: float) -> ActivationQuant:
        """The grid for all trajectories.

        Headroom is above the range of them all. A clipping is that which served in the folds: a
        wider range with more data does not move the best place to clip.
        """
        if ratio >= 1:
            return _scaled(self._whole, ratio)
        return replace(self._whole, scale=float(np.mean([g.scale for g in self._folds])) * ratio)

    def first_cost(self) -> float:
        return min(map(self.cost, FIRST_RATIOS))

    def cost(self, ratio: float) -> float:
        """Noise over signal, summed over the site's layers."""
        return (self.activation_noise(ratio) + self._weight_noise) * self._price

    @cached_property
    def _weight_noise(self) -> float:
        return self._judge.weight_noise(self._whole)

    def activation_noise(self, ratio: float) -> float:
        """The folds' mean plus its standard error.

        The latter keeps a candidate that fails in one of a few folds from winning by luck.
        """
        if ratio not in self._noise:
            noise = [
                self._judge.activation_noise(index, _scaled(grid, ratio))
                for index, grid in enumerate(self._folds)
            ]
            error = np.std(noise) / math.sqrt(max(len(noise) - 1, 1))
            self._noise[ratio] = float(np.mean(noise) + error)
        return self._noise[ratio]


def _scaled(grid: ActivationQuant, ratio: float) -> ActivationQuant:
    return replace(grid, scale=grid.scale * ratio)


def _rules(problem: SiteProblem) -> list[MapRule]:
    rules: list[MapRule] = []
    for shifted in (False, True) if problem.may_shift else (False,):
        rules.append(MapRule(shifted))
        rules += [MapRule(shifted, alpha) for alpha in ALPHAS]
    return rules


QVD = Algorithm(
    name="qvd",
    temporal_quantizer="hidi",
    needs_rows=True,
    choose_grid=gated_grid,
    weight_grid=mse_weights,
    correct_bias=True,
)
