"""Parts of a calibration run on disk: shards, and the state of a run that was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qvd_trt.calibrators.sources.self_sampling import LatentSize
from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.calibrators.statistics.calibration_part import (
    CalibrationPart,
    CalibrationRun,
    FirstCall,
    PartHeader,
    Position,
)
from qvd_trt.calibrators.statistics.kept_calls import KeptCalls
from qvd_trt.calibrators.statistics.stats_file import (
    pack_stats,
    reading,
    unpack_stats,
    write_arrays,
)
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError

SUFFIX = ".partial"
"""What is added to the name of a statistics file while calibration is under way."""


def partial_path(stats: Path) -> Path:
    """Where the state of a calibration lies: ``s.npz`` -> ``s.npz.partial``."""
    return stats.with_name(stats.name + SUFFIX)


def save_part(run: CalibrationRun, shard: Shard, part: CalibrationPart, path: Path) -> None:
    """Write a part to one file in the form of statistics, atomically.

    Raises:
        UserError: the disk is full, or takes no such file.
    """
    arrays, header = pack_stats(
        replace(
            part.stats,
            held_out=tuple(part.held_out.calls.values()),
            seen=tuple(part.seen.calls.values()),
        )
    )
    first = None
    if part.first is not None:
        first = {
            "trajectory": part.first.trajectory,
            "step": part.first.step,
            "inputs": list(part.first.inputs),
        }
        arrays.update({f"first.input.{name}": value for name, value in part.first.inputs.items()})
    header["part"] = {
        "shard": [shard.index, shard.count],
        "run": asdict(run),
        "held_out": _places(part.held_out),
        "seen": _places(part.seen),
        "first": first,
        "largest": list(part.largest),
        "position": None if part.position is None else asdict(part.position),
    }
    write_arrays(arrays, header, path)


def load_header(path: Path, option: str) -> PartHeader:
    """Read which part of what a file holds, without its arrays; raises as :func:`load_part`."""
    with reading(path, option) as (_, header):
        found = _part(path, option, header)
        return PartHeader(
            header["model_hash"],
            CalibrationRun(**found["run"]),
            Shard(*found["shard"]),
            found["position"] is None,
        )


def load_part(path: Path, option: str) -> CalibrationPart:
    """Read what :func:`save_part` wrote.

    Args:
        path: The file.
        option: The option that named it, for messages.

    Raises:
        UserError: the file is missing, damaged, of another format version, or no part of a run.
    """
    with reading(path, option) as (data, header):
        found = _part(path, option, header)
        stats = unpack_stats(data, header)
        return CalibrationPart(
            replace(stats, held_out=(), seen=()),
            KeptCalls(
                dict(zip(found["held_out"]["places"], stats.held_out, strict=True)),
                found["held_out"]["stride"],
            ),
            KeptCalls(
                dict(zip(found["seen"]["places"], stats.seen, strict=True)),
                found["seen"]["stride"],
            ),
            None if found["first"] is None else _first(data, found["first"]),
            LatentSize(*found["largest"]),
            None if found["position"] is None else Position(**found["position"]),
        )


def _part(path: Path, option: str, header: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] | None = header.get("part")
    if found is None:
        raise UserError(
            f"{option}: {path} holds the statistics of a whole run, no shard; give it with --stats"
        )
    return found


def _places(kept: KeptCalls) -> dict[str, Any]:
    return {"places": list(kept.calls), "stride": kept.stride}


def _first(data: Mapping[str, AnyArray], found: Mapping[str, Any]) -> FirstCall:
    inputs = {name: data[f"first.input.{name}"] for name in found["inputs"]}
    return FirstCall(found["trajectory"], found["step"], inputs)
