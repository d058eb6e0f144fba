"""Algorithms compared on trajectories whose conditions calibration never saw.

    python -m benchmarks.unseen_trajectories MODEL.onnx... [--trajectories 1 2 4 8] [--seed 0]

Every model draws twelve flow-matching trajectories of ten steps, each with its own noise and
conditions. Plans are made from the first 1, 2, 4 and 8 of them and measured on the last four.
Prints for every model and number the mean step SQNR of each algorithm in dB, and how far `qvd` is
from the best of the others.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, ReferenceCall
from qvd_trt.calibrators.statistics.collector import StatisticsCollector
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.quant_plan import W8A8
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.tools.measure_held_out import measure

STEPS, UNSEEN = 10, 4
MEASURED_STEPS = (1, 4, 7)
EXTENTS = {"batch": 1, "frames": 4, "height": 16, "width": 16, "tokens": 12}
"""Of symbolic dimensions; enough rows for INT8 GEMMs."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Statistics of every trajectory by itself, and calls of the unseen ones."""

    sites: GraphSites
    seen: tuple[ActivationStats, ...]
    unseen: tuple[ReferenceCall, ...]


def draw(model: FloatModel, trajectories: int, seed: int) -> Drawn:
    """Sample the model; statistics of all but the last `UNSEEN` trajectories."""
    sites = find_sites(model)
    options = SelfSamplingOptions(
        sampler="flow",
        steps=STEPS,
        samples=trajectories + UNSEEN,
        seed=seed,
        shapes=_shapes(model.signature),
    )
    collectors = [
        StatisticsCollector(model, sites, rows=True, expected_calls=4 * STEPS)
        for _ in range(trajectories)
    ]
    unseen: list[ReferenceCall] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        if call.trajectory < trajectories:
            return collectors[call.trajectory].observe(call)
        answered = collectors[0].hold_out(call)
        if call.step in MEASURED_STEPS:
            unseen.append(answered)
        return answered.prediction

    SelfSampling(options, model.signature).drive(denoise)
    return Drawn(sites, tuple(each.finish() for each in collectors), tuple(unseen))


def scores(model: FloatModel, drawn: Drawn, trajectories: int) -> dict[str, float]:
    """Mean SQNR in dB on the unseen calls, by algorithm, calibrated on so many trajectories."""
    stats = reduce(ActivationStats.merged, drawn.seen[:trajectories])
    found = {}
    for name, algorithm in ALGORITHMS.items():
        plan = solve(drawn.sites, stats, model.weight, SolveOptions(W8A8, algorithm))
        found[name] = float(np.mean([s.sqnr for s in measure(model, plan, drawn.unseen)]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", metavar="MODEL.onnx", type=Path, nargs="+")
    parser.add_argument("--trajectories", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"| model | trajectories | {' | '.join(ALGORITHMS)} | qvd - best |")
    print("|---" * (len(ALGORITHMS) + 3) + "|")
    worst = math.inf
    try:
        for path in options.models:
            model = open_model(path)
            drawn = draw(model, max(options.trajectories), options.seed)
            for count in options.trajectories:
                found = scores(model, drawn, count)
                ahead = _ahead(found)
                worst = min(worst, ahead)
                cells = " | ".join(f"{value:.1f}" for value in found.values())
                print(f"| {path.stem} | {count} | {cells} | {ahead:+.1f} |", flush=True)
    except UserError as error:
        print(f"unseen_trajectories: error: {error}", file=sys.stderr)
        return 2
    print(f"\nqvd is {worst:+.1f} dB from the best of the others at worst")
    return 0


def _ahead(found: Mapping[str, float]) -> float:
    return found["qvd"] - max(value for name, value in found.items() if name != "qvd")


def _shapes(signature: ModelSignature) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(d if isinstance(d, int) else EXTENTS[d] for d in spec.shape)
        for spec in signature.inputs
    }


if __name__ == "__main__":
    sys.exit(main())
