"""The operators whose meaning or form changed after opset 17, and their older equals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.decompose import (
    decompose_gelu,
    decompose_group_norm,
    decompose_mish,
    decompose_rms_norm,
    decompose_rotary,
    decompose_swish,
)
from qvd_trt.export.passes.opset.decompose_attention import decompose_attention
from qvd_trt.export.passes.opset.node_builder import (
    NodeBuilder,
    constant_operand,
    drop_default,
    operand,
    rank_of,
    unknown,
)
from qvd_trt.export.passes.opset.schema import REDUCTIONS_OF_18


@dataclass(frozen=True, slots=True)
class Rule:
    """How to undo a change of an operator.

    Attributes:
        changes: The opsets that brought a change; the rule applies when one of them is passed.
        rewrite: Called with the node and the graph's opset; edits or replaces the node. Raises
            UserError where there is no older equal.
    """

    changes: tuple[int, ...]
    rewrite: Callable[[ir.Node, int], None]


def _reduce(node: ir.Node, opset: int) -> None:
    """Axes as an input (18) back to an attribute (13)."""
    del opset
    axes = constant_operand(node, 1, "axes")
    keeps_all = node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    if axes is not None and axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    elif keeps_all is not None and keeps_all.as_int():
        if node.op_type not in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            raise UserError("noop_with_empty_axes has no older equal for this operator")
        node.op_type = "Identity"
        node.attributes.clear()


def _split(node: ir.Node, opset: int) -> None:
    """``num_outputs`` (18), whose last part may be smaller, to explicit sizes (13)."""
    del opset
    attribute = node.attributes.pop("num_outputs", None)
    if attribute is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return
    parts, value = attribute.as_int(), operand(node, 0)
    axis = node.attributes.get_int("axis", 0)
    if value.shape is None:
        raise unknown("shape", value)
    extent = value.shape[axis]
    if not isinstance(extent, int):
        raise UserError(f"the extent of axis {axis} of {value.name!r} is not known")
    chunk = -(-extent // parts)
    sizes = [min(chunk, extent - chunk * part) for part in range(parts)]
    if sizes[-1] < 0:
        raise UserError(f"{parts} parts of {extent} leave some without a size")
    split = NodeBuilder(node).constant("split", np.array(sizes, np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, split)


def _resize(node: ir.Node, opset: int) -> None:
    """Drop what 18 and 19 added, where it is at its default."""
    del opset
    axes = node.attributes.pop("axes", None)
    if axes is not None and list(axes.as_ints()) != list(range(rank_of(operand(node, 0)))):
        raise UserError("axes has no older equal: export with scales or sizes for all axes")
    drop_default(node, "antialias", ir.AttrInt64("antialias", 0))
    drop_default(
        node,
        "keep_aspect_ratio_policy",
        ir.AttrString("keep_aspect_ratio_policy", "stretch"),
    )
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel_symmetric":
        raise UserError(f"coordinate_transformation_mode={mode} has no older equal")


def _pad(node: ir.Node, opset: int) -> None:
    """Turn pads of some axes (18) into pads of all of them; no ``wrap`` (19)."""
    del opset
    if node.attributes.get_string("mode", "constant") == "wrap":
        raise UserError("mode=wrap has no older equal")
    axes = constant_operand(node, 3, "axes")
    if axes is None:
        node.resize_inputs(min(3, len(node.inputs)))
        return
    pads, rank = constant_operand(node, 1, "pads"), rank_of(operand(node, 0))
    assert pads is not None
    full = np.zeros(2 * rank, np.int64)
    places = np.array([int(axis) % rank for axis in axes], np.int64)
    full[places], full[places + rank] = pads[: len(places)], pads[len(places) :]
    node.replace_input_with(1, NodeBuilder(node).constant("pads", full))
    node.resize_inputs(3)


def _cast(node: ir.Node, opset: int) -> None:
    """``saturate`` only matters for 8-bit floats, which the type check refuses."""
    del opset
    node.attributes.pop("saturate", None)


def _quantize(node: ir.Node, opset: int) -> None:
    """Drop blocks and precision at their defaults; ``output_dtype`` becomes a zero point."""
    del opset
    node.attributes.pop("saturate", None)
    drop_default(node, "block_size", ir.AttrInt64("block_size", 0))
    drop_default(node, "precision", ir.AttrInt64("precision", 0))
    attribute = node.attributes.pop("output_dtype", None)
    if attribute is None or not attribute.as_int():
        return
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    scale = constant_operand(node, 1, "scales")
    assert scale is not None
    dtype = ir.DataType(attribute.as_int()).numpy()
    node.resize_inputs(3)
    node.replace_input_with(
        2, NodeBuilder(node).constant("zero_point", np.zeros(scale.shape, dtype))
    )


def _dequantize(node: ir.Node, opset: int) -> None:
    del opset
    drop_default(node, "block_size", ir.AttrInt64("block_size", 0))
    attribute = node.attributes.pop("output_dtype", None)
    scale = node.inputs[1]
    if (
        attribute is not None
        and attribute.as_int()
        and (scale is None or scale.dtype != attribute.as_int())
    ):
        raise UserError("output_dtype differs from the scale's type, which has no older equal")


def _average_pool(node: ir.Node, opset: int) -> None:
    """``dilations`` (19) of one."""
    del opset
    attribute = node.attributes.pop("dilations", None)
    if attribute is not None and set(attribute.as_ints()) != {1}:
        raise UserError("dilations have no older equal")


def _grid_sample(node: ir.Node, opset: int) -> None:
    """Rename the modes to those before 20."""
    del opset
    names = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    mode = names[node.attributes.get_string("mode", "linear")]
    if rank_of(operand(node, 0)) != 4:
        raise UserError("volumes have no older equal")
    node.attributes["mode"] = ir.AttrString("mode", mode)


def _scatter(node: ir.Node, opset: int) -> None:
    del opset
    reduction = node.attributes.get_string("reduction", "none")
    if reduction in ("min", "max"):
        raise UserError(f"reduction={reduction} has no older equal")


def _refuse(node: ir.Node, opset: int) -> None:
    del node, opset
    raise UserError("it means something else in the older opset; export with that opset instead")


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{f"Reduce{name}": Rule((18,), _reduce) for name in REDUCTIONS_OF_18},
        "Attention": Rule((23,), decompose_attention),
        "AveragePool": Rule((19,), _average_pool),
        "Cast": Rule((19,), _cast),
        "CastLike": Rule((19,), _cast),
        "DFT": Rule((20,), _refuse),
        "DequantizeLinear": Rule((19, 21, 23), _dequantize),
        "Gelu": Rule((20,), decompose_gelu),
        "GridSample": Rule((20,), _grid_sample),
        "GroupNormalization": Rule((18, 21), decompose_group_norm),
        "Mish": Rule((18,), decompose_mish),
        "Pad": Rule((18, 19), _pad),
        "QuantizeLinear": Rule((19, 21, 23), _quantize),
        "RMSNormalization": Rule((23,), decompose_rms_norm),
        "Resize": Rule((18, 19), _resize),
        "RotaryEmbedding": Rule((23,), decompose_rotary),
        "ScatterElements": Rule((18,), _scatter),
        "ScatterND": Rule((18,), _scatter),
        "Split": Rule((18,), _split),
        "Swish": Rule((24,), decompose_swish),
    }
)
"""By operator. What is not here either never changed or is refused by the schema of the target."""
