"""The blocks of the grammar of denoisers: each takes an activation and gives one of its shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.export.graph_grammar import Grammar
from tests.export.graph_layers import convolve, layer_norm, linear

Block = Callable[[Grammar, str], str]


def conv(net: Grammar, x: str) -> str:
    wide = net.one_of(net.width, 2 * net.width, 8)
    y = net.activation(convolve(net, x, net.width, wide))
    return convolve(net, y, wide, net.width)


def down_and_up(net: Grammar, x: str) -> str:
    """A strided convolution, and Resize or ConvTranspose back to the extents."""
    rank, width = net.spatial, net.width
    kernel = net.one_of(2, 3)
    weight = net.matrix(width, width, *[kernel] * rank, fan_in=kernel * width)
    pads: dict[str, Any] = {"pads": [0] * rank + [kernel - 2] * rank}
    kind = pads if net.maybe() else {"auto_pad": net.one_of("SAME_UPPER", "SAME_LOWER")}
    small = net.add("Conv", x, weight, *net.bias(width), strides=[2] * rank, **kind)
    if net.maybe():
        scales = net.floats([1, 1, *[2] * rank])
        large = net.add("Resize", small, "", scales, mode="nearest")
        return convolve(net, large, width, width)
    groups = net.one_of(1, 2)
    kernel = net.one_of(2, 4)
    weight = net.matrix(width, width // groups, *[kernel] * rank, fan_in=width // groups)
    pads = {"pads": [(kernel - 2) // 2] * 2 * rank, "strides": [2] * rank}
    return net.add("ConvTranspose", small, weight, *net.bias(width), group=groups, **pads)


def transposed_conv(net: Grammar, x: str) -> str:
    rank, width = net.spatial, net.width
    weight = net.matrix(width, width, *[3] * rank, fan_in=3 * width)
    return net.add("ConvTranspose", x, weight, *net.bias(width), pads=[1] * 2 * rank)


def norm(net: Grammar, x: str) -> str:
    """A norm over groups, over the spatial axes or over the channels, and a layer behind it."""
    width, ones = net.width, [1] * net.spatial
    kinds = ["instance", "grouped"] + (["group"] if net.opset >= 21 else [])
    kind = net.one_of(*kinds)
    if kind == "instance":
        y = net.add("InstanceNormalization", x, net.vector(width, 1), net.vector(width))
    elif kind == "group":
        operands = [net.vector(width, 1), net.vector(width)]
        y = net.add("GroupNormalization", x, *operands, num_groups=4)
    else:
        y = net.group_norm(x, width, 4, ("b", width, *ones), net.new("grouped"))
    if net.maybe():
        y = net.silu(y)
    if net.maybe():
        return net.tokens(y, lambda t: linear(net, t, width, width))
    return convolve(net, y, width, width)


def mlp(net: Grammar, x: str) -> str:
    def on_tokens(t: str) -> str:
        if net.maybe():
            t = layer_norm(net, t)
        wide = net.width * net.one_of(1, 2)
        return linear(net, net.activation(linear(net, t, net.width, wide)), wide, net.width)

    return net.tokens(x, on_tokens)


def attention(net: Grammar, x: str) -> str:
    """Self- or cross-attention, with one or four heads."""
    width = net.width

    def on_tokens(t: str) -> str:
        t = layer_norm(net, t) if net.maybe() else t
        other = net.condition if net.condition and net.maybe() else t
        q, k, v = (linear(net, source, width, width) for source in (t, other, other))
        heads = net.maybe()
        if heads:
            split = net.ints(0, 0, 4, -1)
            q, v = (
                net.add("Transpose", net.add("Reshape", y, split), perm=[0, 2, 1, 3])
                for y in (q, v)
            )
            k = net.add("Transpose", net.add("Reshape", k, split), perm=[0, 2, 3, 1])
        else:
            k = net.add("Transpose", k, perm=[0, 2, 1])
        scores = net.add("Mul", net.add("MatMul", q, k), net.floats(width**-0.5))
        if net.maybe():
            scores = net.add("Add", scores, net.floats(net.rng.normal(0, 1, (1, 1))))
        y = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
        if heads:
            y = net.add("Transpose", y, perm=[0, 2, 1, 3])
            y = net.add("Reshape", y, net.ints(0, 0, width))
        return linear(net, y, width, width)

    return net.tokens(x, on_tokens)


def one_operator(net: Grammar, x: str) -> str:
    """Attention as one operator, on the tokens that two layers give."""

    def on_tokens(t: str) -> str:
        q, k = (linear(net, t, net.width, net.width) for _ in "qk")
        heads = {"q_num_heads": 4, "kv_num_heads": 4}
        return linear(net, net.add("Attention", q, k, t, **heads), net.width, net.width)

    return net.tokens(x, on_tokens)


def timed(net: Grammar, x: str) -> str:
    """The embedding's projection: added, or as scale and shift of a norm."""
    width, ones = net.width, [1] * max(net.spatial, 1)
    axes = net.ints(*range(2, 2 + len(ones)))
    both = net.maybe()
    columns = 2 * width if both else width
    e = net.silu(net.embedding) if net.maybe() else net.embedding
    if net.maybe():
        turned = net.one_of(0, 1)
        weight = net.matrix(*((columns, width) if turned else (width, columns)), fan_in=width)
        p = net.add("Gemm", e, weight, *net.bias(columns), transB=turned)
    else:
        p = net.add("MatMul", e, net.matrix(width, columns))
    p = net.add("Unsqueeze", p, axes)
    if not both:
        return net.add("Add", x, p)
    if net.maybe():
        sizes = {"num_outputs": 2} if net.opset >= 18 else {}
        scale = net.add("Split", p, outputs=2, axis=1, **sizes)
        shift = scale + "1"
    else:
        one = net.ints(1)
        scale = net.add("Slice", p, net.ints(0), net.ints(width), one)
        shift = net.add("Slice", p, net.ints(width), net.ints(2 * width), one)
    scaled = net.add("Mul", x, net.add("Add", scale, net.floats(1)))
    return net.add("Add", scaled, shift)


def layout(net: Grammar, x: str) -> str:
    """Halves of the channels change places, through Split, Slice, Squeeze and Concat."""
    half, one = net.width // 2, net.ints(1)
    if net.maybe():
        sizes = {"num_outputs": 2} if net.opset >= 18 else {}
        low = net.add("Split", x, outputs=2, axis=1, **sizes)
        high = low + "1"
    else:
        low = net.add("Slice", x, net.ints(0), net.ints(half), one)
        high = net.add("Slice", x, net.ints(half), net.ints(2 * half), one)
    y = net.add("Concat", high, low, axis=1)
    if net.maybe():
        y = net.add("Squeeze", net.add("Unsqueeze", y, net.ints(-1)), net.ints(-1))
    return net.add("Identity", y) if net.maybe() else net.activation(y)


def shortcut(net: Grammar, x: str) -> str:
    """Two or three convolutions with windows of their own read one tensor."""
    readers = [convolve(net, x, net.width, net.width) for _ in range(net.one_of(2, 3))]
    return net.add("Sum", *readers)


def squeeze_excite(net: Grammar, x: str) -> str:
    """A gate from what the spatial axes hold on average: linear layers of a row or two."""
    axes = range(2, 2 + max(net.spatial, 1))
    given: dict[str, Any] = {} if net.opset >= 18 else {"axes": [*axes]}
    mean = net.add(
        "ReduceMean", x, *([net.ints(*axes)] if net.opset >= 18 else []), keepdims=0, **given
    )
    if net.maybe():
        mean = net.add("Mul", mean, net.embedding)
    hidden = net.add("Relu", net.add("Gemm", mean, net.matrix(net.width, 8), *net.bias(8)))
    gate = net.add("Sigmoid", net.add("MatMul", hidden, net.matrix(8, net.width)))
    return net.add("Mul", x, net.add("Unsqueeze", gate, net.ints(*axes)))


def fused(net: Grammar, x: str) -> str:
    """Query, key and value of one layer, without a softmax."""

    def on_tokens(t: str) -> str:
        t = layer_norm(net, t) if net.maybe() else t
        merged = linear(net, t, net.width, 3 * net.width)
        sizes = {"num_outputs": 3} if net.opset >= 18 else {}
        q = net.add("Split", merged, outputs=3, axis=-1, **sizes)
        scores = net.add("MatMul", q, net.add("Transpose", q + "1", perm=[0, 2, 1]))
        scaled = net.add("Tanh", net.add("Mul", scores, net.floats(net.width**-1)))
        return linear(net, net.add("MatMul", scaled, q + "2"), net.width, net.width)

    return net.tokens(x, on_tokens)


def patches(net: Grammar, x: str) -> str:
    """Pixels to channels, a convolution, and back."""
    width = net.width
    small = net.add("SpaceToDepth", x, blocksize=2)
    weight = net.matrix(4 * width, 4 * width, 1, 1)
    y = net.add("Conv", small, weight, *net.bias(4 * width))
    return net.add("DepthToSpace", y, blocksize=2, mode=net.one_of("DCR", "CRD"))


def inference_only(net: Grammar, x: str) -> str:
    """BatchNormalization and Dropout as exports of eval mode have them."""
    spread = net.floats(np.abs(net.rng.normal(1, 0.2, net.width)) + 0.1)
    operands = [net.vector(net.width, 1), net.vector(net.width), net.vector(net.width), spread]
    y = net.add("BatchNormalization", x, *operands)
    y = net.add("Dropout", y, outputs=net.one_of(1, 2))
    return net.tokens(y, lambda t: linear(net, t, net.width, net.width))


def two_axes(net: Grammar, x: str) -> str:
    """A convolution and a linear layer read one tensor along two axes."""
    last = {1: 24, 2: 6, 3: 4}[net.spatial]
    across = net.add("MatMul", x, net.matrix(last, last))
    return net.add("Add", convolve(net, x, net.width, net.width), across)


def _condition(net: Grammar) -> str:
    """True for some calls: by the timestep, or by the batch, or never."""
    time = net.add("Reshape", "timestep", net.ints(-1))
    first = net.add("Cast", net.add("Slice", time, net.ints(0), net.ints(1)), to=1)
    if net.maybe():
        return net.add("Squeeze", net.add("Greater", first, net.floats([500])), net.ints(0))
    extent = net.add("Gather", net.add("Shape", "sample"), net.ints(0), axis=0)
    return net.add("Greater", extent, net.ints(net.one_of(0, 1, 9)))


def branches(net: Grammar, x: str) -> str:
    def write() -> str:
        if net.depth < 2 and net.one_of(False, False, True):
            return branches(net, x)
        if net.maybe():
            return net.add("Tanh", x)
        if net.spatial and net.maybe():
            return convolve(net, x, net.width, net.width)
        return net.tokens(x, lambda t: linear(net, t, net.width, net.width))

    decided = _condition(net)
    shared = net.new("chosen") if net.maybe() else ""
    then, otherwise = net.body(write, shared), net.body(write, shared)
    return net.add("If", decided, then_branch=then, else_branch=otherwise)


def loop(net: Grammar, x: str) -> str:
    trips = net.one_of(2, 1, 3)
    carried = net.new("carried")

    def write() -> str:
        y = net.tokens(carried, lambda t: linear(net, t, net.width, net.width))
        return net.add("Tanh", y)

    body = net.body(write)
    again, go = net.new("again"), net.new("go")
    shape = [None] * (2 + max(net.spatial, 1))
    body.input.extend(
        [
            helper.make_tensor_value_info(net.new("trip"), TensorProto.INT64, []),
            helper.make_tensor_value_info(again, TensorProto.BOOL, []),
            helper.make_tensor_value_info(carried, TensorProto.FLOAT, shape),
        ]
    )
    body.node.append(helper.make_node("Identity", [again], [go]))
    body.output.insert(0, helper.make_tensor_value_info(go, TensorProto.BOOL, []))
    return net.add("Loop", net.constant(net.new("trips"), np.array(trips)), "", x, body=body)


def scan(net: Grammar, x: str) -> str:
    """A layer on each sample of the batch by itself."""
    sample = net.new("sample")

    def write() -> str:
        last = 24 if not net.spatial else {1: 24, 2: 6, 3: 4}[net.spatial]
        return net.add("MatMul", sample, net.matrix(last, last))

    body: onnx.GraphProto = net.body(write)
    shape = [None] * (1 + max(net.spatial, 1))
    body.output[0].CopyFrom(
        helper.make_tensor_value_info(body.output[0].name, TensorProto.FLOAT, shape)
    )
    body.input.append(helper.make_tensor_value_info(sample, TensorProto.FLOAT, shape))
    return net.add("Scan", x, body=body, num_scan_inputs=1)


def ends(net: Grammar, channels: int) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """The first and the last layer."""

    def first(latent: str) -> str:
        if net.spatial:
            return convolve(net, latent, channels, net.width)
        y = net.add("MatMul", latent, net.matrix(channels, net.width))
        return net.add("Transpose", y, perm=[0, 2, 1])

    def last(x: str) -> str:
        if net.spatial:
            return convolve(net, x, net.width, channels)
        y = net.add("Transpose", x, perm=[0, 2, 1])
        return net.add("MatMul", y, net.matrix(net.width, channels))

    return first, last


def _always(net: Grammar) -> bool:
    return True


def _spatial(net: Grammar) -> bool:
    return net.spatial > 0


BLOCKS: dict[str, tuple[Block, Callable[[Grammar], bool]]] = {
    "activation": (Grammar.activation, _always),
    "attention": (attention, _always),
    "attention op": (one_operator, lambda net: net.opset >= 23),
    "eval": (inference_only, _always),
    "excite": (squeeze_excite, _always),
    "fused": (fused, _always),
    "patches": (patches, lambda net: net.spatial == 2),
    "shortcut": (shortcut, _spatial),
    "conv": (conv, _spatial),
    "if": (branches, _always),
    "layout": (layout, _always),
    "loop": (loop, _always),
    "mlp": (mlp, _always),
    "norm": (norm, _spatial),
    "resample": (down_and_up, _spatial),
    "scan": (scan, _always),
    "timed": (timed, _always),
    "transposed_conv": (transposed_conv, _spatial),
    "two_axes": (two_axes, _spatial),
}
