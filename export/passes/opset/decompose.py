"""Activations, norms and rotations that older opsets lack, written out in what they have."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.node_builder import (
    NodeBuilder,
    dtype_of,
    extent_of,
    operand,
    optional_operand,
    rank_of,
    unknown,
)


def decompose_gelu(node: ir.Node, opset: int) -> None:
    """``x/2 (1 + erf(x / sqrt 2))``, or the tanh form (the function of Gelu-20)."""
    del opset
    build, x = NodeBuilder(node), operand(node, 0)
    dtype = dtype_of(x).numpy()

    def scalar(name: str, value: float) -> ir.Value:
        return build.constant(name, np.array(value, dtype))

    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = build.op("Mul", [build.op("Mul", [x, x], x), x], x)
        small = build.op("Mul", [cube, scalar("cubic", 0.044715)], x)
        angle = build.op(
            "Mul", [build.op("Add", [x, small], x), scalar("rate", math.sqrt(2 / math.pi))], x
        )
        step = build.op("Tanh", [angle], x)
    else:
        step = build.op("Erf", [build.op("Div", [x, scalar("sqrt2", math.sqrt(2.0))], x)], x)
    gate = build.op("Add", [step, scalar("one", 1.0)], x)
    build.finish(build.op("Mul", [build.op("Mul", [x, gate], x), scalar("half", 0.5)]))


def decompose_mish(node: ir.Node, opset: int) -> None:
    """``x tanh(softplus x)``."""
    del opset
    build, x = NodeBuilder(node), operand(node, 0)
    build.finish(build.op("Mul", [x, build.op("Tanh", [build.op("Softplus", [x], x)], x)]))


def decompose_swish(node: ir.Node, opset: int) -> None:
    """``x sigmoid(alpha x)``."""
    del opset
    build, x = NodeBuilder(node), operand(node, 0)
    alpha, argument = node.attributes.get_float("alpha", 1.0), x
    if alpha != 1.0:
        factor = build.constant("alpha", np.array(alpha, dtype_of(x).numpy()))
        argument = build.op("Mul", [x, factor], x)
    build.finish(build.op("Mul", [x, build.op("Sigmoid", [argument], x)], x))


def decompose_group_norm(node: ir.Node, opset: int) -> None:
    """Reshape to ``[N, groups, L]``, InstanceNormalization, Reshape, then scale and bias.

    These are per channel from opset 21 on, per group before.
    """
    build, x = NodeBuilder(node), operand(node, 0)
    scale, bias = node.inputs[1], node.inputs[2]
    assert scale is not None
    assert bias is not None
    groups = node.attributes.get_int("num_groups", 0)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    stash = ir.DataType(node.attributes.get_int("stash_type", int(ir.DataType.FLOAT)))
    wide = opset >= 21 and dtype_of(x) != stash
    source = build.op("Cast", [x], to=int(stash)) if wide else x
    inner = (stash if wide else dtype_of(x)).numpy()
    rows = build.op("Reshape", [source, build.constant("rows", np.array([0, groups, -1]))])
    # The rewrite for TensorRT 8.6 knows the norm of groups by its rank, ones and zeros.
    rows.dtype, rows.shape = stash if wide else dtype_of(x), ir.Shape([None, groups, None])
    ones = build.constant("ones", np.ones(groups, inner))
    zeros = build.constant("zeros", np.zeros(groups, inner))
    normal = build.op("InstanceNormalization", [rows, ones, zeros], rows, epsilon=float(epsilon))
    if opset < 21:
        row = build.constant("per_group", np.array([1, -1, 1]))
        normal = build.op("Mul", [normal, build.op("Reshape", [scale, row])], rows)
        normal = build.op("Add", [normal, build.op("Reshape", [bias, row])], rows)
        build.finish(build.op("Reshape", [normal, build.op("Shape", [x])]))
        return
    normal = build.op("Reshape", [normal, build.op("Shape", [x])])
    if wide:
        normal = build.op("Cast", [normal], x, to=int(dtype_of(x)))
    spread = build.constant("per_channel", np.array([-1, *[1] * (rank_of(x) - 2)]))
    scaled = build.op("Mul", [normal, build.op("Reshape", [scale, spread])], x)
    build.finish(build.op("Add", [scaled, build.op("Reshape", [bias, spread])]))


def decompose_rms_norm(node: ir.Node, opset: int) -> None:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, the mean in the stash type."""
    del opset
    build, x = NodeBuilder(node), operand(node, 0)
    scale = node.inputs[1]
    assert scale is not None
    axis = node.attributes.get_int("axis", -1)
    first = axis if axis < 0 else axis - rank_of(x)
    stash = ir.DataType(node.attributes.get_int("stash_type", int(ir.DataType.FLOAT)))
    wide = dtype_of(x) != stash
    source = build.op("Cast", [x], to=int(stash)) if wide else x
    epsilon = build.constant(
        "epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), stash.numpy())
    )
    square = build.op("Mul", [source, source])
    mean = build.op("ReduceMean", [square], axes=list(range(first, 0)), keepdims=1)
    root = build.op("Sqrt", [build.op("Add", [mean, epsilon])])
    normal = build.op("Div", [source, root])
    if wide:
        normal = build.op("Cast", [normal], x, to=int(dtype_of(x)))
    build.finish(build.op("Mul", [normal, scale]))


def decompose_rotary(node: ir.Node, opset: int) -> None:
    """Turn pairs of ``[b, heads, tokens, size]`` or ``[b, tokens, heads * size]`` by angles.

    Raises:
        UserError: how many elements of a head are turned is not known.
    """
    del opset
    build, x = NodeBuilder(node), operand(node, 0)
    flat = rank_of(x) == 3
    heads = node.attributes.get_int("num_heads", 0)
    if flat and not heads:
        raise UserError("num_heads is not stated, which three axes need; export it with four")
    caches = [operand(node, index) for index in (1, 2)]
    half = node.attributes.get_int("rotary_embedding_dim", 0) // 2 or extent_of(caches[0], -1)
    if half is None:
        raise unknown("last extent", caches[0])
    rows = x
    if flat:
        rows = build.op("Reshape", [x, build.constant("split", np.array([0, 0, heads, -1]))])
    positions = optional_operand(node, 3)
    if positions is not None:
        caches = [build.op("Gather", [cache, positions], axis=0) for cache in caches]
    axis = build.constant("heads", np.array([2 if flat else 1]))
    cos, sin = (build.op("Unsqueeze", [cache, axis]) for cache in caches)

    def part(start: int, end: int, step: int = 1) -> ir.Value:
        bounds = (("start", start), ("end", end), ("axis", 3), ("step", step))
        return build.op("Slice", [rows, *(build.constant(n, np.array([v])) for n, v in bounds)])

    paired = bool(node.attributes.get_int("interleaved", 0))
    if paired:
        left, right = part(0, 2 * half, 2), part(1, 2 * half, 2)
    else:
        left, right = part(0, half), part(half, 2 * half)

    def products(a: ir.Value, b: ir.Value) -> list[ir.Value]:
        return [build.op("Mul", [cos, a]), build.op("Mul", [sin, b])]

    turned = [build.op("Sub", products(left, right)), build.op("Add", products(right, left))]
    if paired:
        last = build.constant("pairs", np.array([-1]))
        turned = [build.op("Unsqueeze", [value, last]) for value in turned]
    both = build.op("Concat", turned, axis=-1)
    if paired:
        both = build.op("Reshape", [both, build.constant("joined", np.array([0, 0, 0, -1]))])
    if node.attributes.get_int("rotary_embedding_dim", 0):
        both = build.op("Concat", [both, part(2 * half, np.iinfo(np.int64).max)], axis=-1)
    if flat:
        both = build.op("Reshape", [both, build.constant("merged", np.array([0, 0, -1]))])
    build.finish(both)
