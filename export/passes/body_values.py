"""Numbers computed inside bodies of If, Loop and Scan, brought out into the graph itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.export.graph.values import bodies

_INT64 = ir.TensorType(ir.DataType.INT64)


class BodyValues:
    """The tensors in all bodies of a graph; asking for one adds nodes and outputs in place."""

    def __init__(self, graph: ir.Graph) -> None:
        """Look through the bodies, whose tensors have names of their own."""
        self._owners: dict[ir.Graph, ir.Node] = {}
        self._values: dict[str, ir.Value] = {}
        for owner, body in bodies(graph):
            self._owners[body] = owner
            self._values |= {out.name or "": out for node in body for out in node.outputs}

    def total_size(self, tensor: str, name: str) -> ir.Value:
        """How many elements of a tensor one run of the graph computes, int64 scalar.

        It is the sum over all trips of a Loop or Scan, and 0 for a branch that was not taken.

        Args:
            tensor: Name of a tensor of a body.
            name: Stem of the new names.

        Raises:
            KeyError: no body has such a tensor.
        """
        value = self._values[tensor]
        node = value.producer()
        assert node is not None
        body = node.graph
        assert isinstance(body, ir.Graph)
        size = ir.node("Size", [value], name=f"{name}/inside")
        body.append(size)
        found = _scalar(size.outputs[0], f"{name}/inside")
        depth = 0
        while (owner := self._owners.get(body)) is not None:
            depth += 1
            bring_out = _from_branch if owner.op_type == "If" else _from_trips
            found = bring_out(found, body, owner, f"{name}/{depth}")
            outer = owner.graph
            assert isinstance(outer, ir.Graph)
            body = outer
        return found


def _scalar(value: ir.Value, name: str) -> ir.Value:
    value.name, value.type, value.shape = name, _INT64, ir.Shape([])
    return value


def _new_output(owner: ir.Node) -> ir.Value:
    owner.resize_outputs(len(owner.outputs) + 1)
    return owner.outputs[-1]


def _from_branch(value: ir.Value, body: ir.Graph, owner: ir.Node, name: str) -> ir.Value:
    """The branch's number where it is taken, else 0."""
    for attribute in owner.attributes.values():
        branch = attribute.as_graph()
        if branch is body:
            branch.outputs.append(value)
            continue
        zero = ir.node("Constant", [], {"value": ir.tensor(np.int64(0))}, name=f"{name}/zero")
        branch.append(zero)
        branch.outputs.append(_scalar(zero.outputs[0], f"{name}/zero"))
    return _scalar(_new_output(owner), name)


def _from_trips(value: ir.Value, body: ir.Graph, owner: ir.Node, name: str) -> ir.Value:
    """The sum over the trips, as outputs of Loop and Scan that are collected give them."""
    body.outputs.append(value)
    for listed in ("scan_output_axes", "scan_output_directions"):
        if listed in owner.attributes:
            numbers = owner.attributes.get_ints(listed, [])
            owner.attributes[listed] = ir.AttrInt64s(listed, [*numbers, 0])
    each = _new_output(owner)
    each.name, each.type, each.shape = f"{name}/each", _INT64, ir.Shape([None])
    total = ir.node("ReduceSum", [each], {"keepdims": 0}, name=f"{name}/sum")
    graph = owner.graph
    assert graph is not None
    graph.insert_after(owner, total)
    return _scalar(total.outputs[0], f"{name}/sum")
