"""A float32 graph rewritten to compute in fp16 or bf16."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import has_subgraph
from qvd_trt.export.passes.edits import new_cast
from qvd_trt.export.passes.insert_htdq import HTDQ_DOMAIN
from qvd_trt.export.passes.opset.schema import (
    DTYPE_ATTRIBUTES,
    STATED_OUTPUT,
    Dtypes,
    describe,
    infer_dtypes,
    is_tied,
    mixed_types,
    parameter,
    schema_of,
)
from qvd_trt.export.passes.precision.float32_nodes import float32_nodes

LowDtype = Literal["fp16", "bf16"]
ScaleDtype = Literal["float32", "same"]

LOW_DTYPES: dict[str, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
BF16_OPSET = 22
"""The first opset whose Conv takes bfloat16."""
SAME_SCALES_OPSET = 19
"""The first opset whose QuantizeLinear takes 16-bit scales."""

_FLOAT = ir.DataType.FLOAT
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_SUFFIXES = {_FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


class LowerPrecision(ir.passes.InPlacePass):
    """Convert weights and computation from float32 to a 16-bit type, with Casts where needed.

    These stay in float32, with Casts around them: the angles of Sin and Cos with their constants
    (back to the first layer with weights), floats computed from extents, the mean of squares of a
    written-out RMSNorm, readers of a constant that the type cannot hold, parameters that an
    operator's schema fixes to float (scales of Resize) and operators that lack the type (Range).
    Nodes of other domains do too, but for ``qvd`` and model-local functions, whose bodies must be
    generic in the type.

    Existing names stay; new tensors are called ``<tensor>/fp16``, ``/bf16`` or ``/fp32``.

    Args:
        dtype: ``fp16`` or ``bf16`` (opset 22 or newer).
        keep_io: Keep graph inputs and outputs float32, cast at the border. Otherwise they take the
            16-bit type, but for inputs that only float32 nodes read.
        qdq_scales: ``float32`` keeps the scales, Q and DQ, and every layer whose two operands come
            from DQ in float32: ``Cast, Q, DQ, MatMul, Cast``, which TensorRT-RTX runs as the INT8
            kernel without overflow of fp16 accumulators. ``same`` lowers the scales and those
            layers too (opset 19 or newer), but for those whose scales fp16 cannot hold.
        float32: Names of tensors beyond the range of fp16: what writes or reads them stays
            float32, with the Q, DQ and layers around it. bf16 has the range of float32.
    """

    def __init__(
        self,
        dtype: LowDtype,
        *,
        keep_io: bool = True,
        qdq_scales: ScaleDtype = "float32",
        float32: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        if dtype not in LOW_DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {sorted(LOW_DTYPES)}")
        if qdq_scales not in ("float32", "same"):
            raise ValueError(f"qdq_scales {qdq_scales!r} is not 'float32' or 'same'")
        self._dtype = dtype
        self._keep_io = keep_io
        self._qdq_scales = qdq_scales
        self._float32 = float32 if dtype == "fp16" else frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph.

        Raises:
            UserError: a subgraph (If, Loop, Scan), a tensor of unknown type, or an opset that is
                too old for the types asked for.
        """
        graph, opset, low = model.graph, model.opset_imports[""], LOW_DTYPES[self._dtype]
        self._check(graph, opset)
        dtypes = infer_dtypes(graph, opset)
        if _FLOAT not in dtypes.values():
            return ir.passes.PassResult(model, False)
        generic = {(f.domain, f.name) for f in model.functions.values()}
        generic |= {(n.domain, n.op_type) for n in graph if n.domain == HTDQ_DOMAIN}
        float32_scales = self._qdq_scales == "float32"
        kept = float32_nodes(
            graph, dtypes, low, opset, generic, self._float32, float32_scales=float32_scales
        )
        rewriter = _Rewriter(graph, dtypes, low, opset, kept.keys())
        rewriter.lower_inputs(keep=self._keep_io)
        rewriter.lower_constants()
        for node in list(graph):
            rewriter.lower_node(node)
        rewriter.lower_outputs(keep=self._keep_io)
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """Check that no node mixes the types of one variable."""
        if mixed := mixed_types(model.graph, model.opset_imports[""]):
            raise ir.passes.PostconditionError(f"types are mixed at {mixed}")

    def _check(self, graph: ir.Graph, opset: int) -> None:
        for node in graph:
            if has_subgraph(node):
                raise UserError(
                    f"{describe(node)}: subgraphs cannot be lowered to {self._dtype}; "
                    "keep it in float32 (--dtype fp32), or export the model without control flow"
                )
            if self._qdq_scales == "same" and opset < SAME_SCALES_OPSET and node.op_type in _QDQ:
                raise UserError(
                    f"{describe(node)}: {self._dtype} scales need opset {SAME_SCALES_OPSET}, "
                    f"the model has {opset}"
                )
        if self._dtype == "bf16" and opset < BF16_OPSET:
            raise UserError(f"bf16 needs opset {BF16_OPSET} or newer, the model has {opset}")


class _Rewriter:
    """The edits of one graph; nodes must be passed in topological order."""

    def __init__(
        self, graph: ir.Graph, dtypes: Dtypes, low: ir.DataType, opset: int, kept: Set[ir.Node]
    ) -> None:
        self._graph = graph
        self._low = low
        self._opset = opset
        self._kept = kept
        self._names = {value.name for value in dtypes} | {node.name for node in graph}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._current = {value: _FLOAT for value, dtype in dtypes.items() if dtype == _FLOAT}
        """The type, by now, of every value that was float32."""

    def lower_inputs(self, *, keep: bool) -> None:
        """Give the low type to inputs that low nodes read alone, unless inputs are kept."""
        for value in self._graph.inputs:
            if not keep and value in self._current and self._wanted(value) == {self._low}:
                self._retype(value, self._low)

    def lower_constants(self) -> None:
        """Convert constants that are read in the low type; those read in both get a copy."""
        stored = [v for v in self._graph.initializers.values() if not v.is_graph_input()]
        computed = [node.outputs[0] for node in self._graph if node.op_type == "Constant"]
        for value in (*stored, *computed):
            if value not in self._current or self._low not in (wanted := self._wanted(value)):
                continue
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                raise UserError(f"the constant {value.name!r} has no value")
            if wanted == {self._low}:
                self._convert(value, lowered(tensor, self._low, value.name or ""))
            else:
                self._casts[value, self._low] = self._copy(value, tensor)

    def lower_node(self, node: ir.Node) -> None:
        """Cast the inputs to the types the node computes in, and note those of its outputs."""
        if node.op_type == "Constant" and not node.domain:
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._current:
                wanted = self._input_dtype(node, index)
                if self._current[value] != wanted:
                    node.replace_input_with(index, self._cast(value, wanted, node))
        for index, output in enumerate(node.outputs):
            if output not in self._current:
                continue
            low = self._gives_low(node, index)
            self._retype(output, self._low if low else _FLOAT)
            if low and index == 0:
                self._restate(node)

    def lower_outputs(self, *, keep: bool) -> None:
        """Cast graph outputs back to float32, or all of them to the low type; names stay."""
        wanted = _FLOAT if keep else self._low
        for index, value in enumerate(self._graph.outputs):
            if value.producer() is None or self._current.get(value, wanted) == wanted:
                continue
            name, before = value.name or "", self._current[value]
            value.name = self._unique(f"{name}/{_SUFFIXES[before]}")
            result = self._new_cast(value, wanted, name)
            self._graph.append(_producer(result))
            self._graph.outputs[index] = result

    def _wanted(self, value: ir.Value) -> set[ir.DataType]:
        """The types in which a value is read; graph outputs are read as they were."""
        wanted = {self._input_dtype(usage.node, usage.idx) for usage in value.uses()}
        return wanted | {_FLOAT} if value.is_graph_output() else wanted

    def _input_dtype(self, node: ir.Node, index: int) -> ir.DataType:
        if node in self._kept:
            return _FLOAT
        schema = schema_of(node, self._opset)
        formal = parameter(schema.inputs, index) if schema else None
        return self._low if formal is None or is_tied(formal) else _FLOAT

    def _gives_low(self, node: ir.Node, index: int) -> bool:
        """Whether an output that was float32 now has the low type."""
        if node in self._kept:
            return False
        schema = schema_of(node, self._opset)
        formal = parameter(schema.outputs, index) if schema else None
        if schema is None or formal is None:
            return True
        if not is_tied(formal):
            return False
        sources = {p.type_str for p in schema.inputs}
        return formal.type_str in sources or node.op_type in STATED_OUTPUT

    def _restate(self, node: ir.Node) -> None:
        """Change the attribute that names the type of the output."""
        name = DTYPE_ATTRIBUTES.get(node.op_type)
        if node.op_type == "ConstantOfShape":
            old = node.attributes.get("value")
            tensor = ir.tensor([0.0], _FLOAT) if old is None else old.as_tensor()
            low = lowered(tensor, self._low, tensor.name or "")
            node.attributes["value"] = ir.AttrTensor("value", low)
        elif name is not None and (
            name in node.attributes or node.op_type in ("RandomNormal", "RandomUniform")
        ):
            node.attributes[name] = ir.AttrInt64(name, int(self._low))

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """The value in another type; made once, before its first reader."""
        key = (value, dtype)
        if key not in self._casts:
            name = self._unique(f"{value.name}/{_SUFFIXES[dtype]}")
            self._casts[key] = self._new_cast(value, dtype, name)
            self._graph.insert_before(before, _producer(self._casts[key]))
        return self._casts[key]

    def _new_cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return new_cast(value, dtype, name, self._unique(f"{value.name}/cast"))

    def _convert(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        producer = value.producer()
        if producer is None:
            value.const_value = tensor
        else:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
        self._retype(value, self._low)

    def _copy(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        name = self._unique(f"{value.name}/{_SUFFIXES[self._low]}")
        copy = ir.Value(
            name=name,
            shape=value.shape or ir.Shape(tensor.numpy().shape),
            type=ir.TensorType(self._low),
            const_value=lowered(tensor, self._low, name),
        )
        self._graph.register_initializer(copy)
        return copy

    def _retype(self, value: ir.Value, dtype: ir.DataType) -> None:
        value.type = ir.TensorType(dtype)
        self._current[value] = dtype

    def _unique(self, stem: str) -> str:
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name


def lowered(tensor: ir.TensorProtocol, low: ir.DataType, name: str) -> ir.TensorProtocol:
    """Round a float32 tensor to ``low``; what is read lazily stays so until it is written."""

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(low.numpy()), dtype=low, name=name)

    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
        return ir.LazyTensor(convert, low, ir.Shape(tensor.shape.numpy()), name=name)
    return convert()


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
