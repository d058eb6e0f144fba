"""The statistics cache: one ``.npz`` file."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.atomic_write import write_atomically
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.stats import (
    ActivationStats,
    ChannelRanges,
    HeldOutCall,
    SampleRows,
    SiteStats,
    TemporalFeatures,
)

STATS_FORMAT = 1

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
        for position, key in enumerate(windows):
            rows = site.rows[key]
            prefix = f"site{index}.window{position}"
            arrays[f"{prefix}.values"] = rows.values
            arrays[f"{prefix}.priorities"] = rows.priorities
            arrays[f"{prefix}.timesteps"] = rows.timesteps
    for index, (name, feature) in enumerate(stats.temporal.items()):
        temporal.append(name)
        arrays[f"temporal{index}.values"] = feature.values
        arrays[f"temporal{index}.timesteps"] = feature.timesteps
    for index, call in enumerate(stats.held_out):
        arrays[f"held_out{index}.prediction"] = call.prediction
        for name, value in call.inputs.items():
            arrays[f"held_out{index}.input.{name}"] = value
    header = {
        "format": STATS_FORMAT,
        "model_hash": stats.model_hash,
        "samples": stats.samples,
        "sites": sites,
        "temporal": temporal,
        "output_elements": dict(stats.output_elements),
        "held_out": [
            {"timestep": call.timestep, "inputs": list(call.inputs)} for call in stats.held_out
        ],
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
        raise UserError(f"--stats: {path} does not exist")
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
                    )
                ranges = ChannelRanges(data[f"site{index}.minimum"], data[f"site{index}.maximum"])
                sites[entry["tensor"]] = SiteStats(ranges, rows, entry["row_limit"])
            temporal = {
                name: TemporalFeatures(
                    data[f"temporal{index}.values"], data[f"temporal{index}.timesteps"]
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
                held_out=tuple(
                    HeldOutCall(
                        inputs={
                            name: data[f"held_out{index}.input.{name}"] for name in entry["inputs"]
                        },
                        prediction=data[f"held_out{index}.prediction"],
                        timestep=entry["timestep"],
                    )
                    for index, entry in enumerate(header["held_out"])
                ),
            )
    except _DAMAGE as error:
        raise UserError(
            f"--stats: {path} is not a complete statistics file ({error}); "
            "delete it and calibrate again"
        ) from error
