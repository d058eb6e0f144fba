"""Which tensors calibration measures, so that it is known whether fp16 holds every tensor.

A probe in the middle of operators that ONNX Runtime fuses would change the last bits of everything
behind it. So the tensor at the end of such a group is measured, and bounds the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import input_dependence
from qvd_trt.export.passes.opset.schema import infer_dtypes
from qvd_trt.export.passes.precision.float32_nodes import always_float32
from qvd_trt.export.passes.precision.large_values import GATES

_GROWING = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Sum", "Pow", "Exp", "CumSum", "Reciprocal", "Einsum"),
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "ReduceSum", "ReduceSumSquare", "ReduceProd"),
        "Attention",
    )
)
"""Operators whose result can be far larger, or smaller, than what they read. All others hand values
on (layout, selections, activations, means) or bound them (norms, Softmax, Sigmoid, Tanh)."""

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
"""Only their constants are read: those of layers are the weights, gigabytes of them."""

_ONE_SIDED = ("Gelu", "LayerNormalization", "SkipLayerNormalization")
"""With the Add before them they become one kernel."""


@dataclass(frozen=True, slots=True)
class Bound:
    """``|tensor| <= factor * sum(|measured|) + offset``.

    Attributes:
        measured: Names of the tensors that are measured.
        factor: What their magnitudes are multiplied with.
        offset: What is added: the largest magnitude of a constant.
    """

    measured: tuple[str, ...]
    factor: float = 1.0
    offset: float = 0.0

    def __call__(self, magnitudes: Mapping[str, float]) -> float:
        """The bound; zero when what is measured is zero."""
        total = sum(magnitudes[name] for name in self.measured)
        return self.factor * total + self.offset if total else 0.0


def measured_tensors(graph: ir.Graph, opset: int) -> dict[str, Bound]:
    """Bound the float32 tensors that fp16 may not hold, by name.

    Left out are tensors that depend on no graph input, what stays float32 in any case, and results
    that cannot be larger than what is read: gates, the scaling inside a norm, the argument of a
    Tanh. A graph of which not every type is known has none: it cannot be lowered either.

    Args:
        graph: The prepared float graph.
        opset: Its opset of the default domain.
    """
    try:
        dtypes = infer_dtypes(graph, opset)
    except UserError:
        return {}
    dependence = input_dependence(graph)
    fixed = always_float32(graph, dtypes)
    passed = fixed | _saturated(graph)
    return {
        node.outputs[0].name or "": _bound(node)
        for node in graph
        if not node.domain
        and node.op_type in _GROWING
        and node not in passed
        and dtypes[node.outputs[0]] == ir.DataType.FLOAT
        and dependence[node.outputs[0]]
        and not _attenuates(node, fixed)
    }


def _bound(node: ir.Node) -> Bound:
    """Measure a result itself or, where that would part a fused group, what comes after it."""
    output = node.outputs[0]
    user = _only_user(output)
    if _ends_in_one_kernel(node):
        terms = [value for value in node.inputs if value is not None]
        names = tuple(value.name or "" for value in terms if _constant(value) is None)
        return Bound(names, offset=sum(_constant(value) or 0.0 for value in terms))
    if user is None or user.domain or _ends_in_one_kernel(user):
        return Bound((output.name or "",))
    after = (user.outputs[0].name or "",)
    if user.op_type not in _ELEMENTWISE:
        return Bound((output.name or "",))
    others = [value for value in user.inputs if value is not None and value is not output]
    factor = _constant(others[0]) if len(others) == 1 else None
    if user.op_type in ("Add", "Sub"):
        if factor is not None:
            return Bound(after, offset=factor)
        if node.op_type == "Conv":
            # Sums of convolutions run as one kernel; that both terms are huge and cancel is left
            # to the measurement of the written file.
            return Bound(after)
    if factor and _is_scalar(others[0]) and user.inputs[0] is output:
        if user.op_type == "Mul":
            return Bound(after, 1.0 / factor)
        if user.op_type == "Div":
            return Bound(after, factor)
    return Bound((output.name or "",))


def _ends_in_one_kernel(node: ir.Node) -> bool:
    user = _only_user(node.outputs[0])
    return node.op_type == "Add" and user is not None and user.op_type in _ONE_SIDED


def _attenuates(node: ir.Node, fixed: Iterable[ir.Node]) -> bool:
    """Whether the result is no larger than an operand, and not far smaller either."""
    if node.op_type not in _ELEMENTWISE:
        return False
    producers = [None if value is None else value.producer() for value in node.inputs]
    if node.op_type in ("Mul", "Div") and any(p in fixed for p in producers if p is not None):
        return True  # a norm that is written out: x / sqrt(mean(x^2))
    if node.op_type == "Sub" and producers[1] is not None:
        return producers[1].op_type == "ReduceMean"
    bounded = [p is not None and p.op_type in GATES for p in producers]
    constants = [None if value is None else _constant(value) for value in node.inputs]
    if node.op_type == "Mul":
        return any(bounded) or any(
            constant is not None and _is_scalar(value) and 2.0**-7 <= constant <= 1.0
            for value, constant in zip(node.inputs, constants, strict=True)
        )
    if node.op_type == "Div":
        divisor = constants[1]
        return divisor is not None and _is_scalar(node.inputs[1]) and 1.0 <= divisor <= 2.0**7
    return node.op_type == "Add" and all(
        gate or (constant is not None and constant <= 1.0)
        for gate, constant in zip(bounded, constants, strict=True)
    )


def _saturated(graph: ir.Graph) -> set[ir.Node]:
    """Find what only makes the argument of a Tanh: an infinite one gives the right limit."""
    found: set[ir.Node] = set()
    for node in reversed(list(graph)):
        users = node.outputs[0].consumers()
        only = bool(users) and all(user.op_type == "Tanh" or user in found for user in users)
        if only and node.op_type in ("Mul", "Add", "Pow"):
            found.add(node)
    return found


def _only_user(value: ir.Value) -> ir.Node | None:
    users = value.consumers()
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _constant(value: ir.Value) -> float | None:
    """Largest magnitude of a constant, None for what is computed."""
    if value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    return float(np.abs(tensor.numpy()).max(initial=0.0))


def _is_scalar(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1
