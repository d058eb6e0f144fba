"""Refuses cached statistics of another model, and unsound ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qvd_trt.calibrators.arrays import AnyArray
from qvd_trt.calibrators.collect.calibrate import CalibrationTarget
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.stats import ActivationStats


def check_belongs(stats: ActivationStats, target: CalibrationTarget, path: Path) -> None:
    """Refuse statistics of another model.

    Raises:
        UserError: naming the file.
    """
    if stats.model_hash != target.model_hash:
        raise UserError(
            f"--stats: {path} belongs to another model ({stats.model_hash[:19]}..., this one is "
            f"{target.model_hash[:19]}...); delete it or give another path"
        )


def check_sound(stats: ActivationStats, target: CalibrationTarget, path: Path) -> None:
    """Refuse statistics that are not finite or not of the sites' channels."""
    arrays: list[tuple[str, int, AnyArray]] = []
    for site in target.dense:
        if (found := stats.sites.get(site.tensor)) is not None:
            rows = [sample.values for sample in found.rows.values()]
            arrays += [
                (site.tensor, site.channels, array)
                for array in (found.ranges.minimum, found.ranges.maximum, *rows)
            ]
    for site in target.temporal:
        if (feature := stats.temporal.get(site.tensor)) is not None:
            arrays.append((site.tensor, site.channels, feature.values))
    for tensor, channels, array in arrays:
        if array.shape[1:2] != (channels,) or not np.isfinite(array).all():
            raise UserError(
                f"--stats: {path} holds NaN, Inf or a wrong number of channels for {tensor!r}; "
                "delete it and calibrate again"
            )
