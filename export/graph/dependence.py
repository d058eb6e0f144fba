"""Which graph inputs a tensor's values depend on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

_SHAPE_BARRIERS = {"Shape", "Size"}


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
            merged = merged.union(*(dependence.get(v, frozenset()) for v in all_inputs(node)))
        for output in node.outputs:
            dependence[output] = merged
    return dependence


def all_inputs(node: ir.Node) -> Iterable[ir.Value]:
    """The node's inputs and everything that its subgraphs read from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from all_inputs(inner)
