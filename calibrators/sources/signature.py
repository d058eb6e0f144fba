"""What a denoiser's graph takes and returns, and the checks of calibration inputs against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qvd_trt.calibrators.arrays import AnyArray
from qvd_trt.calibrators.errors import UserError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One graph input or output.

    Attributes:
        name: Its name.
        dtype: The numpy dtype's name, for example ``float32``.
        shape: Fixed extents as int, symbolic ones as str.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """The denoiser's interface.

    Attributes:
        inputs: Graph inputs, in order.
        output: The first graph output, the prediction.
        timestep: Name of the timestep input.
        latent: Name of the noisy latent input.
    """

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    timestep: str
    latent: str

    def input(self, name: str) -> TensorSpec:
        """The input of that name."""
        return next(spec for spec in self.inputs if spec.name == name)


def check_inputs(inputs: Mapping[str, AnyArray], signature: ModelSignature, origin: str) -> None:
    """Check one call's arrays against the graph inputs: names, dtypes, ranks, extents, finiteness.

    Raises:
        UserError: naming ``origin``, the input, what it is and what it must be.
    """
    wanted = {spec.name for spec in signature.inputs}
    if missing := sorted(wanted - inputs.keys()):
        raise UserError(
            f"{origin}: no array for the model's input {missing[0]!r}; it has {sorted(inputs)}"
        )
    if extra := sorted(inputs.keys() - wanted):
        raise UserError(
            f"{origin}: {extra[0]!r} is no input of the model; its inputs are {sorted(wanted)}"
        )
    extents: dict[str, int] = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise UserError(
                f"{origin}: {spec.name!r} is {array.dtype}, the model takes {spec.dtype}; "
                f"convert it with .astype('{spec.dtype}')"
            )
        shape_is_wrong = array.ndim != len(spec.shape)
        if not shape_is_wrong:
            for extent, wanted_extent in zip(array.shape, spec.shape, strict=True):
                if isinstance(wanted_extent, str):
                    shape_is_wrong |= extents.setdefault(wanted_extent, extent) != extent
                else:
                    shape_is_wrong |= extent != wanted_extent
        if shape_is_wrong:
            raise UserError(
                f"{origin}: {spec.name!r} has shape {list(array.shape)}, "
                f"the model takes {list(spec.shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{origin}: {spec.name!r} holds NaN or Inf; drop or repair that sample")
