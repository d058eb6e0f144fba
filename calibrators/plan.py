"""The quantization plan: every number the QDQ model carries, and why a layer stays float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.calibrators.bits import Bits
from qvd_trt.calibrators.sites import KeptLayer


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
    """Everything that turns the float model of ``model_hash`` into its QDQ model."""

    model_hash: str
    bits: Bits
    algorithm: str
    dense: tuple[DensePlan, ...]
    temporal: tuple[TemporalPlan, ...]
    kept: tuple[KeptLayer, ...]

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
