"""Writing older operators in the place of one node, and reading what that node takes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.edits import add_initializer


class NodeBuilder:
    """Puts new nodes before one node and finally takes its place.

    New nodes and constants are called ``<stem>/<operator>_<count>`` and ``<stem>/<name>``.

    Args:
        node: The node that is written out.
        stem: How names begin; None takes the node's name, or that of its first output.
    """

    def __init__(self, node: ir.Node, stem: str | None = None) -> None:
        self._node = node
        self._stem = stem or node.name or node.outputs[0].name
        self._count = 0
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        self._graph = graph

    def constant(self, name: str, array: AnyArray) -> ir.Value:
        """Store a constant of this dtype and shape."""
        return add_initializer(self._graph, f"{self._stem}/{name}", array)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value | None = None,
        **attrs: object,
    ) -> ir.Value:
        """Add a node; its output has the type and shape of ``like``."""
        self._count += 1
        name = f"{self._stem}/{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attrs, name=name)  # type: ignore[arg-type]
        output = node.outputs[0]
        output.name = name
        if like is not None:
            output.type, output.shape = like.type, like.shape
        self._graph.insert_before(self._node, node)
        return output

    def take_place(self, old: ir.Value, new: ir.Value) -> None:
        """Let a new value stand for one of the node's outputs, under its name and type."""
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}/replaced"
        new.name = name

    def finish(self, result: ir.Value) -> None:
        """Let ``result`` stand for the node's first output, and drop the node."""
        self.take_place(self._node.outputs[0], result)
        self._graph.remove(self._node, safe=True)
        producer = result.producer()
        if producer is not None:
            producer.name = self._node.name
            producer.metadata_props.update(self._node.metadata_props)


def constant_operand(node: ir.Node, index: int, what: str) -> AnyArray | None:
    """Read the constant content of an optional input, None without that input.

    Raises:
        UserError: it is computed; ``what`` names it.
    """
    value = optional_operand(node, index)
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise UserError(f"its {what} ({value.name!r}) are not a constant")
    array: AnyArray = tensor.numpy()
    return array


def drop_default(node: ir.Node, name: str, default: ir.Attr) -> None:
    """Remove an attribute that says what its absence says.

    Raises:
        UserError: it says something else.
    """
    attribute = node.attributes.pop(name, None)
    if attribute is not None and attribute.value != default.value:
        raise UserError(f"{name}={attribute.value} has no older equal")


def dtype_of(value: ir.Value) -> ir.DataType:
    """Give the element type.

    Raises:
        UserError: it is not known.
    """
    if value.dtype is None:
        raise unknown("type", value)
    return value.dtype


def operand(node: ir.Node, index: int) -> ir.Value:
    """Give an input that the operator cannot do without."""
    value = node.inputs[index]
    assert value is not None
    return value


def optional_operand(node: ir.Node, index: int) -> ir.Value | None:
    """Give an input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def rank_of(value: ir.Value) -> int:
    """Count the axes.

    Raises:
        UserError: the shape is not known.
    """
    if value.shape is None:
        raise unknown("rank", value)
    return len(value.shape)


def extent_of(value: ir.Value, axis: int) -> int | None:
    """Give a fixed extent, None where it is dynamic or not known."""
    extent = None if value.shape is None else value.shape[axis]
    return extent if isinstance(extent, int) else None


def unknown(what: str, value: ir.Value) -> UserError:
    """The error of a type or shape that nobody tells; inference loses some behind a Loop."""
    return UserError(
        f"the {what} of {value.name!r} is neither stated nor inferred; state it in the model's "
        "value_info, or export with an opset that the target takes"
    )
