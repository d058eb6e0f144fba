"""The quantization plan: every number the QDQ model carries, and why a layer stays float."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.site_types import KeptLayer

FLOAT_BITS = 16
"""A width of 16 leaves that side unquantized."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Bit widths of a quantized layer's weight and input, each 2 to 8, or 16 for float."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        for side, width in (("weight", self.weight), ("activation", self.activation)):
            if width != FLOAT_BITS and not 2 <= width <= 8:
                raise UserError(
                    f"--bits: {side} width {width} is not supported; use 2 to 8, or 16 for float"
                )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weight == FLOAT_BITS and self.activation == FLOAT_BITS

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``w8a8``, ``w4a8``, ``w16a8``...

        Raises:
            UserError: the text is not of this form, or a width is not supported.
        """
        match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
        if match is None:
            raise UserError(f"--bits: {text!r} is not understood; write it as w8a8 or w4a8")
        return cls(weight=int(match[1]), activation=int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


W8A8 = Bits(weight=8, activation=8)
"""The deployable default."""


@dataclass(frozen=True, slots=True, eq=False)
class ActivationQuant:
    """The uniform grid of one dense site: ``x' = (x - shift) / smooth; code = round(x' / scale)``.

    Attributes:
        bits: Width of the codes; fewer than 8 are carried in int8.
        scale: The tensor's one scale (of ``x'``).
        shift: ``z`` of SCRI, ``[C]`` float32, or None for no shift.
        smooth: ``s`` of SCRI, ``[C]`` float32, positive, or None for ones.
    """

    bits: int
    scale: float
    shift: Float32Array | None = None
    smooth: Float32Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WeightQuant:
    """One scale per output channel of a weight (after SCRI has been folded into it).

    Attributes:
        bits: Width of the codes.
        scales: ``[N]`` float32, positive.
    """

    bits: int
    scales: Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class LayerQuant:
    """What changes at one layer.

    Attributes:
        name: The node's name.
        weight: The weight's grid, or None when the weight stays float.
        bias_correction: ``[N]`` float32 added to the bias, or None.
        sqnr: Signal to quantization-noise ratio of the layer's output on calibration rows, in dB,
            or None when the algorithm did not measure it.
    """

    name: str
    weight: WeightQuant | None
    bias_correction: Float32Array | None = None
    sqnr: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DensePlan:
    """One dense site: the activation's grid (None for weight-only) and the layers behind it."""

    tensor: str
    channel_axis: int
    activation: ActivationQuant | None
    layers: tuple[LayerQuant, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """A monotone table: ``q(x) = levels[searchsorted(thresholds, x)]`` (left side).

    Attributes:
        levels: ``[L]`` float32, strictly ascending, 2 to 256 of them.
        thresholds: ``[L - 1]`` float32, ascending.
    """

    levels: Float32Array
    thresholds: Float32Array

    def __call__(self, values: npt.NDArray[np.floating]) -> Float32Array:
        """Quantize-dequantize values of any shape; NaN becomes the last level."""
        found: Float32Array = self.levels[
            np.searchsorted(self.thresholds, np.asarray(values, np.float32))
        ]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class TemporalPlan:
    """One temporal site: its codebook and the layers behind it (weights quantized only).

    Attributes:
        tensor: Name of the temporal feature.
        quantizer: Name of the codebook's construction, for example ``hidi``.
        codebook: The table.
        layers: The layers that read the feature.
        td_score_before: TDScore of the symmetric uniform grid of the same width.
        td_score_after: TDScore of this codebook.
    """

    tensor: str
    quantizer: str
    codebook: Codebook
    layers: tuple[LayerQuant, ...]
    td_score_before: float
    td_score_after: float


@dataclass(frozen=True, slots=True, eq=False)
class QuantPlan:
    """Everything that turns the float model of ``model_hash`` into its QDQ model.

    ``float32`` names tensors that fp16 cannot hold: what writes or reads them stays float32 in an
    fp16 file.
    """

    model_hash: str
    bits: Bits
    algorithm: str
    dense: tuple[DensePlan, ...]
    temporal: tuple[TemporalPlan, ...]
    kept: tuple[KeptLayer, ...]
    float32: tuple[str, ...] = ()

    def layers(self) -> Iterator[LayerQuant]:
        """All quantized layers, dense sites first."""
        for _, layers in self.sites():
            yield from layers

    def sites(self) -> Iterator[tuple[str, tuple[LayerQuant, ...]]]:
        """Every site's tensor with its layers, dense sites first."""
        for dense in self.dense:
            yield dense.tensor, dense.layers
        for temporal in self.temporal:
            yield temporal.tensor, temporal.layers
