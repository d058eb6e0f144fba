"""Finding the norm whose gamma and beta can absorb a per-channel affine map of its output."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from qvd_trt.export.graph.values import is_weight, static_shape


@dataclass(frozen=True, slots=True)
class AffineConstant:
    """One constant operand that spans the channel axis and nothing else."""

    node: ir.Node
    index: int


@dataclass(frozen=True, slots=True)
class AffineProducer:
    """``y = n * gamma + beta`` in front of a site, with only layout changes between.

    Attributes:
        gamma: Where gamma is read.
        beta: Where beta is read.
    """

    gamma: AffineConstant
    beta: AffineConstant


def find_affine_producer(
    value: ir.Value, axis: int, channels: int, readers: Collection[ir.Node]
) -> AffineProducer | None:
    """Walk from a site's tensor up through Transpose and Reshape to a norm's gamma and beta.

    Args:
        value: The site's tensor.
        axis: Its channel axis, 1 or -1.
        channels: Its number of channels.
        readers: The layers of the site. The map may only be absorbed when nobody else reads
            the tensor or anything on the way.

    Returns:
        None when the tensor does not come from a norm with constant gamma and beta, when a layout
        change mixes channels with other axes, or when someone else reads it.
    """
    if value.shape is None:
        return None
    position = axis % len(value.shape)
    allowed = set(readers)
    while True:
        node = value.producer()
        if node is None or value.is_graph_output() or not set(value.consumers()) <= allowed:
            return None
        found = _norm_affine(node, position, channels)
        if found is not None:
            return found
        moved = _through_layout(node, position, channels)
        if moved is None:
            return None
        above = node.inputs[0]
        assert above is not None
        value, position, allowed = above, moved, {node}


def _norm_affine(node: ir.Node, axis: int, channels: int) -> AffineProducer | None:
    shape = node.outputs[0].shape
    rank = len(shape) if shape is not None else None
    if node.op_type == "LayerNormalization" and len(node.inputs) == 3:
        whole_last_axis = node.attributes.get_int("axis", -1) in (-1, (rank or 0) - 1)
        if whole_last_axis and rank is not None and axis == rank - 1:
            return _from_operands(node, 1, node, 2, channels)
        return None
    if node.op_type == "GroupNormalization" and axis == 1:
        return _from_operands(node, 1, node, 2, channels)
    if node.op_type == "Add" and rank is not None:
        return _mul_add(node, axis, rank, channels)
    return None


def _from_operands(
    gamma: ir.Node, gamma_index: int, beta: ir.Node, beta_index: int, channels: int
) -> AffineProducer | None:
    for node, index in ((gamma, gamma_index), (beta, beta_index)):
        operand = node.inputs[index]
        if not is_weight(operand) or math.prod(static_shape(operand)) != channels:
            return None
    return AffineProducer(AffineConstant(gamma, gamma_index), AffineConstant(beta, beta_index))


def _mul_add(add: ir.Node, axis: int, rank: int, channels: int) -> AffineProducer | None:
    """GroupNorm as older opsets write it: InstanceNormalization, Reshape, Mul, Add."""
    beta_index = _channel_operand(add, axis, rank, channels)
    if beta_index is None:
        return None
    inner = add.inputs[1 - beta_index]
    mul = inner.producer() if inner is not None else None
    if mul is None or mul.op_type != "Mul" or inner is None:
        return None
    if len(inner.uses()) != 1 or inner.is_graph_output():
        return None
    gamma_index = _channel_operand(mul, axis, rank, channels)
    if gamma_index is None:
        return None
    return _from_operands(mul, gamma_index, add, beta_index, channels)


def _channel_operand(node: ir.Node, axis: int, rank: int, channels: int) -> int | None:
    """Index of the constant operand that broadcasts along all axes but the channel axis."""
    for index in (0, 1):
        operand = node.inputs[index]
        if not is_weight(operand):
            continue
        extents = list(static_shape(operand))
        aligned = [1] * (rank - len(extents)) + extents
        if aligned == [channels if position == axis else 1 for position in range(rank)]:
            return index
    return None


def _through_layout(node: ir.Node, axis: int, channels: int) -> int | None:
    """The channel axis before a layout change, or None when channels do not pass it whole."""
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm")
        return None if perm is None else int(perm[axis])
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None:
        return None
    trailing = len(after) - axis
    start = len(before) - trailing
    if start < 0 or before[start] != channels:
        return None
    same = all(
        left == right and (isinstance(left, int) or left.value is not None)
        for left, right in zip(list(before)[start:], list(after)[axis:], strict=True)
    )
    return start if same else None
