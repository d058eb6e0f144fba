"""A higher default opset: 16-bit scales need 19, ``Gelu`` 20, bfloat16 convolutions 22."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.edits import add_initializer
from qvd_trt.export.passes.opset.schema import (
    REDUCTIONS_OF_18,
    check_node,
    describe,
    least_ir_version,
)

_LOWEST = 13
_FIRST_OF_CONVERTER, _LAST_OF_CONVERTER = 18, 23
_NEW_ROI_ALIGN = 16
_NEW_GROUP_NORM = 21


class RaiseOpset(ir.passes.InPlacePass):
    """Rewrite a graph so that it means the same at a higher opset of the default domain.

    From 18 on by onnxscript's version converter, which knows nothing older; GroupNormalization is
    rewritten here. From 13 to 17 operators got more types, and attributes whose defaults say what
    they did before, but for RoiAlign. Names stay; model-local functions are inlined.

    Args:
        target: The opset wanted, 14 to 23. A graph that is there already is left alone.
    """

    def __init__(self, target: int) -> None:
        super().__init__()
        if not _LOWEST < target <= _LAST_OF_CONVERTER:
            raise ValueError(f"target opset {target} is not {_LOWEST + 1} to {_LAST_OF_CONVERTER}")
        self._target = target

    def requires(self, model: ir.Model) -> None:
        """Check that the opset is one whose changes are known."""
        source = model.opset_imports.get("")
        if source is None or source < _LOWEST:
            raise ir.passes.PreconditionError(
                f"the model has opset {source}; rewrites are known from {_LOWEST}"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite, then check every node.

        Raises:
            UserError: a node has no equal at the target; names the node, its operator and opset.
        """
        source = model.opset_imports[""]
        if source >= self._target:
            return ir.passes.PassResult(model, False)
        InlinePass()(model)
        changes: dict[str, Callable[[ir.Node], None]] = {}
        if source < _NEW_ROI_ALIGN <= self._target:
            changes["RoiAlign"] = _state_roi_mode
        if source < _FIRST_OF_CONVERTER <= self._target:
            changes.update(_CHANGES_OF_18)
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if not node.domain and node.op_type in changes:
                changes[node.op_type](node)
        model.opset_imports[""] = max(source, min(self._target, _FIRST_OF_CONVERTER))
        if source < _NEW_GROUP_NORM <= self._target:
            for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
                if node.op_type == "GroupNormalization" and not node.domain:
                    _spread_group_norm(node)
        if model.opset_imports[""] < self._target:
            _convert(model, self._target)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            check_node(node, source, self._target)
        model.ir_version = max(model.ir_version, least_ir_version(self._target))
        return ir.passes.PassResult(model, True)


def _convert(model: ir.Model, target: int) -> None:
    # Here, because most exports raise nothing and the import takes a second.
    from onnxscript.version_converter import convert_version

    convert_version(model, target)


def _reduce(node: ir.Node) -> None:
    """Turn the axes from an attribute into an input."""
    attribute = node.attributes.pop("axes", None)
    if attribute is None:
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    axes = add_initializer(graph, f"{node.name}/axes", np.array(attribute.as_ints(), np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, axes)


def _split(node: ir.Node) -> None:
    """Write down the number of equal parts."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _state_roi_mode(node: ir.Node) -> None:
    """Write down what opset 16 made a choice of, with another default."""
    name = "coordinate_transformation_mode"
    node.attributes[name] = ir.AttrString(name, "output_half_pixel")


def _spread_group_norm(node: ir.Node) -> None:
    """Repeat scale and bias, per group until 20, for every channel.

    The converter does so too, but loses ``epsilon`` and leaves scales of unknown shape as they are.
    With a value per channel already it leaves the node alone.
    """
    x = node.inputs[0]
    channels = None if x is None or x.shape is None else x.shape[1]
    groups = node.attributes.get_int("num_groups", 0)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index, name in ((1, "scale"), (2, "bias")):
        value = node.inputs[index]
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is None or not isinstance(channels, int):
            raise UserError(
                f"{describe(node)}: it means something else from opset {_NEW_GROUP_NORM} on, and "
                "its channels, scale or bias are not known; export with that opset"
            )
        spread = np.repeat(tensor.numpy(), channels // groups)
        node.replace_input_with(index, add_initializer(graph, f"{node.name}/{name}", spread))


_CHANGES_OF_18: Mapping[str, Callable[[ir.Node], None]] = MappingProxyType(
    {**{f"Reduce{name}": _reduce for name in REDUCTIONS_OF_18}, "Split": _split}
)
"""By operator, what opset 18 changed."""
