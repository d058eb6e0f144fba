"""What `docs/add-an-algorithm.md` tells a stranger to write works as it stands there."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms.algorithm import Algorithm
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks import CodebookBuilder
from qvd_trt.export.plan.quant_plan import Bits
from tests.calibrators.made_up_sites import (
    SHAPES,
    found_sites,
    linear,
    measured_error,
    scattered,
    site_problem,
)

PAGE = Path(__file__).parents[2] / "docs" / "add-an-algorithm.md"


@pytest.fixture(scope="module")
def pages_names() -> dict[str, Any]:
    """All that the page's Python blocks define, each run as a module of its own."""
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for index, (_, code) in enumerate(blocks):
        module = ModuleType(f"page_block_{index}")
        sys.modules[module.__name__] = module
        exec(compile(textwrap.dedent(code), f"{PAGE.name}:{index}", "exec"), module.__dict__)
        names |= vars(module)
    return names


@pytest.mark.parametrize("bits", ["w8a8", "w16a8", "w8a16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_algorithm_solves_every_kind_of_site(
    pages_names: dict[str, Any], shape: str, bits: str
) -> None:
    algorithm = pages_names["HALF_RANGE"]
    assert isinstance(algorithm, Algorithm)
    problem = site_problem(scattered(0), SHAPES[shape], Bits.parse(bits))
    plan = algorithm.solve(problem)
    assert len(plan.layers) == len(SHAPES[shape])
    if problem.bits.activation == 16:
        assert plan.activation is None
        assert measured_error(problem, plan) < 0.001
    else:
        assert plan.activation is not None
        low, high = problem.channel_range()
        largest = max(-low.min(), high.max())
        assert plan.activation.scale == pytest.approx(largest / 127 / 2, rel=1e-6)


def test_the_algorithm_goes_through_the_whole_solver(pages_names: dict[str, Any]) -> None:
    algorithm = pages_names["HALF_RANGE"]
    assert algorithm.name not in ALGORITHMS
    problem = site_problem(scattered(0), [linear()])
    stats = ActivationStats(
        "sha256:x", 1, np.array([5.0]), {"x": problem.stats}, {}, {"linear": 2400.0}
    )
    weight = problem.weights["linear"][:, :, 0].T
    options = SolveOptions(problem.bits, algorithm, algorithm.temporal_quantizer)
    plan = solve(found_sites([problem.site]), stats, lambda _: weight, options)
    assert plan.algorithm == "half-range"
    assert [layer.name for layer in plan.dense[0].layers] == ["linear"]


def test_the_codebook_has_equally_many_values_between_its_levels(
    pages_names: dict[str, Any],
) -> None:
    builder = pages_names["builder"]
    assert isinstance(builder, CodebookBuilder)
    values = np.random.default_rng(0).permutation(4 * 15 + 1)[:, None].astype(np.float32)
    feature = TemporalFeatures(values, np.arange(61.0), np.ones(61, np.uint8))
    np.testing.assert_array_equal(builder(feature, 4).levels, np.arange(0, 61, 4))
