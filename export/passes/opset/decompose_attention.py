"""``Attention`` (opset 23) as MatMul, Softmax, MatMul, for runtimes without that operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.node_builder import (
    NodeBuilder,
    dtype_of,
    extent_of,
    operand,
    optional_operand,
    rank_of,
)
from qvd_trt.export.passes.opset.schema import describe

_HEADS_OUT = (0, 2, 1, 3)
"""``[b, tokens, heads, size]`` to ``[b, heads, tokens, size]``, and back."""
_CLOSED = -30000.0
"""What is added where a mask is False: no weight after Softmax, and finite in fp16."""
_UNBOUNDED = -1
_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6


class DecomposeAttention(ir.passes.InPlacePass):
    """Write out every Attention node; the name of its output stays.

    Args:
        strict: Whether a node of a form that is not written out is an error; else it is left.
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()
        self._strict = strict

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite.

        Raises:
            UserError: a node is of a form that is not written out; names it.
        """
        nodes = [
            node
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.op_type == "Attention" and not node.domain
        ]
        for node in nodes:
            try:
                decompose_attention(node, model.opset_imports[""])
            except UserError as error:
                if self._strict:
                    raise UserError(f"{describe(node)}: {error}") from error
        return ir.passes.PassResult(model, bool(nodes))


def decompose_attention(node: ir.Node, opset: int) -> None:
    """``Softmax(softcap(scale Q K^T) + mask) V`` by the operator's definition in ONNX.

    Q, K and V are ``[b, tokens, heads * size]`` or ``[b, heads, tokens, size]``. Keys and values
    of fewer heads are repeated (grouped queries), a past is put in front of them. A row whose
    mask is all False, or all -inf, gives zeros.

    Raises:
        UserError: the fourth output is read, a length per sample or a window is given, the mask
            has fewer columns than there are keys, or the ranks, heads or head size are not known.
    """
    del opset
    _refuse_rare_forms(node)
    # Names of tensors are the same in the file and in the prepared graph, where nodes get theirs.
    build = NodeBuilder(node, node.outputs[0].name)
    heads = _read_heads(node)
    query, key, value = (
        _split_heads(build, node, index, count)
        for index, count in enumerate((heads.queries, heads.keys, heads.keys))
    )
    key = _present(build, node, key, _PAST_KEY, output=1)
    value = _present(build, node, value, _PAST_VALUE, output=2)
    mask = _read_mask(build, node, query, key)
    query = build.op("Mul", [query, build.constant("scale", _scalar(heads.scale, query))], query)
    if heads.keys != heads.queries:
        repeats = np.repeat(np.arange(heads.keys), heads.queries // heads.keys)
        index = build.constant("heads", repeats)
        key, value = (build.op("Gather", [x, index], axis=1) for x in (key, value))
    logits = build.op("MatMul", [query, build.op("Transpose", [key], perm=[0, 1, 3, 2])])
    cap = node.attributes.get_float("softcap", 0.0)
    if cap:
        limit = build.constant("softcap", _scalar(cap, query))
        logits = build.op("Mul", [build.op("Tanh", [build.op("Div", [logits, limit])]), limit])
    for bias in mask.added:
        logits = build.op("Add", [logits, bias])
    result = build.op("MatMul", [_softmax(build, node, logits, dtype_of(query)), value])
    if mask.open_rows is not None:
        result = build.op("Mul", [result, mask.open_rows])
    if rank_of(operand(node, 0)) == 3:
        result = build.op("Transpose", [result], perm=_HEADS_OUT)
        result = build.op("Reshape", [result, build.constant("joined", np.array([0, 0, -1]))])
    build.finish(result)


@dataclass(frozen=True, slots=True)
class _Heads:
    queries: int
    keys: int
    scale: float


@dataclass(frozen=True, slots=True)
class _Mask:
    """What is added to the logits, and ``[..., q, 1]``: 1 where a row attends anything."""

    added: tuple[ir.Value, ...] = ()
    open_rows: ir.Value | None = None


def _refuse_rare_forms(node: ir.Node) -> None:
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise UserError("its output qk_matmul_output has no older equal; export without it")
    if optional_operand(node, _LENGTHS) is not None:
        raise UserError("nonpad_kv_seqlen has no older equal; give attn_mask instead")
    for side in ("left_window_size", "right_window_size"):
        if node.attributes.get_int(side, _UNBOUNDED) != _UNBOUNDED:
            raise UserError(f"{side} has no older equal; give attn_mask instead")

    mask, key = optional_operand(node, _MASK), operand(node, 1)
    if mask is None or optional_operand(node, _PAST_KEY) is not None:
        return
    columns, keys = extent_of(mask, -1), extent_of(key, rank_of(key) - 2)
    if columns is not None and keys is not None and columns != keys:
        raise UserError(f"attn_mask has {columns} columns for {keys} keys; give it one for each")


def _read_heads(node: ir.Node) -> _Heads:
    query, key = operand(node, 0), operand(node, 1)
    if rank_of(query) == 3:
        queries = node.attributes.get_int("q_num_heads", 0)
        keys = node.attributes.get_int("kv_num_heads", 0)
        size = extent_of(query, 2)
        size = None if size is None or not queries else size // queries
    else:
        rank_of(key)
        queries, keys, size = extent_of(query, 1) or 0, extent_of(key, 1) or 0, extent_of(query, 3)
    if not queries or not keys:
        raise UserError(f"the numbers of heads of {query.name!r} and {key.name!r} are not known")
    if queries % keys:
        raise UserError(f"{queries} heads of queries are no multiple of {keys} of keys")
    scale = node.attributes.get_float("scale", 0.0)
    if not scale and not size:
        raise UserError(f"the head size of {query.name!r} is not known; state the scale")
    return _Heads(queries, keys, scale or 1.0 / math.sqrt(size or 1))


def _split_heads(build: NodeBuilder, node: ir.Node, index: int, heads: int) -> ir.Value:
    value = operand(node, index)
    if rank_of(value) == 4:
        return value
    rows = build.op("Reshape", [value, build.constant("split", np.array([0, 0, heads, -1]))])
    result = build.op("Transpose", [rows], perm=_HEADS_OUT)
    result.dtype = dtype_of(value)
    return result


def _present(
    build: NodeBuilder, node: ir.Node, new: ir.Value, index: int, *, output: int
) -> ir.Value:
    """Put the past in front; the result is an output of the node too."""
    past = optional_operand(node, index)
    result = new if past is None else build.op("Concat", [past, new], axis=2)
    result.dtype = dtype_of(new)
    if len(node.outputs) > output:
        old = node.outputs[output]
        if old.uses() or old.is_graph_output():
            build.take_place(old, build.op("Identity", [result]))
    return result


def _read_mask(build: NodeBuilder, node: ir.Node, query: ir.Value, key: ir.Value) -> _Mask:
    given = optional_operand(node, _MASK)
    causal = None
    if node.attributes.get_int("is_causal", 0):
        past = optional_operand(node, _PAST_KEY)
        causal = _causal(build, query, key, past)
    if given is None:
        return _Mask(() if causal is None else (_bias(build, causal, query),))
    is_bool = dtype_of(given) == ir.DataType.BOOL
    # Other numbers, such as the type's least, close no row: all its keys get the same weight.
    lowest = None if is_bool else build.constant("lowest", _scalar(-math.inf, query))
    allowed = given if lowest is None else build.op("Greater", [given, lowest])
    if causal is not None:
        allowed = build.op("And", [allowed, causal])
    # Multiplied onto the result: compilers know the chain MatMul, Add, Softmax, MatMul.
    ones = build.op("Cast", [allowed], to=int(dtype_of(query)))
    count = build.op("ReduceSum", [ones, build.constant("keys", np.array([-1]))], keepdims=1)
    rows = build.op("Min", [count, build.constant("once", _scalar(1.0, query))])
    if is_bool:
        return _Mask((_bias(build, allowed, query),), rows)
    bias = given
    if causal is not None and lowest is not None:
        # No finite number will do: the mask may hold lower ones, which close no key.
        bias = build.op("Where", [causal, given, lowest])
    is_open = build.op("Cast", [rows], to=int(ir.DataType.BOOL))
    finite = build.op("Where", [is_open, bias, build.constant("open", _scalar(0.0, query))])
    return _Mask((finite,), rows)


def _bias(build: NodeBuilder, allowed: ir.Value, query: ir.Value) -> ir.Value:
    none = build.constant("open", _scalar(0.0, query))
    return build.op("Where", [allowed, none, build.constant("closed", _scalar(_CLOSED, query))])


def _causal(build: NodeBuilder, query: ir.Value, key: ir.Value, past: ir.Value | None) -> ir.Value:
    """``[q, k]`` bool: whether a key is no later than the query; a past is earlier than both."""
    zero, one = (build.constant(n, np.array(v)) for n, v in (("zero", 0), ("one", 1)))
    axis = build.constant("tokens", np.array(2))

    def tokens(value: ir.Value) -> ir.Value:
        return build.op("Gather", [build.op("Shape", [value]), axis], axis=0)

    def positions(value: ir.Value) -> ir.Value:
        return build.op("Range", [zero, tokens(value), one])

    last = build.constant("last_axis", np.array([1]))
    rows = build.op("Unsqueeze", [positions(query), last])
    if past is not None:
        rows = build.op("Add", [rows, tokens(past)])
    return build.op("LessOrEqual", [positions(key), rows])


def _softmax(build: NodeBuilder, node: ir.Node, logits: ir.Value, dtype: ir.DataType) -> ir.Value:
    precision = ir.DataType(node.attributes.get_int("softmax_precision", int(dtype)))
    if precision == dtype:
        return build.op("Softmax", [logits], axis=-1)
    wide = build.op("Softmax", [build.op("Cast", [logits], to=int(precision))], axis=-1)
    return build.op("Cast", [wide], to=int(dtype))


def _scalar(number: float, like: ir.Value) -> AnyArray:
    return np.array(number, dtype_of(like).numpy())
