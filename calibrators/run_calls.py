"""Driving the calls of a run, or of a shard of it, through the float model; to be gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.sources.self_sampling import LatentSize, SelfSampling
from qvd_trt.calibrators.sources.shard import WHOLE, Shard
from qvd_trt.calibrators.statistics.calibration_part import CalibrationPart, FirstCall, Position
from qvd_trt.calibrators.statistics.collector import StatisticsCollector, has_empty_input
from qvd_trt.calibrators.statistics.kept_calls import KeptCalls
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.progress import Advance

HELD_OUT_STRIDE = 5
"""With a single trajectory, every fifth of its calls is kept out."""

CALLS_BETWEEN_SAVES = 16
"""Within a trajectory the state is saved after so many calls, where it can be gone on with."""

SAVING_SHARE = 0.02
"""At most this share of the time goes into saving: a state is skipped when it comes too soon."""

_NOT_RUN: Float32Array = np.zeros(0, np.float32)

SavePart = Callable[[CalibrationPart], None]
"""Keeps what was collected until now."""


@dataclass(frozen=True, slots=True)
class Share:
    """What of a run is still to be collected here.

    Attributes:
        shard: Which trajectories.
        done: What was collected of them before, or None.
        save: Called from time to time with all that was collected, or None.
    """

    shard: Shard = WHOLE
    done: CalibrationPart | None = None
    save: SavePart | None = None

    def wants(self, trajectory: int) -> bool:
        """Whether the trajectory belongs to the shard and was not finished before."""
        return self.shard.takes(trajectory) and trajectory >= self.begin.trajectory

    @property
    def begin(self) -> Position:
        """Where to begin."""
        found = None if self.done is None else self.done.position
        return Position() if found is None else found


class Collection:
    """Takes every call that a source makes: runs it, skips it, keeps it out, saves the state."""

    def __init__(
        self,
        collector: StatisticsCollector,
        source: CalibrationSource,
        share: Share,
        advance: Advance,
    ) -> None:
        self._collector = collector
        self._source = source
        self._share = share
        self._advance = advance
        trajectories = source.trajectories()
        self._known = trajectories is not None
        self._within = not source.needs_predictions()
        self._choice = _HeldOutChoice(trajectories, source.calls())
        done = share.done
        self._held_out = KeptCalls() if done is None else done.held_out
        self._seen = KeptCalls() if done is None else done.seen
        self._first = None if done is None else done.first
        self._held_out_calls = self._seen_calls = 0
        self._trajectory: int | None = None
        self._made = 0
        """Calls that the source made: of the trajectory where these are known, else of all."""
        self._unsaved = 0
        self._saved_at, self._saving_took = -np.inf, 0.0

    def denoise(self, call: DenoiserCall) -> AnyArray:
        """Run a call of this share and return the prediction; of others an empty array.

        Raises:
            UserError: an activation or the prediction holds NaN or Inf.
        """
        if self._known and call.trajectory != self._trajectory:
            if self._trajectory is not None:
                self._save(Position(call.trajectory, 0))
            self._trajectory, self._made = call.trajectory, 0
        self._made += 1
        taken = self._choice.takes(call)
        shown = not taken and self._choice.compares(call)
        # Places count the calls of other shards, too, so that all of them make one choice.
        place = self._held_out_calls if taken else self._seen_calls
        self._held_out_calls += taken
        self._seen_calls += shown
        self._advance()
        if not self._is_to_run(call):
            return _NOT_RUN
        if self._first is None:
            self._first = FirstCall(call.trajectory, call.step, call.inputs)
        if taken:
            answered = self._collector.hold_out(call)
            self._held_out = self._held_out.with_call(place, answered)
            prediction: AnyArray = answered.prediction
        else:
            prediction = self._collector.observe(call)
            if shown:
                answered = self._collector.answered(call, prediction)
                self._seen = self._seen.with_call(place, answered)
        refuse_not_finite(prediction, call.trajectory, call.step)
        self._unsaved += 1
        if self._within and self._unsaved >= CALLS_BETWEEN_SAVES:
            self._save(Position(call.trajectory if self._known else 0, self._made))
        return prediction

    def finish(self, position: Position | None = None) -> CalibrationPart:
        """All that was collected, before and now."""
        largest = self._source.largest if isinstance(self._source, SelfSampling) else LatentSize()
        now = CalibrationPart(
            self._collector.finish(), KeptCalls(), KeptCalls(), self._first, largest
        )
        if self._share.done is not None:
            now = self._share.done.merged(now)
        return replace(now, held_out=self._held_out, seen=self._seen, position=position)

    def _is_to_run(self, call: DenoiserCall) -> bool:
        begin = self._share.begin
        if not self._share.wants(call.trajectory):
            return False
        interrupted = not self._known or call.trajectory == begin.trajectory
        return not interrupted or self._made > begin.calls

    def _save(self, position: Position) -> None:
        if self._share.save is None or not self._unsaved:
            return
        start = time.monotonic()
        if (start - self._saved_at) * SAVING_SHARE < self._saving_took:
            return
        self._share.save(self.finish(position))
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - start
        self._unsaved = 0


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
