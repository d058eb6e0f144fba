"""Questions about one tensor: is it a constant, of which shape, on which inputs does it depend."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray

_SHAPE_BARRIERS = {"Shape", "Size"}


def nodes_by_name(graph: ir.Graph) -> dict[str, ir.Node]:
    """The graph's nodes; every one has a unique name once the model is prepared."""
    return {node.name or "": node for node in graph}


def static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The extents of a value whose shape is fixed, such as a weight.

    Raises:
        ValueError: the shape is unknown or symbolic.
    """
    if value is None or value.shape is None or not value.shape.is_static():
        raise ValueError(f"{value} has no fixed shape")
    return tuple(extent for extent in value.shape if isinstance(extent, int))


def named_extents(value: ir.Value) -> tuple[int | str, ...]:
    """The extents of a value of known rank; nameless dynamic ones get names that all differ.

    ONNX files hold those as empty, or as negative numbers.
    """
    assert value.shape is not None
    extents: list[int | str] = []
    for axis, extent in enumerate(value.shape):
        name = f"{value.name}_{axis}"
        if isinstance(extent, int):
            extents.append(extent if extent >= 0 else name)
        else:
            extents.append(extent.value or name)
    return tuple(extents)


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant initializer that callers cannot override."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def constant_array(value: ir.Value) -> AnyArray:
    """The content of an initializer."""
    assert value.const_value is not None
    array: AnyArray = value.const_value.numpy()
    return array


def constant_values(graph: ir.Graph, outside: Collection[ir.Value] = ()) -> set[ir.Value]:
    """All tensors that are stored, or computed from stored ones alone.

    Args:
        graph: The graph, or a body.
        outside: Such tensors of the graphs around a body; they are among those returned.
    """
    constants = {value for value in graph.initializers.values() if is_weight(value)}
    constants.update(outside)
    for node in graph:
        stored = node.op_type == "Constant"
        if stored or (node.inputs and constants.issuperset(all_inputs(node))):
            constants.update(node.outputs)
    return constants


def stored_value(value: ir.Value | None, through: Collection[str]) -> ir.Value | None:
    """The initializer or Constant that a tensor comes from, or None.

    Args:
        value: The tensor.
        through: Operators that may stand between, each with the tensor as its first input.
    """
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in through:
            return value if producer.op_type == "Constant" else None
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def input_dependence(graph: ir.Graph) -> dict[ir.Value, frozenset[str]]:
    """For every value, the names of the graph inputs that its *values* depend on.

    Shape and Size are barriers: what is computed from extents alone depends on no input.
    """
    dependence: dict[ir.Value, frozenset[str]] = {
        value: frozenset({value.name or ""}) for value in graph.inputs
    }
    for node in graph:
        merged: frozenset[str] = frozenset()
        if node.op_type not in _SHAPE_BARRIERS:
            read = all_inputs(node, extents=False)
            merged = merged.union(*(dependence.get(value, frozenset()) for value in read))
        for output in node.outputs:
            dependence[output] = merged
    return dependence


def bodies(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """Every body inside the graph and the node that it belongs to; outer ones come first."""
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                yield node, body
                yield from bodies(body)


def readers(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """For every tensor, the nodes of the graph that read it, themselves or in their bodies.

    What a body takes the extents of alone it does not read.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in dict.fromkeys(all_inputs(node, extents=False)):
            found.setdefault(value, []).append(node)
    return found


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node has a body of its own, as If, Loop and Scan have."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def all_inputs(node: ir.Node, *, extents: bool = True) -> Iterable[ir.Value]:
    """The node's inputs and everything that its subgraphs read from outside.

    Args:
        node: The node.
        extents: Whether that of which a subgraph takes nothing but the extents is given, too.
    """
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                if extents or inner.op_type not in _SHAPE_BARRIERS:
                    yield from all_inputs(inner, extents=extents)
