"""The statistics cache: one ``.npz`` file, and whether it belongs to a model."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.statistics.activation_stats import (
    ActivationStats,
    ChannelRanges,
    ReferenceCall,
    SampleRows,
    SiteStats,
    TemporalFeatures,
)
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.atomic_files import not_a_file, write_atomically
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
    """Write the statistics to one ``.npz`` file, atomically."""
    arrays: dict[str, npt.NDArray[Any]] = {"timesteps": stats.timesteps}
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
    arrays["header"] = np.array(json.dumps(header))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def load_stats(path: Path) -> ActivationStats:
    """Read what :func:`save_stats` wrote.

    Raises:
        UserError: the file is missing, damaged, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"--stats: {path} {not_a_file(path)}; give a file that --stats wrote")
    try:
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            if header["format"] != STATS_FORMAT:
                raise UserError(
                    f"--stats: {path} has format {header['format']}, this version reads "
                    f"{STATS_FORMAT}; calibrate again"
                )
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
                magnitudes=dict(
                    zip(header["magnitudes"], data["magnitudes"].tolist(), strict=True)
                ),
                input_ranges={
                    name: (low, high)
                    for name, (low, high) in zip(
                        header["input_ranges"], data["input_ranges"].tolist(), strict=True
                    )
                },
                held_out=_calls(data, header, "held_out"),
                seen=_calls(data, header, "seen"),
            )
    except _DAMAGE as error:
        raise UserError(
            f"--stats: {path} is not a complete statistics file ({error}); "
            "delete it and calibrate again"
        ) from error


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


def check_belongs(stats: ActivationStats, model: FloatModel, path: Path) -> None:
    """Refuse statistics of another model.

    Raises:
        UserError: naming the file.
    """
    if stats.model_hash != model.digest:
        raise UserError(
            f"--stats: {path} belongs to another model ({stats.model_hash[:19]}..., this one is "
            f"{model.digest[:19]}...); delete it or give another path"
        )


def check_sound(stats: ActivationStats, sites: GraphSites, path: Path) -> None:
    """Refuse statistics that lack a layer, are not finite or not of the sites' channels.

    Raises:
        UserError: naming the file and the layer or tensor.
    """
    for layer in sites.all_layers:
        if layer.name not in stats.output_elements:
            raise UserError(
                f"--stats: {path} knows nothing of layer {layer.name!r}, another version of "
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
                f"--stats: {path} holds NaN, Inf or a wrong number of channels for {tensor!r}; "
                "delete it and calibrate again"
            )
