"""What a build gave: the engine, how it was built, and what runs in which type."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.node_precision import NodePrecision
from qvd_trt.tools.engine.tensorrt_install import RuntimeKind


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Numbers of engine layers.

    Attributes:
        all: Layers of the engine.
        int8_products: Matrix products and convolutions in INT8.
        copies: Layers that only change the layout or type of a tensor.
        htdq_plugins: HTDQ plugin layers.
        opaque: Fused blocks that do not list their kernels.
    """

    all: int
    int8_products: int
    copies: int
    htdq_plugins: int
    opaque: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """One build.

    Attributes:
        model: The ONNX file.
        engine: The engine file.
        report: The file of this report.
        runtime: ``tensorrt`` or ``rtx``.
        version: Version of TensorRT, dotted.
        flags: Types the builder could use, by trtexec's names.
        shapes: ``NAME:MIN:OPT:MAX`` of the dynamic inputs.
        compute_capabilities: GPU generations of a TensorRT-RTX engine.
        implicit: Whether dynamic ranges stood for the file's Q/DQ.
        plugin: The plugin library, or None.
        plugin_embedded: Whether the engine carries it.
        seconds: Time of the build.
        engine_bytes: Size of the engine.
        trtexec: The command line that does the same; None where trtexec cannot.
        notes: What the user should know of the choices.
        warnings: What the user should change.
        counts: Numbers of layers.
        nodes: Every Conv, ConvTranspose, MatMul and Gemm with constant weights.
        layers: Every layer of the engine.
    """

    model: str
    engine: str
    report: str
    runtime: RuntimeKind
    version: str
    flags: tuple[str, ...]
    shapes: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    implicit: bool
    plugin: str | None
    plugin_embedded: bool
    seconds: float
    engine_bytes: int
    trtexec: str | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: LayerCounts
    nodes: tuple[NodePrecision, ...]
    layers: tuple[EngineLayer, ...]

    @property
    def int8_nodes(self) -> int:
        """How many of `nodes` run in INT8."""
        return sum(node.runs == "int8" for node in self.nodes)

    @property
    def lost_nodes(self) -> tuple[NodePrecision, ...]:
        """Nodes that the file quantizes and the engine does not run in INT8, as far as told."""
        return tuple(node for node in self.nodes if node.quantized and node.runs == "float")

    def to_json(self) -> str:
        """As indented JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def count_layers(layers: Sequence[EngineLayer], htdq_nodes: Sequence[str]) -> LayerCounts:
    """Count the layers; ``htdq_nodes`` are the ONNX nodes that the plugin may run."""
    return LayerCounts(
        all=len(layers),
        int8_products=sum(layer.is_int8_product for layer in layers),
        copies=sum(layer.is_copy for layer in layers),
        htdq_plugins=sum(_is_htdq_plugin(layer, htdq_nodes) for layer in layers),
        opaque=sum(layer.is_opaque for layer in layers),
    )


def _is_htdq_plugin(layer: EngineLayer, htdq_nodes: Sequence[str]) -> bool:
    return layer.is_plugin and ("HTDQ" in layer.raw or bool({*htdq_nodes} & {*layer.onnx_nodes}))
