"""A higher default opset: 16-bit scales need 19, ``Gelu`` 20, bfloat16 convolutions 22."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.edits import add_initializer
from qvd_trt.export.passes.opset.schema import check_node, describe, least_ir_version

LOWEST, HIGHEST = 17, 23


class RaiseOpset(ir.passes.InPlacePass):
    """Rewrite a graph so that it means the same at a higher opset of the default domain.

    Names, metadata and model-local functions stay (``onnx.version_converter`` drops the latter
    two). Functions keep the opset that they import.

    Args:
        target: The opset wanted, 18 to 23. A graph that is there already is left alone.
    """

    def __init__(self, target: int) -> None:
        super().__init__()
        if not LOWEST < target <= HIGHEST:
            raise ValueError(f"target opset {target} is not {LOWEST + 1} to {HIGHEST}")
        self._target = target

    def requires(self, model: ir.Model) -> None:
        """Check that the opset is one whose changes are known."""
        source = model.opset_imports.get("")
        if source is None or source < LOWEST:
            raise ir.passes.PreconditionError(
                f"the model has opset {source}; rewrites are known from {LOWEST}"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite, then check every node.

        Raises:
            UserError: a node has no equal at the target; names the node, its operator and opset.
        """
        source = model.opset_imports[""]
        if source >= self._target:
            return ir.passes.PassResult(model, False)
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            change, rewrite = _CHANGES.get(node.op_type, (0, _refuse))
            if not node.domain and source < change <= self._target:
                rewrite(node)
            check_node(node, source, self._target)
        model.opset_imports[""] = self._target
        model.ir_version = max(model.ir_version, least_ir_version(self._target))
        return ir.passes.PassResult(model, True)


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


def _grid_sample(node: ir.Node) -> None:
    """Rename the modes."""
    names = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
    mode = names[node.attributes.get_string("mode", "bilinear")]
    node.attributes["mode"] = ir.AttrString("mode", mode)


def _refuse(node: ir.Node) -> None:
    raise UserError(f"{describe(node)}: it means something else in the newer opset; export with it")


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

_CHANGES: Mapping[str, tuple[int, Callable[[ir.Node], None]]] = MappingProxyType(
    {
        **{f"Reduce{name}": (18, _reduce) for name in _REDUCTIONS},
        "DFT": (20, _refuse),
        "GridSample": (20, _grid_sample),
        "GroupNormalization": (21, _refuse),
        "Split": (18, _split),
    }
)
"""By operator: the opset that changed it, and the rewrite."""
