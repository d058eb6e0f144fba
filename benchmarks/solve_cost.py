"""What solving the sites of a large model costs, per 100 million weights.

    python -m benchmarks.solve_cost [--algorithms qvd minmax] [--width 1536] [--feed-forward 8960]

The sites of one block of a video transformer (Wan 2.1 1.3B by default) with made-up statistics:
512 sample rows of normal noise in channels of unlike scales, three trajectories.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.parallel_map import parallel_map
from qvd_trt.calibrators.statistics.activation_stats import (
    FOLDS,
    ChannelRanges,
    SampleRows,
    SiteStats,
)
from qvd_trt.export.arrays import Float32Array, IntArray
from qvd_trt.export.plan.quant_plan import W8A8
from qvd_trt.export.plan.site_types import Layer, LayerOp, Site, SiteKind

ROWS, TRAJECTORIES, STEPS = 512, 3, 4


def block(width: int, feed_forward: int) -> list[SiteProblem]:
    """Self-attention, cross-attention and feed-forward, one site each for what shares an input."""
    shapes = [
        (width, [width] * 3),
        (width, [width]),
        (width, [width]),
        (width, [width]),
        (width, [feed_forward]),
        (feed_forward, [width]),
    ]
    return [_site(index, inputs, outputs) for index, (inputs, outputs) in enumerate(shapes)]


def _site(index: int, channels: int, outputs: Sequence[int]) -> SiteProblem:
    random = np.random.default_rng(index)
    layers = tuple(
        Layer(f"{index}.{n}", LayerOp.MATMUL, f"w{n}", f"y{n}", 1, 0, size, channels * size)
        for n, size in enumerate(outputs)
    )
    scale = np.exp(random.normal(0, 0.5, channels))
    values = (random.normal(size=(ROWS, channels)) * scale).astype(np.float32)
    folds, steps = np.arange(ROWS) % TRAJECTORIES, np.arange(ROWS) % STEPS
    rows = SampleRows(values[:, :, None], random.random(ROWS), steps.astype(np.float64), folds)
    stats = SiteStats(
        _ranges(values, steps, STEPS), _ranges(values, folds, FOLDS), {"row": rows}, ROWS
    )
    weights = {
        layer.name: random.normal(size=(layer.out_channels, channels, 1)).astype(np.float32)
        for layer in layers
    }
    site = Site(f"x{index}", SiteKind.DENSE, -1, channels, layers)
    return SiteProblem(site, stats, weights, W8A8, np.arange(float(STEPS)))


def _ranges(values: Float32Array, parts: IntArray, count: int) -> ChannelRanges:
    low = np.full((count, values.shape[1]), np.inf, np.float32)
    high = -low
    for part in np.unique(parts):
        low[part], high[part] = values[parts == part].min(0), values[parts == part].max(0)
    return ChannelRanges(low, high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--algorithms", nargs="+", default=["qvd", "minmax"], choices=ALGORITHMS)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--feed-forward", type=int, default=8960)
    options = parser.parse_args(arguments)
    problems = block(options.width, options.feed_forward)
    weights = sum(array.size for problem in problems for array in problem.weights.values())
    for name in options.algorithms:
        start = time.perf_counter()
        parallel_map(ALGORITHMS[name].solve, problems)
        seconds = time.perf_counter() - start
        print(
            f"{name}: {seconds:.1f} s for {weights / 1e6:.1f} M weights, "
            f"{seconds / weights * 1e8:.1f} s per 100 M"
        )


if __name__ == "__main__":
    main()
