"""The judge's sketches against noise that is taken from all outputs and rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms.algorithm import absmax_weights
from qvd_trt.calibrators.algorithms.judge import MIXTURES, Judge
from qvd_trt.calibrators.algorithms.problem import (
    SiteProblem,
    layer_output,
    quantized_rows,
    reference_output,
    transformed_rows,
)
from qvd_trt.calibrators.algorithms.scri_map import MapRule, weight_reach
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import ActivationQuant, Bits
from qvd_trt.export.plan.scale_math import fake_quantized
from qvd_trt.export.plan.site_types import Layer
from tests.calibrators.made_up_sites import conv, linear, scattered, site_problem

FEW = [linear("q", out=40), linear("k", out=24)]
MANY = [linear("q", out=3 * MIXTURES), linear("k", out=MIXTURES), linear("v", out=700)]
GROUPED = [conv(out=2 * MIXTURES, groups=2)]
RULES = (MapRule(), MapRule(True), MapRule(True, 0.5), MapRule(False, 1.0))


def exact_noise(problem: SiteProblem, grid: ActivationQuant) -> tuple[float, float]:
    """Of activations and of weights, from all outputs and rows."""
    activations = weights = 0.0
    for layer in problem.site.layers:
        power = reference_output(problem, layer).power
        rows = problem.rows(layer)
        mapped = transformed_rows(rows, grid)
        folded = folded_weight(layer, problem.weights[layer.name], grid)
        noise = layer_output(layer, quantized_rows(rows, grid) - mapped, folded)
        activations += float(np.square(noise).mean()) / power
        rounded = fake_quantized(folded, absmax_weights(problem, layer, grid))
        noise = layer_output(layer, mapped, rounded - folded)
        weights += float(np.square(noise).mean()) / power
    return activations, weights


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("layers", "within"), [(FEW, 1e-3), (MANY, 0.2), (GROUPED, 0.2)])
def test_noise_is_that_of_all_outputs(
    layers: Sequence[Layer], within: float, rule: MapRule
) -> None:
    problem = site_problem(scattered(0, rows=400), layers)
    judge = Judge(problem, [problem])
    grid = rule.grid(problem, weight_reach(problem))
    activations, weights = exact_noise(problem, grid)
    assert judge.activation_noise(0, grid) == pytest.approx(activations, rel=within)
    assert judge.weight_noise(grid) == pytest.approx(weights, rel=0.25)


def test_float_weights_have_no_noise() -> None:
    problem = site_problem(scattered(0), FEW, Bits.parse("w16a8"))
    judge = Judge(problem, [problem])
    assert judge.weight_noise(MapRule().grid(problem, weight_reach(problem))) == 0
