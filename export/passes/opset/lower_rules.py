"""The operators whose meaning or form changed after opset 17, and their older equals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.edits import add_initializer


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


class _Builder:
    """Puts new nodes before one node and finally takes its place."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._count = 0
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        self._graph = graph

    def constant(self, name: str, array: AnyArray) -> ir.Value:
        return add_initializer(self._graph, f"{self._node.name}/{name}", array)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value | None = None,
        **attrs: object,
    ) -> ir.Value:
        """Add a node; its output has the type and shape of ``like``."""
        self._count += 1
        name = f"{self._node.name}/{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attrs, name=name)  # type: ignore[arg-type]
        output = node.outputs[0]
        output.name = name
        if like is not None:
            output.type, output.shape = like.type, like.shape
        self._graph.insert_before(self._node, node)
        return output

    def finish(self, result: ir.Value) -> None:
        """Let ``result`` stand for the node's output, under its name, and drop the node."""
        old = self._node.outputs[0]
        name, result.type, result.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
        result.name = name
        producer = result.producer()
        if producer is not None:
            producer.name = self._node.name
            producer.metadata_props.update(self._node.metadata_props)


def _constant(node: ir.Node, index: int, what: str) -> AnyArray | None:
    """Read the constant content of an optional input, None without that input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise UserError(f"its {what} ({value.name!r}) are not a constant")
    array: AnyArray = tensor.numpy()
    return array


def _drop_default(node: ir.Node, name: str, default: ir.Attr) -> None:
    attribute = node.attributes.pop(name, None)
    if attribute is not None and attribute.value != default.value:
        raise UserError(f"{name}={attribute.value} has no older equal")


def _unknown(what: str, value: ir.Value) -> UserError:
    """What inference loses behind a Loop, for one."""
    return UserError(
        f"the {what} of {value.name!r} is neither stated nor inferred; state it in the model's "
        "value_info, or export with an opset that the target takes"
    )


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise _unknown("type", value)
    return value.dtype


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        raise _unknown("rank", value)
    return len(value.shape)


def _reduce(node: ir.Node, opset: int) -> None:
    """Axes as an input (18) back to an attribute (13)."""
    del opset
    axes = _constant(node, 1, "axes")
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
    parts, value = attribute.as_int(), _first(node)
    axis = node.attributes.get_int("axis", 0)
    if value.shape is None:
        raise _unknown("shape", value)
    extent = value.shape[axis]
    if not isinstance(extent, int):
        raise UserError(f"the extent of axis {axis} of {value.name!r} is not known")
    chunk = -(-extent // parts)
    sizes = [min(chunk, extent - chunk * part) for part in range(parts)]
    if sizes[-1] < 0:
        raise UserError(f"{parts} parts of {extent} leave some without a size")
    split = _Builder(node).constant("split", np.array(sizes, np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, split)


def _resize(node: ir.Node, opset: int) -> None:
    """Drop what 18 and 19 added, where it is at its default."""
    del opset
    axes = node.attributes.pop("axes", None)
    if axes is not None and list(axes.as_ints()) != list(range(_rank(_first(node)))):
        raise UserError("axes has no older equal: export with scales or sizes for all axes")
    _drop_default(node, "antialias", ir.AttrInt64("antialias", 0))
    _drop_default(
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
    axes = _constant(node, 3, "axes")
    if axes is None:
        node.resize_inputs(min(3, len(node.inputs)))
        return
    pads, rank = _constant(node, 1, "pads"), _rank(_first(node))
    assert pads is not None
    full = np.zeros(2 * rank, np.int64)
    places = np.array([int(axis) % rank for axis in axes], np.int64)
    full[places], full[places + rank] = pads[: len(places)], pads[len(places) :]
    node.replace_input_with(1, _Builder(node).constant("pads", full))
    node.resize_inputs(3)


def _gelu(node: ir.Node, opset: int) -> None:
    """``x/2 (1 + erf(x / sqrt 2))``, or the tanh form (the function of Gelu-20)."""
    del opset
    build, x = _Builder(node), _first(node)
    dtype = _dtype(x).numpy()

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


def _mish(node: ir.Node, opset: int) -> None:
    """``x tanh(softplus x)``."""
    del opset
    build, x = _Builder(node), _first(node)
    build.finish(build.op("Mul", [x, build.op("Tanh", [build.op("Softplus", [x], x)], x)]))


def _group_norm(node: ir.Node, opset: int) -> None:
    """Reshape, InstanceNormalization, Reshape, then scale and bias per channel."""
    build, x = _Builder(node), _first(node)
    scale, bias = node.inputs[1], node.inputs[2]
    assert scale is not None
    assert bias is not None
    groups = node.attributes.get_int("num_groups", 0)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    stash = ir.DataType(node.attributes.get_int("stash_type", int(ir.DataType.FLOAT)))
    wide = opset >= 21 and _dtype(x) != stash
    source = build.op("Cast", [x], to=int(stash)) if wide else x
    inner = (stash if wide else _dtype(x)).numpy()
    rows = build.op("Reshape", [source, build.constant("rows", np.array([0, groups, -1]))])
    ones = build.constant("ones", np.ones(groups, inner))
    zeros = build.constant("zeros", np.zeros(groups, inner))
    # Until opset 20 scale and bias are per group, which is what InstanceNormalization takes.
    affine = [ones, zeros] if opset >= 21 else [scale, bias]
    normal = build.op("InstanceNormalization", [rows, *affine], epsilon=float(epsilon))
    normal = build.op("Reshape", [normal, build.op("Shape", [x])])
    if wide:
        normal = build.op("Cast", [normal], x, to=int(_dtype(x)))
    if opset < 21:
        build.finish(normal)
        return
    spread = build.constant("per_channel", np.array([-1, *[1] * (_rank(x) - 2)]))
    scaled = build.op("Mul", [normal, build.op("Reshape", [scale, spread])], x)
    build.finish(build.op("Add", [scaled, build.op("Reshape", [bias, spread])]))


def _rms_norm(node: ir.Node, opset: int) -> None:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, the mean in the stash type."""
    del opset
    build, x = _Builder(node), _first(node)
    scale = node.inputs[1]
    assert scale is not None
    axis = node.attributes.get_int("axis", -1)
    first = axis if axis < 0 else axis - _rank(x)
    stash = ir.DataType(node.attributes.get_int("stash_type", int(ir.DataType.FLOAT)))
    wide = _dtype(x) != stash
    source = build.op("Cast", [x], to=int(stash)) if wide else x
    epsilon = build.constant(
        "epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), stash.numpy())
    )
    square = build.op("Mul", [source, source])
    mean = build.op("ReduceMean", [square], axes=list(range(first, 0)), keepdims=1)
    root = build.op("Sqrt", [build.op("Add", [mean, epsilon])])
    normal = build.op("Div", [source, root])
    if wide:
        normal = build.op("Cast", [normal], x, to=int(_dtype(x)))
    build.finish(build.op("Mul", [normal, scale]))


def _cast(node: ir.Node, opset: int) -> None:
    """``saturate`` only matters for 8-bit floats, which the type check refuses."""
    del opset
    node.attributes.pop("saturate", None)


def _quantize(node: ir.Node, opset: int) -> None:
    """Drop blocks and precision at their defaults; ``output_dtype`` becomes a zero point."""
    del opset
    node.attributes.pop("saturate", None)
    _drop_default(node, "block_size", ir.AttrInt64("block_size", 0))
    _drop_default(node, "precision", ir.AttrInt64("precision", 0))
    attribute = node.attributes.pop("output_dtype", None)
    if attribute is None or not attribute.as_int():
        return
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    scale = _constant(node, 1, "scales")
    assert scale is not None
    dtype = ir.DataType(attribute.as_int()).numpy()
    node.resize_inputs(3)
    node.replace_input_with(2, _Builder(node).constant("zero_point", np.zeros(scale.shape, dtype)))


def _dequantize(node: ir.Node, opset: int) -> None:
    del opset
    _drop_default(node, "block_size", ir.AttrInt64("block_size", 0))
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
    if _rank(_first(node)) != 4:
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


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{f"Reduce{name}": Rule((18,), _reduce) for name in _REDUCTIONS},
        "AveragePool": Rule((19,), _average_pool),
        "Cast": Rule((19,), _cast),
        "CastLike": Rule((19,), _cast),
        "DFT": Rule((20,), _refuse),
        "DequantizeLinear": Rule((19, 21, 23), _dequantize),
        "Gelu": Rule((20,), _gelu),
        "GridSample": Rule((20,), _grid_sample),
        "GroupNormalization": Rule((18, 21), _group_norm),
        "Mish": Rule((18,), _mish),
        "Pad": Rule((18, 19), _pad),
        "QuantizeLinear": Rule((19, 21, 23), _quantize),
        "RMSNormalization": Rule((23,), _rms_norm),
        "Resize": Rule((18, 19), _resize),
        "ScatterElements": Rule((18,), _scatter),
        "ScatterND": Rule((18,), _scatter),
        "Split": Rule((18,), _split),
    }
)
"""By operator. What is not here either never changed or is refused by the schema of the target."""
