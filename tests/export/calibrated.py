"""Plans made by the real code from a few calls of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.arrays import AnyArray
from qvd_trt.calibrators.bits import W8A8, Bits
from qvd_trt.calibrators.collect.calibrate import CalibrationTarget, calibrate
from qvd_trt.calibrators.collect.request import StatisticsRequest
from qvd_trt.calibrators.plan import QuantPlan
from qvd_trt.calibrators.progress import SilentProgress
from qvd_trt.calibrators.solve import SolveOptions, solve
from qvd_trt.calibrators.sources.calls import Denoise, DenoiserCall
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import ActivationStats
from qvd_trt.export.graph.interface import read_signature
from qvd_trt.export.graph.sites import GraphSites, find_sites
from qvd_trt.export.model_file import model_hash
from qvd_trt.export.passes.layer_edits import constant_array
from tests.export.graphs import prepared

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

    def calls(self) -> int | None:
        return None  # with a number, a short run would sample eight times as many rows a call

    def drive(self, denoise: Denoise) -> None:
        for index in range(self.count):
            denoise(DenoiserCall(noise_feeds(self.signature, index), trajectory=0, step=index))


@dataclass(frozen=True)
class Calibrated:
    """A float model, what was found in it, its statistics and a plan."""

    path: Path
    model: ir.Model
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
        return solve(
            self.sites.dense,
            self.sites.temporal,
            self.sites.kept,
            self.stats,
            lambda name: constant_array(self.model.graph.initializers[name]),
            SolveOptions(bits, chosen, temporal or chosen.temporal_quantizer),
        )


def calibrated_model(
    path: Path, algorithm: str = "qvd", bits: Bits = W8A8, calls: int = 2
) -> Calibrated:
    """Calibrate the model of a file on noise and solve it."""
    model = prepared(path)
    signature = read_signature(model.graph)
    sites = find_sites(model.graph, signature)
    target = CalibrationTarget(
        model=path,
        model_hash=model_hash(path),
        signature=signature,
        dense=sites.dense,
        temporal=sites.temporal,
        strict_temporal=sites.strict_temporal,
        all_layers=sites.all_layers,
    )
    stats = calibrate(
        target,
        NoiseCalls(signature, calls),
        StatisticsRequest(rows=ALGORITHMS["qvd"].needs_rows),
        SilentProgress(),
        sweep_training_timesteps=False,
    )
    chosen = ALGORITHMS[algorithm]
    plan = solve(
        sites.dense,
        sites.temporal,
        sites.kept,
        stats,
        lambda name: constant_array(model.graph.initializers[name]),
        SolveOptions(bits, chosen, chosen.temporal_quantizer),
    )
    return Calibrated(path, model, signature, sites, stats, plan)
