"""What ONNX Runtime accepts, brought to the one form that everything behind it reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import bodies, named_extents
from qvd_trt.export.passes.opset.lower_opset import LowerOpset
from qvd_trt.export.passes.precision.raise_precision import RaisePrecision

LOWEST_OPSET, HIGHEST_OPSET = 13, 25
"""Opsets of the default domain that are read; what a target writes may be narrower."""

LAST_OPSET = 23
"""The highest that is left as it is: no target writes a newer one, and ONNX Runtime lacks kernels
of 25."""

_DEFAULT_DOMAIN, _ITS_OTHER_NAME = "", "ai.onnx"


class Normalize(ir.passes.InPlacePass):
    """Sort the nodes, inline local functions, name the default domain and all dimensions one way.

    What no output depends on is dropped: nothing runs it, so that it has no statistics and no cost.
    Initializers that are listed as inputs become weights, at the value they hold. Types and shapes
    are inferred where the file states none. A 16-bit graph computes in float32. Opsets 24 and 25
    are lowered to 23. Names of tensors stay, but for those in bodies of If, Loop and Scan that
    another tensor has too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite.

        Raises:
            UserError: the default domain is imported twice, its opset is not 13 to 25, a node of
                24 or 25 has no older equal, or a tensor of a 16-bit model has no type.
        """
        _name_default_domain(model)
        opset = model.opset_imports.get(_DEFAULT_DOMAIN)
        if opset is None or not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
            raise UserError(
                f"the model has opset {opset}; opsets {LOWEST_OPSET} to {HIGHEST_OPSET} are read: "
                "export it again with one of those"
            )
        TopologicalSortPass()(model)
        RemoveInitializersFromInputsPass()(model)
        if model.functions:
            InlinePass()(model)
        RemoveUnusedNodesPass()(model)
        _name_dimensions(model.graph)
        _name_tensors_of_bodies(model.graph)
        # First: inference stops at 16-bit types that an operator lacks, as exporters write them.
        RaisePrecision()(model)
        _infer_missing_types(model)
        if opset > LAST_OPSET:
            LowerOpset(LAST_OPSET)(model)
            _infer_missing_types(model)
        return ir.passes.PassResult(model, True)


def _name_default_domain(model: ir.Model) -> None:
    owners: list[ir.Model | ir.Function] = [model, *model.functions.values()]
    for owner in owners:
        other = owner.opset_imports.pop(_ITS_OTHER_NAME, None)
        if other is not None:
            opset = owner.opset_imports.setdefault(_DEFAULT_DOMAIN, other)
            if opset != other:
                raise UserError(
                    f"the model imports the default domain twice, as '' with opset {opset} and as "
                    f"'ai.onnx' with opset {other}; export it again with one"
                )
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == _ITS_OTHER_NAME:
                node.domain = _DEFAULT_DOMAIN


def _name_dimensions(graph: ir.Graph) -> None:
    """Give every dynamic dimension of inputs and outputs a name; nameless ones all differ."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(named_extents(value))


def _name_tensors_of_bodies(graph: ir.Graph) -> None:
    """Give every tensor of a body a name of its own; two branches may have used one for both."""
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken |= {output.name for node in graph for output in node.outputs}
    for _, body in bodies(graph):
        outputs = (output for node in body for output in node.outputs)
        for value in (*body.inputs, *body.initializers.values(), *outputs):
            if not value.name:
                continue
            stem, count = value.name, 1
            while value.name in taken:
                count += 1
                value.name = f"{stem}_{count}"
            taken.add(value.name)


def _infer_missing_types(model: ir.Model) -> None:
    if not _lacks_types(model.graph):
        return
    # ONNX infers nothing of a GroupNormalization; of an InstanceNormalization, what it reads.
    norms = [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type == "GroupNormalization" and not node.domain
    ]
    for node in norms:
        node.op_type = "InstanceNormalization"
    # Strict inference gives no shape at all where one operator has none.
    ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    for node in norms:
        node.op_type = "GroupNormalization"


def _lacks_types(graph: ir.Graph) -> bool:
    return any(
        output.name and (output.type is None or output.shape is None)
        for node in ir.traversal.RecursiveGraphIterator(graph)
        for output in node.outputs
        if not node.domain
    )
