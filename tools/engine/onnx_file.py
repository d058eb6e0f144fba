"""What a build asks of an ONNX file; reads the graph and none of the external weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import onnx_ir as ir

from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import stored_value
from qvd_trt.export.model_file import model_files
from qvd_trt.export.passes.insert_htdq import HTDQ_DOMAIN, HTDQ_OP, HTDQ_SUFFIX

Dim = int | str

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

_TRANSPARENT = frozenset({"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
_LOW_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


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
        is_symmetric: Whether no zero point is known to differ from 0.
        is_float32: Whether no weight has a lower float type.
        has_softmax: Whether it has a Softmax, and so attention.
        htdq: How it carries HTDQ.
        htdq_nodes: Names of the HTDQ nodes.
        files: The file, and those of its external weights.
    """

    path: Path
    graph: ir.Graph
    inputs: tuple[ModelInput, ...]
    metadata: Mapping[str, str]
    is_quantized: bool
    is_symmetric: bool
    is_float32: bool
    has_softmax: bool
    htdq: HtdqUse
    htdq_nodes: tuple[str, ...]
    files: tuple[Path, ...] = ()


def read_onnx(path: Path) -> OnnxFile:
    """Read a model.

    Raises:
        UserError: The file is missing or is not an ONNX model.
    """
    if not path.is_file():
        raise UserError(f"{path} {not_a_file(path)}; name an ONNX model")
    try:
        model = ir.load(path)
    except OSError:
        raise
    except Exception as error:  # protobuf's own class differs between its implementations
        raise UserError(f"{path} is not an ONNX model: {_first_cause(error)}") from error
    graph = model.graph
    if not len(graph):
        raise UserError(f"{path} is not an ONNX model: it has no nodes")
    htdq_nodes = tuple(
        node_name(node) for node in graph if (node.domain, node.op_type) == (HTDQ_DOMAIN, HTDQ_OP)
    )
    functions = {(function.domain, function.name) for function in model.functions.values()}
    use = HtdqUse.FUNCTION if (HTDQ_DOMAIN, HTDQ_OP) in functions else HtdqUse.PLUGIN
    weights = (value.const_value for value in graph.initializers.values())
    return OnnxFile(
        path=path,
        graph=graph,
        inputs=tuple(_input(value) for value in graph.inputs if not value.is_initializer()),
        metadata=dict(model.metadata_props),
        is_quantized=any(node.op_type in QDQ_OPS for node in graph),
        is_symmetric=not any(map(_has_zero_point, graph)),
        is_float32=not any(
            tensor is not None and tensor.dtype in _LOW_FLOATS for tensor in weights
        ),
        has_softmax=any(node.op_type == "Softmax" for node in graph),
        htdq=use if htdq_nodes else HtdqUse.NONE,
        htdq_nodes=htdq_nodes,
        files=model_files(path, model),
    )


def node_name(node: ir.Node) -> str:
    """The name by which TensorRT's parsers call a node."""
    return node.name or (f"node_of_{node.outputs[0].name}" if node.outputs else "")


def _has_zero_point(node: ir.Node) -> bool:
    """Whether the zero point of a Q or DQ differs from 0, or is uint8 in a file of its own."""
    if node.op_type not in QDQ_OPS or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    tensor = ir.convenience.get_const_tensor(node.inputs[2])
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return tensor is not None and tensor.dtype == ir.DataType.UINT8
    return bool(tensor.numpy().any())


def _first_cause(error: BaseException) -> str:
    """The reason below onnx-ir's own errors, which name the part of the file alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _input(value: ir.Value) -> ModelInput:
    return ModelInput(value.name or "", tuple(map(_dim, value.shape or ())))


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else "?"
    return str(dim.value or "?")


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A Conv, ConvTranspose, MatMul or Gemm whose second operand is constant.

    Attributes:
        name: The node.
        op: Its operator.
        unquantized: The operand without a DequantizeLinear (``input X`` or ``weight X``), or None
            where both have one.
        reads_codebook: Whether its input is an HTDQ codebook's, which is float by design.
        trap: A known mistake in its Q/DQ pair that makes TensorRT run it in float, or None.
        channels: Smaller one of input and output channels of a convolution (a group's, where
            there are groups); None where the file does not tell.
    """

    name: str
    op: str
    unquantized: str | None
    reads_codebook: bool
    trap: str | None
    channels: int | None

    @property
    def is_quantized(self) -> bool:
        """Whether the file asks for INT8."""
        return self.unquantized is None


def weight_layers(model: OnnxFile) -> Iterator[WeightLayer]:
    """Yield the layers with constant weights, in the order of the graph."""
    for node in model.graph:
        if node.op_type not in WEIGHT_OPS or node.domain or len(node.inputs) < 2:
            continue
        data, weight = node.inputs[:2]
        if _stored(weight) is None:
            if node.op_type != "MatMul" or _stored(data) is None:
                continue
            data, weight = weight, data
        extents = _extents(_stored(weight))
        yield WeightLayer(
            name=node_name(node),
            op=node.op_type,
            unquantized=_unquantized(data, weight),
            reads_codebook=_reads_codebook(data),
            trap=_trap(node, data, weight),
            channels=min(extents[:2]) if "Conv" in node.op_type and len(extents) > 2 else None,
        )


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The initializer or Constant that a tensor is made of, or None where there is none."""
    return stored_value(value, through=_TRANSPARENT | QDQ_OPS)


def _extents(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of an initializer; empty for all else."""
    tensor = None if value is None else value.const_value
    return () if tensor is None else tuple(tensor.shape.numpy())


def _before_casts(value: ir.Value | None) -> ir.Value | None:
    """The tensor before casts and changes of shape."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _TRANSPARENT:
            break
        value = node.inputs[0]
    return value


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a tensor, but for casts and changes of shape."""
    source = _before_casts(value)
    return None if source is None else source.producer()


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a tensor comes from."""
    node = _maker(value)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _reads_codebook(data: ir.Value | None) -> bool:
    """An inlined HTDQ node leaves only the name of its output."""
    source, node = _before_casts(data), _maker(data)
    named = source is not None and (source.name or "").endswith(HTDQ_SUFFIX)
    return named or (node is not None and node.op_type == HTDQ_OP)


def _unquantized(data: ir.Value | None, weight: ir.Value | None) -> str | None:
    for role, value in (("input", data), ("weight", weight)):
        if _dequantizer(value) is None:
            return f"{role} {'' if value is None else value.name}"
    return None


def _trap(node: ir.Node, data: ir.Value | None, weight: ir.Value | None) -> str | None:
    of_data, of_weight = _dequantizer(data), _dequantizer(weight)
    if weight is None or of_data is None or of_weight is None:
        return None
    if "Conv" in node.op_type and _extents(of_data.inputs[1]):
        return "its activation scale has shape [1], which counts as per axis; it must be a scalar"
    axis, wanted = of_weight.attributes.get_int("axis", 1), _weight_axis(node)
    if axis < 0:
        axis += len(_extents(_stored(weight)))
    direct = weight.producer() is of_weight
    if direct and _extents(of_weight.inputs[1]) not in ((), (1,)) and axis != wanted:
        return f"its weight scales lie along axis {axis} instead of {wanted}"
    return None


def _weight_axis(node: ir.Node) -> int:
    """The axis of the output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get_int("transB", 0)
    return 0 if node.op_type == "Gemm" and transposed else 1
