"""Opens whatever calibration data the user named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qvd_trt.calibrators.sources.calls import (
    CalibrationSource,
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.sources.loader_script import LoaderScript
from qvd_trt.calibrators.sources.npz_files import NpzFiles
from qvd_trt.calibrators.sources.polygraphy_json import PolygraphyJson
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature

_KINDS = ".npz files, a folder of them, Polygraphy .json, or a .py script with load_data()"


class ChainedSources:
    """Several sources one after the other; trajectories are numbered through."""

    def __init__(self, sources: Sequence[CalibrationSource]) -> None:
        """Take the sources in the order in which they are to be driven."""
        self._sources = tuple(sources)

    def describe(self) -> str:
        """One line for the report."""
        return "; ".join(source.describe() for source in self._sources)

    def trajectories(self) -> int | None:
        """Number of trajectories, or None when one source does not know its own."""
        return _total([source.trajectories() for source in self._sources])

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        """Number of calls, or None when one source does not know its own."""
        counts, offset = [], 0
        known = self.trajectories() is not None
        for source in self._sources:
            counts.append(source.calls(_shifted(wanted, offset) if known else every_trajectory))
            offset += source.trajectories() or 0
        return _total(counts)

    def settings(self) -> Mapping[str, str]:
        """Those of every source, one after the other."""
        each = [source.settings()["--calib"] for source in self._sources]
        return {"--calib": "; ".join(each)}

    def needs_predictions(self) -> bool:
        """Whether any source does."""
        return any(source.needs_predictions() for source in self._sources)

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Make every call of every source once; the wanted ones where all know their number."""
        offset = used = 0
        known = self.trajectories() is not None

        def renumbered(call: DenoiserCall) -> AnyArray:
            nonlocal used
            number = offset + call.trajectory
            used = max(used, number + 1)
            return denoise(replace(call, trajectory=number))

        for source in self._sources:
            source.drive(renumbered, _shifted(wanted, offset) if known else every_trajectory)
            # Calls of trajectories that are not wanted are not seen: what is known counts.
            offset = offset + (source.trajectories() or 0) if known else used


def open_source(paths: Sequence[Path], signature: ModelSignature) -> CalibrationSource:
    """The source behind each path, chained when there are several.

    Args:
        paths: ``.npz`` files, folders of ``.npz`` (or of Polygraphy's one-call ``.json``) files,
            Polygraphy ``.json`` files, ``.py`` loader scripts.
        signature: The model that is to be calibrated.

    Raises:
        UserError: a path is missing, of no known kind, or its data do not fit the model.
    """
    if not paths:
        raise UserError(f"no calibration data given; give {_KINDS}")
    sources = [_open_one(path, signature) for path in paths]
    return sources[0] if len(sources) == 1 else ChainedSources(sources)


def _open_one(path: Path, signature: ModelSignature) -> CalibrationSource:
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"{path} {not_a_file(path)}; give {_KINDS}")
    if path.is_dir():
        has_npz = any(path.glob("*.npz"))
        has_json = any(path.glob("*.json"))
        if has_npz and has_json:
            raise UserError(f"{path} holds both .npz and .json files; give the ones to use by name")
        return PolygraphyJson(path, signature) if has_json else NpzFiles(path, signature)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return NpzFiles(path, signature)
    if suffix == ".json":
        return PolygraphyJson(path, signature)
    if suffix == ".py":
        return LoaderScript(path, signature)
    raise UserError(f"{path} is no known kind of calibration data; give {_KINDS}")


def _shifted(wanted: Wanted, offset: int) -> Wanted:
    return lambda trajectory: wanted(offset + trajectory)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
