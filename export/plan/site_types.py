"""Quantization sites: the activation tensors to quantize and the layers that read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

MIN_CHANNELS = 16
"""INT8 kernels work on blocks of 16 channels; narrower layers are faster in float."""

MIN_ROWS_PER_CALL = 16
"""A linear layer that reads fewer rows per call is a matrix-vector product: faster in float."""


class LayerOp(str, Enum):
    """ONNX operators that have an INT8 kernel with a constant weight."""

    CONV = "Conv"
    GEMM = "Gemm"
    MATMUL = "MatMul"


class SiteKind(str, Enum):
    """How a site is quantized."""

    DENSE = "dense"
    """A uniform INT8 grid, one scale per tensor, after a per-channel affine map (SCRI)."""
    TEMPORAL = "temporal"
    """One codebook per tensor (HTDQ); the layers behind it compute in high precision."""


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a convolution's receptive field, spatial axes only.

    A linear layer has the empty window: it reads one row of channels per output.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads_begin: tuple[int, ...] = ()
    pads_end: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Number of spatial positions read per output position."""
        return math.prod(self.kernel)

    @property
    def padded(self) -> bool:
        """Whether any side is zero-padded."""
        return any(self.pads_begin) or any(self.pads_end)

    @property
    def key(self) -> str:
        """A short stable name, for example ``k3x3 s1x1 d1x1 p1x1-1x1``, or ``row`` when empty."""
        if not self.kernel:
            return "row"
        parts = (self.kernel, self.strides, self.dilations, self.pads_begin, self.pads_end)
        k, s, d, b, e = ("x".join(map(str, part)) for part in parts)
        return f"k{k} s{s} d{d} p{b}-{e}"


@dataclass(frozen=True, slots=True)
class Layer:
    """One Conv, Gemm or MatMul whose weight is a constant.

    Attributes:
        name: The node's name, unique in the graph.
        op: Its operator.
        weight: Name of the weight initializer.
        output: Name of the node's output tensor.
        out_axis: Axis of the weight's output channels.
        in_axis: Axis of the weight's input channels (within a group, for grouped convolutions).
        out_channels: Number of output channels.
        weight_size: Number of weight elements.
        window: Receptive field; empty for Gemm and MatMul.
        groups: Convolution groups; 1 otherwise.
    """

    name: str
    op: LayerOp
    weight: str
    output: str
    out_axis: int
    in_axis: int
    out_channels: int
    weight_size: int
    window: Window = Window()
    groups: int = 1

    @property
    def in_channels(self) -> int:
        """Channels of the activation it reads, all groups together."""
        return self.weight_size // (self.out_channels * self.window.taps) * self.groups

    @property
    def channel_axis(self) -> int:
        """The activation's channel axis: 1 for convolutions, -1 for linear layers."""
        return 1 if self.op is LayerOp.CONV else -1

    @property
    def macs_per_output(self) -> int:
        """Multiply-accumulates per output element."""
        return self.weight_size // self.out_channels


@dataclass(frozen=True, slots=True)
class OddLayer:
    """A layer with weights of a form that stays float; its cost counts all the same.

    Attributes:
        name: The node's name, unique in the graph.
        op: Its operator.
        reason: Why it cannot be quantized.
        output: Name of the node's output tensor.
        macs_per_output: Multiply-accumulates per output element.
    """

    name: str
    op: str
    reason: str
    output: str
    macs_per_output: float


@dataclass(frozen=True, slots=True)
class Site:
    """One activation tensor with all the layers that read it along the same channel axis.

    Attributes:
        tensor: Name of the activation tensor; names the site.
        kind: How it is quantized.
        channel_axis: 1 for convolutions, -1 for linear layers.
        channels: Number of channels.
        layers: The layers that share this input, and so share its shift, scale and codes.
        alias: Tells apart a second site on one tensor, whose layers read another axis; else empty.
    """

    tensor: str
    kind: SiteKind
    channel_axis: int
    channels: int
    layers: tuple[Layer, ...]
    alias: str = ""

    @property
    def key(self) -> str:
        """Names the site among all: its tensor, or its alias."""
        return self.alias or self.tensor

    @property
    def windows(self) -> tuple[Window, ...]:
        """The distinct receptive fields of the site's layers, in layer order."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def padded(self) -> bool:
        """Whether any of its layers reads it zero-padded."""
        return any(window.padded for window in self.windows)


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that stays in high precision, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class GraphSites:
    """What can be quantized in a graph.

    Attributes:
        dense: Sites with a uniform grid, in topological order.
        temporal: Sites with a codebook.
        kept: Layers that stay float, with the reason.
        all_layers: Every layer with weights, quantized or not, odd ones last.
        excluded: Names of the first, last and time-path layers, which no share of INT8 counts.
        strict_temporal: Tensors of the temporal sites that depend on the timestep alone.
    """

    dense: tuple[Site, ...]
    temporal: tuple[Site, ...]
    kept: tuple[KeptLayer, ...]
    all_layers: tuple[Layer | OddLayer, ...]
    excluded: frozenset[str]
    strict_temporal: frozenset[str]
