"""The float model, opened once: its graph, files, interface and layers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.graph.values import constant_array
from qvd_trt.export.plan.site_types import Layer, OddLayer
from qvd_trt.export.targets import FloatType

_BLOCK_BYTES = 1 << 24
_READING = threading.Lock()


@dataclass(frozen=True, eq=False)
class FloatModel:
    """What every stage reads of the model; nothing writes to it.

    Attributes:
        path: The ONNX file.
        data_folder: Where the external weights of ``source`` lie.
        files: It, and the files of its external data.
        stored: Type of its weights, by bytes; everything behind reads them as float32.
        source: The model as the file has it, in the form that ``Normalize`` gives, which ONNX
            Runtime runs. External weights stay on disk until they are read.
        prepared: The same function with named nodes, Attention written out, and weights that are
            plain initializers, which passes start from. Names of tensors are those of the file.
        signature: Its interface.
        layers: Every Conv, Gemm and MatMul with a constant weight that can be quantized, by the
            node's name, in topological order.
        odd_layers: Layers of a form that stays float.
        nodes: The prepared graph's nodes by name.
    """

    path: Path
    data_folder: Path
    files: tuple[Path, ...]
    stored: FloatType
    source: ir.Model
    prepared: ir.Model
    signature: ModelSignature
    layers: Mapping[str, Layer]
    odd_layers: tuple[OddLayer, ...]
    nodes: Mapping[str, ir.Node]

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of all files one after the other; read when first asked for."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
        return f"sha256:{digest.hexdigest()}"

    @property
    def graph(self) -> ir.Graph:
        """The prepared graph."""
        return self.prepared.graph

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def has_external_data(self) -> bool:
        """Whether any weight lies in a file of its own."""
        return len(self.files) > 1

    def weight(self, name: str) -> AnyArray:
        """The content of an initializer, in any thread; an external one is mapped from its file."""
        # Two sites may read one weight at once, and onnx-ir maps a tensor's file unguarded.
        with _READING:
            return constant_array(self.graph.initializers[name])

    def input_of(self, layer: Layer) -> ir.Value:
        """The activation that a layer reads."""
        value = self.nodes[layer.name].inputs[0]
        assert value is not None
        return value
