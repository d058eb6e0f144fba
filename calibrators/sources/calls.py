"""The unit of calibration, one call of the denoiser, and what produces such calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from qvd_trt.export.arrays import AnyArray


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserCall:
    """One evaluation of the denoiser.

    Attributes:
        inputs: One array per graph input, by name, of the graph's dtype and rank.
        trajectory: Index of the denoising trajectory that the call belongs to.
        step: Index of the call within its trajectory.
    """

    inputs: Mapping[str, AnyArray]
    trajectory: int
    step: int


Denoise = Callable[[DenoiserCall], AnyArray]
"""Runs the float model on one call and returns its first output."""


class CalibrationSource(Protocol):
    """Produces denoiser calls, one after the other; never holds them all."""

    def describe(self) -> str:
        """One line for the report: what the calls come from."""
        ...

    def trajectories(self) -> int | None:
        """Number of trajectories, or None when it is not known before they have run."""
        ...

    def calls(self) -> int | None:
        """Number of calls that :meth:`drive` will make, for the progress bar, or None."""
        ...

    def drive(self, denoise: Denoise) -> None:
        """Make every call once; only a sampling source uses what ``denoise`` returns."""
        ...
