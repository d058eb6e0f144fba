"""Plans made by the real code from a few calls of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.calls import (
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.quant_plan import W8A8, Bits, QuantPlan
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.progress import SILENT

Feeds = Mapping[str, AnyArray]

EXTENTS: Mapping[str, int] = {"batch": 2, "frames": 3, "height": 8, "width": 12, "tokens": 9}
"""Extents of the symbolic dimensions; 2 x 9 tokens are enough rows for an INT8 GEMM."""

TIMESTEPS = (901.0, 101.0, 501.0)


def noise_feeds(
    signature: ModelSignature,
    seed: int = 0,
    extents: Mapping[str, int] = EXTENTS,
    timestep: float | None = None,
) -> dict[str, AnyArray]:
    """Random inputs of one call; `seed` picks the timestep too unless one is given."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, AnyArray] = {}
    for spec in signature.inputs:
        shape = [d if isinstance(d, int) else extents[d] for d in spec.shape]
        if spec.name == signature.timestep:
            value = TIMESTEPS[seed % len(TIMESTEPS)] if timestep is None else timestep
            feeds[spec.name] = np.full(shape, value, spec.dtype)
        else:
            feeds[spec.name] = rng.normal(size=shape).astype(spec.dtype)
    return feeds


@dataclass(frozen=True)
class NoiseCalls:
    """A calibration source of independent calls on noise."""

    signature: ModelSignature
    count: int = 2

    def describe(self) -> str:
        return "noise"

    def trajectories(self) -> int | None:
        return None

    def settings(self) -> dict[str, str]:
        return {}

    def needs_predictions(self) -> bool:
        return False

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        return None  # with a number, a short run would sample eight times as many rows a call

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        for index in range(self.count):
            denoise(DenoiserCall(noise_feeds(self.signature, index), trajectory=0, step=index))


@dataclass(frozen=True)
class Calibrated:
    """A float model, what was found in it, its statistics and a plan."""

    path: Path
    model: FloatModel
    signature: ModelSignature
    sites: GraphSites
    stats: ActivationStats
    plan: QuantPlan

    def feeds(self, seed: int = 100) -> dict[str, AnyArray]:
        """Inputs that calibration did not see."""
        return noise_feeds(self.signature, seed)

    def replanned(self, algorithm: str, bits: Bits, temporal: str | None = None) -> QuantPlan:
        """Solve the same statistics otherwise."""
        chosen = ALGORITHMS[algorithm]
        options = SolveOptions(bits, chosen, temporal or chosen.temporal_quantizer)
        return solve(self.sites, self.stats, self.model.weight, options)


def calibrated_model(
    path: Path, algorithm: str = "qvd", bits: Bits = W8A8, calls: int = 2
) -> Calibrated:
    """Calibrate the model of a file on noise and solve it."""
    model = open_model(path)
    sites = find_sites(model)
    options = CalibrationOptions(rows=True)
    stats = calibrate(model, sites, NoiseCalls(model.signature, calls), options, SILENT)
    chosen = ALGORITHMS[algorithm]
    solving = SolveOptions(bits, chosen, chosen.temporal_quantizer)
    plan = solve(sites, stats, model.weight, solving)
    return Calibrated(path, model, model.signature, sites, stats, plan)
