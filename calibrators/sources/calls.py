"""The unit of calibration, one call of the denoiser, and what produces such calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.signature import ModelSignature


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


class ConditionNumbers:
    """Tells trajectories apart where nobody names them: by all inputs but latent and timestep.

    Calls of equal conditions get one number, in the order in which conditions appear.
    """

    def __init__(self, signature: ModelSignature) -> None:
        self._sampled = {signature.latent, signature.timestep}
        self._numbers: dict[bytes, int] = {}

    def number(self, inputs: Mapping[str, AnyArray]) -> int:
        """The number of these inputs' condition, from 0."""
        digest = hashlib.sha256()
        for name in sorted(inputs.keys() - self._sampled):
            digest.update(np.ascontiguousarray(inputs[name]).tobytes())
        return self._numbers.setdefault(digest.digest(), len(self._numbers))


Denoise = Callable[[DenoiserCall], AnyArray]
"""Runs the float model on one call and returns its first output."""


Wanted = Callable[[int], bool]
"""Tells by its number whether a trajectory is to be made."""


def every_trajectory(trajectory: int) -> bool:
    """Make all of them."""
    return True


class CalibrationSource(Protocol):
    """Produces denoiser calls, one after the other; never holds them all."""

    def describe(self) -> str:
        """One line for the report: what the calls come from."""
        ...

    def trajectories(self) -> int | None:
        """Number of trajectories, or None when it is not known before they have run."""
        ...

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        """Number of calls that :meth:`drive` will make, or None."""
        ...

    def settings(self) -> Mapping[str, str]:
        """What the calls depend on, by option; equal for equal calls, wherever files lie."""
        ...

    def needs_predictions(self) -> bool:
        """Whether a call depends on what ``denoise`` returned before in its trajectory."""
        ...

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Make every call once, and each trajectory as a whole where their number is known.

        A source that knows its trajectories makes the wanted ones alone, in ascending order. One
        that does not makes every call, and leaves it to ``denoise`` to run the wanted ones.
        """
        ...
