"""Calibration as a whole: drive a source, stream statistics, keep some calls out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, ReferenceCall
from qvd_trt.calibrators.statistics.collector import StatisticsCollector, has_empty_input
from qvd_trt.calibrators.temporal.timestep_sweep import TemporalSweep, training_timesteps
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.ort_session import CPU
from qvd_trt.export.plan.site_types import GraphSites
from qvd_trt.export.progress import SILENT, Progress

HELD_OUT_CALLS = 8
"""At most this many calls are kept out, so that memory stays bounded."""

HELD_OUT_STRIDE = 5
"""With a single trajectory, every fifth of its calls is kept out."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        rows: Whether the algorithm needs sample rows of the layers' inputs.
        sweep_training_timesteps: Evaluate strictly temporal sites on all training timesteps
            instead of those of the calls (right when the sampler is not known).
        providers: ONNX Runtime execution providers, first choice first.
    """

    rows: bool = True
    sweep_training_timesteps: bool = False
    providers: Sequence[str] = CPU


def calibrate(
    model: FloatModel,
    sites: GraphSites,
    source: CalibrationSource,
    options: CalibrationOptions,
    progress: Progress = SILENT,
) -> ActivationStats:
    """Run every call of the source through the float model once.

    Args:
        model: The float model.
        sites: What of it is quantized.
        source: Where the calls come from.
        options: What is kept of them.
        progress: Shown one unit per call.

    Raises:
        UserError: an input does not fit, an activation or a prediction is NaN or Inf, or there is
            no call.
    """
    total = source.calls()
    collector = StatisticsCollector(
        model, sites, rows=options.rows, expected_calls=total, providers=options.providers
    )
    choice = _HeldOutChoice(source.trajectories(), total)
    held_out = _Spread(HELD_OUT_CALLS)
    seen = _Spread(HELD_OUT_CALLS)
    template: Mapping[str, AnyArray] = {}
    with progress.step("calibrate", total) as advance:

        def denoise(call: DenoiserCall) -> AnyArray:
            nonlocal template
            template = template or call.inputs
            if choice.takes(call):
                answered = collector.hold_out(call)
                held_out.add(answered)
                prediction: AnyArray = answered.prediction
            else:
                prediction = collector.observe(call)
                if choice.compares(call):
                    seen.add(collector.answered(call, prediction))
            refuse_not_finite(prediction, call.trajectory, call.step)
            advance()
            return prediction

        source.drive(denoise)
    stats = replace(collector.finish(), held_out=held_out.chosen(), seen=seen.chosen()[::2])
    strict = [site for site in sites.temporal if site.tensor in sites.strict_temporal]
    if options.sweep_training_timesteps and strict:
        sweep = TemporalSweep(model, strict)
        features = sweep.run(template, training_timesteps(stats.timesteps, sweep.table_rows))
        stats = replace(stats, temporal={**stats.temporal, **features})
    return stats


def refuse_not_finite(prediction: AnyArray, trajectory: int, step: int) -> None:
    """Refuse a float model that is no reference on these inputs.

    Raises:
        UserError: the prediction holds NaN or Inf.
    """
    if not np.isfinite(prediction).all():
        raise UserError(
            f"the float model's prediction holds NaN or Inf at trajectory {trajectory}, step "
            f"{step}; check that the calls are sound (--calib, --sampler, --prediction) and that "
            "the model gives finite numbers on them in ONNX Runtime"
        )


class _HeldOutChoice:
    """The last trajectory when there are several, else every fifth call."""

    def __init__(self, trajectories: int | None, calls: int | None) -> None:
        self._last = trajectories - 1 if trajectories is not None and trajectories > 1 else None
        self._single_call = calls == 1

    def compares(self, call: DenoiserCall) -> bool:
        """Whether held-out calls may be compared with this one: their trajectory is another."""
        return self._last is not None and call.trajectory == 0 and not has_empty_input(call)

    def takes(self, call: DenoiserCall) -> bool:
        if self._last is not None:
            return call.trajectory == self._last
        return not self._single_call and call.step % HELD_OUT_STRIDE == 2


class _Spread:
    """A few calls of a stream, evenly spread; holds at most twice as many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[ReferenceCall] = []
        self._newest: ReferenceCall | None = None
        self._stride, self._added = 1, 0

    def add(self, call: ReferenceCall) -> None:
        if self._added % self._stride == 0:
            self._kept.append(call)
        if len(self._kept) > 2 * self._count:
            self._kept = self._kept[::2]
            self._stride *= 2
        self._newest = call
        self._added += 1

    def chosen(self) -> tuple[ReferenceCall, ...]:
        """All calls where they are few, else the first, the newest and some between."""
        calls = list(self._kept)
        if self._newest is not None and calls[-1] is not self._newest:
            calls.append(self._newest)
        if len(calls) > self._count:
            places = np.linspace(0, len(calls) - 1, self._count).round().astype(int)
            calls = [calls[place] for place in places]
        return tuple(calls)
