"""What a part of a calibration run leaves: a shard, or all that was done before an interruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvd_trt.calibrators.sources.self_sampling import LatentSize
from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats
from qvd_trt.calibrators.statistics.kept_calls import KeptCalls
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A calibration run as a whole, of which there may be several parts.

    Attributes:
        description: Where its calls come from, for the report.
        settings: What its statistics depend on beside the model, by option.
        sweep: Whether strictly temporal sites are evaluated on all training timesteps.
    """

    description: str
    settings: Mapping[str, str]
    sweep: bool

    def difference(self, other: CalibrationRun) -> str | None:
        """The first option in which they differ, as the other has it; None where they are equal."""
        for name in {**self.settings, **other.settings}:
            own, found = self.settings.get(name), other.settings.get(name)
            if own != found:
                return f"another {name} ({_short(found)}, not {_short(own)})"
        return None


def _short(value: str | None) -> str:
    text = "None" if value is None else value
    place = text.find("sha256:")
    return text if place < 0 else text[: place + 15] + "..."


@dataclass(frozen=True, slots=True)
class FirstCall:
    """The first call that a part made; the run's own first one is the least of its parts'.

    Attributes:
        trajectory: Of the call.
        step: Of the call.
        inputs: One array per graph input, by name.
    """

    trajectory: int
    step: int
    inputs: Mapping[str, AnyArray]


@dataclass(frozen=True, slots=True)
class Position:
    """How far a part has come.

    Attributes:
        trajectory: All trajectories of the part with a lower number are finished.
        calls: Calls done after those.
    """

    trajectory: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True)
class CalibrationPart:
    """Statistics of some calls of a run, and what is needed to go on or to merge.

    Attributes:
        stats: Statistics of the part's calls, with empty axes when there was none; without
            held-out and seen calls.
        held_out: Calls kept out of the statistics.
        seen: Some of the calls that are in the statistics.
        first: The first call that was made, or None.
        largest: The largest latent of self-sampled trajectories.
        position: Where to go on; None when the part is finished.
    """

    stats: ActivationStats
    held_out: KeptCalls
    seen: KeptCalls
    first: FirstCall | None
    largest: LatentSize
    position: Position | None = None

    def merged(self, other: CalibrationPart) -> CalibrationPart:
        """What one part of all the calls of both would be; commutative and associative.

        Raises:
            UserError: they belong to different models or hold different sites or windows.
        """
        firsts = [part.first for part in (self, other) if part.first is not None]
        return CalibrationPart(
            self.stats.merged(other.stats),
            self.held_out.merged(other.held_out),
            self.seen.merged(other.seen),
            min(firsts, key=lambda call: (call.trajectory, call.step), default=None),
            max(self.largest, other.largest),
        )


@dataclass(frozen=True, slots=True)
class PartHeader:
    """Which part of what a file holds.

    Attributes:
        model_hash: ``sha256`` of the float model that was run.
        run: The run that it is a part of.
        shard: Which shard of the run.
        finished: Whether the shard is complete.
    """

    model_hash: str
    run: CalibrationRun
    shard: Shard
    finished: bool


def in_order(files: Sequence[tuple[Path, PartHeader]]) -> tuple[Path, ...]:
    """The files of all shards of one run, given in any order, by their shards.

    Raises:
        UserError: naming the file that is of another run or given twice, or the missing shard.
    """
    first_path, first = files[0]
    found: dict[int, Path] = {}
    for path, file in files:
        if not file.finished:
            raise UserError(
                f"--merge-stats: {path} is of an interrupted calibration; finish it with --resume"
            )
        difference = first.run.difference(file.run)
        if file.shard.count != first.shard.count:
            difference = f"another number of shards ({file.shard}, not of {first.shard.count})"
        if difference is not None:
            raise UserError(
                f"--merge-stats: {path} is of another run than {first_path}: it has {difference}; "
                "merge shards of one run"
            )
        if (other := found.get(file.shard.index)) is not None:
            raise UserError(
                f"--merge-stats: {path} is shard {file.shard}, and so is {other}; give each once"
            )
        found[file.shard.index] = path
    count = first.shard.count
    if missing := [str(Shard(i, count)) for i in range(1, count + 1) if i not in found]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"--merge-stats: shard {_listed(missing)} {verb} missing; calibrate it with --shard "
            "and give its file, too"
        )
    return tuple(found[index] for index in sorted(found))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
