"""One Attention node in the forms that its schema allows, with dynamic extents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

Shape = Sequence[int | str]
HEADS: Shape = ("b", 4, "q", 16)
KEYS: Shape = ("b", 4, "k", 16)
PAST: Shape = ("b", 4, "p", 16)

FORMS: Mapping[str, tuple[Mapping[str, Shape], Mapping[str, Any]]] = {
    "heads": ({}, {}),
    "tokens by heads": (
        {"query": ("b", "q", 64), "key": ("b", "k", 64), "value": ("b", "k", 64)},
        {"q_num_heads": 4, "kv_num_heads": 4},
    ),
    "grouped": ({"key": ("b", 2, "k", 16), "value": ("b", 2, "k", 16)}, {}),
    "grouped, tokens by heads": (
        {"query": ("b", "q", 64), "key": ("b", "k", 32), "value": ("b", "k", 48)},
        {"q_num_heads": 4, "kv_num_heads": 2},
    ),
    "one head of keys": ({"key": ("b", 1, "k", 16), "value": ("b", 1, "k", 16)}, {}),
    "wider values": ({"value": ("b", 4, "k", 24)}, {}),
    "scale": ({}, {"scale": 0.5}),
    "softcap": ({"mask": ("q", "k")}, {"softcap": 1.5}),
    "causal": ({}, {"is_causal": 1}),
    "float mask": ({"mask": ("b", 1, "q", "k")}, {}),
    "float mask, causal": ({"mask": ("b", 4, "q", "k")}, {"is_causal": 1}),
    "bool mask": ({"bool_mask": ("b", 1, "q", "k")}, {}),
    "bool mask, causal": ({"bool_mask": ("q", "k")}, {"is_causal": 1}),
    "past": ({"past_key": PAST, "past_value": PAST}, {}),
    "past, causal": ({"past_key": PAST, "past_value": PAST}, {"is_causal": 1}),
}
"""Inputs that differ from `[b, 4, tokens, 16]` without a mask, and attributes."""

_ODD: Mapping[str, tuple[Mapping[str, Shape], Mapping[str, Any]]] = {
    "lengths": ({"lengths": ("b",)}, {}),
    "window": ({}, {"left_window_size": 2}),
    "short mask": ({"key": ("b", 4, 9, 16), "mask": ("q", 7)}, {}),
    "unknown size": ({"query": ("b", 4, "q", "d")}, {}),
    "unknown heads": ({"query": ("b", "h", "q", 16)}, {}),
    "odd heads": ({"query": ("b", 6, "q", 16)}, {}),
}
_CACHES, _PRESENT = ("keys", "values"), ("b", 4, "present", 16)
_IR_VERSIONS = {23: 11, 24: 12, 25: 13}


def attention(
    form: str,
    opset: int,
    dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Build the model of one form; with a past it returns the present keys and values too."""
    shapes, attributes = {**FORMS, **_ODD}[form]
    inputs = {
        "query": shapes.get("query", HEADS),
        "key": shapes.get("key", KEYS),
        "value": shapes.get("value", KEYS),
        "mask": shapes.get("mask") or shapes.get("bool_mask"),
        "past_key": shapes.get("past_key"),
        "past_value": shapes.get("past_value"),
        "lengths": shapes.get("lengths"),
    }
    types = {"lengths": TensorProto.INT64}
    if "bool_mask" in shapes:
        types["mask"] = TensorProto.BOOL
    names = [name if shape else "" for name, shape in inputs.items()]
    while not names[-1]:
        names.pop()
    if outputs is None:
        outputs = ("y", "keys", "values") if "past_key" in shapes else ("y",)
    node = helper.make_node("Attention", names, outputs, name="attend", **attributes)
    graph = helper.make_graph(
        [node],
        "one_attention",
        [
            helper.make_tensor_value_info(name, types.get(name, dtype), shape)
            for name, shape in inputs.items()
            if shape
        ],
        [
            helper.make_tensor_value_info(name, dtype, _PRESENT if name in _CACHES else None)
            for name in outputs
            if name
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSIONS[opset])
    return onnx.shape_inference.infer_shapes(model)
