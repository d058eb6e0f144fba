"""What solving the sites of a large model costs, per 100 million weights.

    python -m benchmarks.solve_cost [--algorithms qvd minmax] [--width 1536] [--feed-forward 8960]

The sites of one block of a video transformer (the widths of Wan 2.1 1.3B by default) with made-up
statistics: 512 sample rows of normal noise in channels of unlike scales, three trajectories.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.parallel_map import parallel_map
from tests.calibrators.made_up_sites import linear, site_problem

ROWS, TRAJECTORIES = 512, 3


def block(width: int, feed_forward: int) -> list[SiteProblem]:
    """One site for the layers that share an input.

    Query, key and value, and what leaves the attention; the query of cross-attention, its key and
    value, which read the text, and what leaves it; the two layers of the feed-forward.
    """
    return [
        _site(index, inputs, outputs)
        for index, (inputs, outputs) in enumerate(
            (
                (width, [width] * 3),
                (width, [width]),
                (width, [width]),
                (width, [width] * 2),
                (width, [width]),
                (width, [feed_forward]),
                (feed_forward, [width]),
            )
        )
    ]


def _site(index: int, channels: int, outputs: Sequence[int]) -> SiteProblem:
    random = np.random.default_rng(index)
    scale = np.exp(random.normal(0, 0.5, channels))
    values = (random.normal(size=(ROWS, channels)) * scale).astype(np.float32)
    layers = [linear(f"layer_{n}", channels, size) for n, size in enumerate(outputs)]
    return site_problem(values, layers, seed=index, trajectories=TRAJECTORIES)


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
