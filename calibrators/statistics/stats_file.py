"""The statistics cache: one ``.npz`` file, and whether it belongs to a model."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qvd_trt.calibrators.statistics.activation_stats import (
    ActivationStats,
    ChannelRanges,
    ReferenceCall,
    SampleRows,
    SiteStats,
    TemporalFeatures,
)
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file, written_together
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.plan.site_types import GraphSites

STATS_FORMAT = 4

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What numpy, zipfile and json raise on damaged files, depending on where the damage is."""


def save_stats(stats: ActivationStats, path: Path) -> None:
    """Write the statistics to one ``.npz`` file, atomically.

    Raises:
        UserError: the disk is full, or takes no such file.
    """
    arrays, header = pack_stats(stats)
    write_arrays(arrays, header, path)


def pack_stats(stats: ActivationStats) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """The statistics as arrays by name, and the header that makes sense of them."""
    arrays: dict[str, AnyArray] = {"timesteps": stats.timesteps}
    sites, temporal = [], []
    for index, (name, site) in enumerate(stats.sites.items()):
        windows = list(site.rows)
        sites.append({"tensor": name, "windows": windows, "row_limit": site.row_limit})
        arrays[f"site{index}.minimum"] = site.ranges.minimum
        arrays[f"site{index}.maximum"] = site.ranges.maximum
        arrays[f"site{index}.fold_minimum"] = site.fold_ranges.minimum
        arrays[f"site{index}.fold_maximum"] = site.fold_ranges.maximum
        for position, key in enumerate(windows):
            rows = site.rows[key]
            prefix = f"site{index}.window{position}"
            arrays[f"{prefix}.values"] = rows.values
            arrays[f"{prefix}.priorities"] = rows.priorities
            arrays[f"{prefix}.timesteps"] = rows.timesteps
            arrays[f"{prefix}.folds"] = rows.folds
    for index, (name, feature) in enumerate(stats.temporal.items()):
        temporal.append(name)
        arrays[f"temporal{index}.values"] = feature.values
        arrays[f"temporal{index}.timesteps"] = feature.timesteps
        arrays[f"temporal{index}.folds"] = feature.folds
    calls = {"held_out": stats.held_out, "seen": stats.seen}
    for kind, kept in calls.items():
        for index, call in enumerate(kept):
            arrays[f"{kind}{index}.prediction"] = call.prediction
            for name, value in call.inputs.items():
                arrays[f"{kind}{index}.input.{name}"] = value
    arrays["magnitudes"] = np.array(list(stats.magnitudes.values()), np.float64)
    arrays["input_ranges"] = np.array(list(stats.input_ranges.values()), np.float64).reshape(-1, 2)
    header = {
        "format": STATS_FORMAT,
        "model_hash": stats.model_hash,
        "samples": stats.samples,
        "sites": sites,
        "temporal": temporal,
        "output_elements": dict(stats.output_elements),
        "magnitudes": list(stats.magnitudes),
        "input_ranges": list(stats.input_ranges),
        **{
            kind: [
                {"timestep": call.timestep, "step": call.step, "inputs": list(call.inputs)}
                for call in kept
            ]
            for kind, kept in calls.items()
        },
    }
    return arrays, header


def write_arrays(arrays: Mapping[str, AnyArray], header: Mapping[str, Any], path: Path) -> None:
    """Write arrays and their header to one ``.npz`` file, atomically.

    Raises:
        UserError: the disk is full, or takes no such file.
    """
    try:
        # Not in memory first: the statistics of a large model take a gigabyte.
        with written_together(path) as staged, staged.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free space, or give --stats "
            "another path"
        ) from error


def load_stats(path: Path) -> ActivationStats:
    """Read what :func:`save_stats` wrote.

    Raises:
        UserError: the file is missing, damaged, a part of a run, or of another format version.
    """
    with reading(path, "--stats") as (data, header):
        if (part := header.get("part")) is not None:
            raise UserError(
                f"--stats: {path} is shard {part['shard'][0]}/{part['shard'][1]} of a run; give "
                "it and the others to --merge-stats"
            )
        return unpack_stats(data, header)


@contextmanager
def reading(path: Path, option: str) -> Iterator[tuple[Mapping[str, AnyArray], dict[str, Any]]]:
    """Open a statistics file; what goes wrong with it while it is open is told as damage.

    Args:
        path: The file.
        option: The option that named it, for messages.

    Raises:
        UserError: the file is missing, damaged, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"{option}: {path} {not_a_file(path)}; give a file that --stats wrote")
    try:
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            if header["format"] != STATS_FORMAT:
                raise UserError(
                    f"{option}: {path} has format {header['format']}, this version reads "
                    f"{STATS_FORMAT}; calibrate again"
                )
            yield data, header
    except _DAMAGE as error:
        raise UserError(
            f"{option}: {path} is not a complete statistics file ({error}); "
            "delete it and calibrate again"
        ) from error


def unpack_stats(data: Mapping[str, AnyArray], header: Mapping[str, Any]) -> ActivationStats:
    """The statistics behind what :func:`pack_stats` gave."""
    sites = {}
    for index, entry in enumerate(header["sites"]):
        rows = {}
        for position, key in enumerate(entry["windows"]):
            prefix = f"site{index}.window{position}"
            rows[key] = SampleRows(
                data[f"{prefix}.values"],
                data[f"{prefix}.priorities"],
                data[f"{prefix}.timesteps"],
                data[f"{prefix}.folds"],
            )
        sites[entry["tensor"]] = SiteStats(
            _ranges(data, f"site{index}."),
            _ranges(data, f"site{index}.fold_"),
            rows,
            entry["row_limit"],
        )
    temporal = {
        name: TemporalFeatures(
            data[f"temporal{index}.values"],
            data[f"temporal{index}.timesteps"],
            data[f"temporal{index}.folds"],
        )
        for index, name in enumerate(header["temporal"])
    }
    return ActivationStats(
        model_hash=header["model_hash"],
        samples=header["samples"],
        timesteps=data["timesteps"],
        sites=sites,
        temporal=temporal,
        output_elements=header["output_elements"],
        magnitudes=dict(zip(header["magnitudes"], data["magnitudes"].tolist(), strict=True)),
        input_ranges={
            name: (low, high)
            for name, (low, high) in zip(
                header["input_ranges"], data["input_ranges"].tolist(), strict=True
            )
        },
        held_out=_calls(data, header, "held_out"),
        seen=_calls(data, header, "seen"),
    )


def _ranges(data: Mapping[str, AnyArray], prefix: str) -> ChannelRanges:
    return ChannelRanges(data[f"{prefix}minimum"], data[f"{prefix}maximum"])


def _calls(
    data: Mapping[str, AnyArray], header: Mapping[str, Any], kind: str
) -> tuple[ReferenceCall, ...]:
    return tuple(
        ReferenceCall(
            inputs={name: data[f"{kind}{index}.input.{name}"] for name in entry["inputs"]},
            prediction=data[f"{kind}{index}.prediction"],
            timestep=entry["timestep"],
            step=entry["step"],
        )
        for index, entry in enumerate(header[kind])
    )


def check_belongs(model_hash: str, model: FloatModel, path: Path, option: str = "--stats") -> None:
    """Refuse statistics of another model, by the hash of the one that they are of.

    Raises:
        UserError: naming the file.
    """
    if model_hash != model.digest:
        raise UserError(
            f"{option}: {path} belongs to another model ({model_hash[:19]}..., this one is "
            f"{model.digest[:19]}...); delete it or give another path"
        )


def check_sound(
    stats: ActivationStats, sites: GraphSites, path: Path, option: str = "--stats"
) -> None:
    """Refuse statistics that lack a layer, are not finite or not of the sites' channels.

    Raises:
        UserError: naming the file and the layer or tensor.
    """
    for layer in sites.all_layers:
        if layer.name not in stats.output_elements:
            raise UserError(
                f"{option}: {path} knows nothing of layer {layer.name!r}, another version of "
                "qvd-export wrote it; delete it and calibrate again"
            )
    arrays: list[tuple[str, int, AnyArray]] = []
    for site in sites.dense:
        if (found := stats.sites.get(site.key)) is not None:
            rows = [sample.values for sample in found.rows.values()]
            called = found.fold_ranges.called()
            arrays += [
                (site.tensor, site.channels, array)
                for array in (
                    found.ranges.minimum,
                    found.ranges.maximum,
                    found.fold_ranges.minimum[called],
                    found.fold_ranges.maximum[called],
                    *rows,
                )
            ]
    for site in sites.temporal:
        if (feature := stats.temporal.get(site.tensor)) is not None:
            arrays.append((site.tensor, site.channels, feature.values))
    for tensor, channels, array in arrays:
        if array.shape[1:2] != (channels,) or not np.isfinite(array).all():
            raise UserError(
                f"{option}: {path} holds NaN, Inf or a wrong number of channels for {tensor!r}; "
                "delete it and calibrate again"
            )
