"""What a build asks of an ONNX file; reads the graph and none of the external weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

from qvd_trt.export.errors import UserError

Dim = int | str

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_HTDQ = ("qvd", "HTDQ")
_LOW_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


class HtdqUse(str, Enum):
    """How a file carries the temporal codebooks."""

    NONE = "none"
    """No HTDQ node: none was needed, or its body is inlined."""
    FUNCTION = "function"
    """``qvd::HTDQ`` nodes with a model-local function."""
    PLUGIN = "plugin"
    """``qvd::HTDQ`` nodes alone, which only the plugin can run."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A graph input.

    Attributes:
        name: Its name.
        shape: One entry a dimension: the extent, or the name of a dynamic one (``?`` if nameless).
    """

    name: str
    shape: tuple[Dim, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether a shape must be given to build."""
        return any(isinstance(dim, str) for dim in self.shape)


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model, without the values of external weights.

    Attributes:
        path: Where it is.
        graph: The main graph.
        inputs: Graph inputs without those that have an initializer.
        metadata: The ``metadata_props``, among them ``qvd.target`` and ``qvd.dtype``.
        is_quantized: Whether it has Q/DQ nodes.
        is_float32: Whether no weight has a lower float type.
        has_softmax: Whether it has a Softmax, and so attention.
        htdq: How it carries HTDQ.
        htdq_nodes: Names of the HTDQ nodes.
    """

    path: Path
    graph: Any
    inputs: tuple[ModelInput, ...]
    metadata: Mapping[str, str]
    is_quantized: bool
    is_float32: bool
    has_softmax: bool
    htdq: HtdqUse
    htdq_nodes: tuple[str, ...]


def read_onnx(path: Path) -> OnnxFile:
    """Read a model.

    Raises:
        UserError: The file is missing or is not an ONNX model.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file; name an ONNX model")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own class differs between its implementations
        raise UserError(f"{path} is not an ONNX model: {error}") from error
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX model: it has no nodes")
    graph = model.graph
    initialized = {tensor.name for tensor in graph.initializer}
    htdq_nodes = tuple(node_name(node) for node in graph.node if _key(node) == _HTDQ)
    functions = {(function.domain, function.name) for function in model.functions}
    use = HtdqUse.FUNCTION if _HTDQ in functions else HtdqUse.PLUGIN
    return OnnxFile(
        path=path,
        graph=graph,
        inputs=tuple(_input(value) for value in graph.input if value.name not in initialized),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        is_quantized=any(node.op_type in _QDQ for node in graph.node),
        is_float32=not any(tensor.data_type in _LOW_FLOATS for tensor in graph.initializer),
        has_softmax=any(node.op_type == "Softmax" for node in graph.node),
        htdq=use if htdq_nodes else HtdqUse.NONE,
        htdq_nodes=htdq_nodes,
    )


def node_name(node: Any) -> str:
    """The name by which TensorRT's parsers call a node."""
    return str(node.name) or (f"node_of_{node.output[0]}" if node.output else "")


def _key(node: Any) -> tuple[str, str]:
    return node.domain, node.op_type


def _input(value: Any) -> ModelInput:
    dims = value.type.tensor_type.shape.dim
    return ModelInput(
        value.name,
        tuple(
            dim.dim_value
            if dim.HasField("dim_value") and dim.dim_value >= 0
            else dim.dim_param or "?"
            for dim in dims
        ),
    )
