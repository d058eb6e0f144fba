"""Calibration as a whole: drive a source, stream statistics, keep some calls out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.arrays import AnyArray
from qvd_trt.calibrators.collect.collector import StatisticsCollector
from qvd_trt.calibrators.collect.request import StatisticsRequest
from qvd_trt.calibrators.collect.temporal_sweep import TemporalSweep, training_timesteps
from qvd_trt.calibrators.ort_session import CPU
from qvd_trt.calibrators.progress import Progress
from qvd_trt.calibrators.sites import Layer, Site
from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import ActivationStats, HeldOutCall

HELD_OUT_CALLS = 8
"""At most this many calls are kept out, so that memory stays bounded."""

HELD_OUT_STRIDE = 5
"""With a single trajectory, every fifth of its calls is kept out."""


@dataclass(frozen=True, slots=True)
class CalibrationTarget:
    """What is calibrated.

    Attributes:
        model: Path of the float model.
        model_hash: Its hash.
        signature: Its interface.
        dense: Sites with a uniform grid.
        temporal: Sites with a codebook.
        strict_temporal: Temporal sites that depend on the timestep alone.
        all_layers: Every layer whose cost is to be known.
    """

    model: Path
    model_hash: str
    signature: ModelSignature
    dense: Sequence[Site]
    temporal: Sequence[Site]
    strict_temporal: frozenset[str]
    all_layers: Sequence[Layer]


def calibrate(
    target: CalibrationTarget,
    source: CalibrationSource,
    request: StatisticsRequest,
    progress: Progress,
    *,
    sweep_training_timesteps: bool,
    providers: Sequence[str] = CPU,
) -> ActivationStats:
    """Run every call of the source through the float model once.

    Args:
        target: The model and its sites.
        source: Where the calls come from.
        request: What the algorithm needs.
        progress: Shown one unit per call.
        sweep_training_timesteps: Evaluate strictly temporal sites on all training timesteps
            instead of those of the calls (right when the sampler is not known).
        providers: ONNX Runtime execution providers.

    Raises:
        UserError: an input does not fit, an activation is NaN or Inf, or there is no call.
    """
    total = source.calls()
    collector = StatisticsCollector(
        target.model,
        target.model_hash,
        target.signature,
        target.dense,
        target.temporal,
        target.all_layers,
        request,
        expected_calls=total,
        providers=providers,
    )
    choice = _HeldOutChoice(source.trajectories(), total)
    held_out: list[HeldOutCall] = []
    template: Mapping[str, AnyArray] = {}
    with progress.step("calibrate", total) as advance:

        def denoise(call: DenoiserCall) -> AnyArray:
            nonlocal template
            template = template or call.inputs
            if choice.takes(call):
                held_out.append(collector.hold_out(call))
                prediction: AnyArray = held_out[-1].prediction
            else:
                prediction = collector.observe(call)
            advance()
            return prediction

        source.drive(denoise)
    stats = replace(collector.finish(), held_out=tuple(_spread(held_out, HELD_OUT_CALLS)))
    strict = [site for site in target.temporal if site.tensor in target.strict_temporal]
    if sweep_training_timesteps and strict:
        sweep = TemporalSweep(target.model, target.signature, strict)
        features = sweep.run(template, training_timesteps(stats.timesteps))
        stats = replace(stats, temporal={**stats.temporal, **features})
    return stats


class _HeldOutChoice:
    """The last trajectory when there are several, else every fifth call."""

    def __init__(self, trajectories: int | None, calls: int | None) -> None:
        self._last = trajectories - 1 if trajectories is not None and trajectories > 1 else None
        self._single_call = calls == 1

    def takes(self, call: DenoiserCall) -> bool:
        if self._last is not None:
            return call.trajectory == self._last
        return not self._single_call and call.step % HELD_OUT_STRIDE == 2


def _spread(calls: Sequence[HeldOutCall], count: int) -> Iterable[HeldOutCall]:
    if len(calls) <= count:
        return calls
    return [calls[index] for index in np.linspace(0, len(calls) - 1, count).round().astype(int)]
