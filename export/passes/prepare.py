"""What the other passes take for granted: named nodes and weights that are plain initializers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
)

from qvd_trt.export.graph.values import constant_array, is_weight
from qvd_trt.export.passes.edits import add_initializer


class Prepare(ir.passes.InPlacePass):
    """Name every node, lift Constant nodes to initializers, fold transposed weights.

    Tensor names do not change, so statistics of the original file stay valid.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        IdentityEliminationPass()(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for node in list(model.graph):
            if node.op_type == "Transpose" and is_weight(node.inputs[0]):
                _fold_transpose(model.graph, node)
        _name_nodes(model.graph)
        NameFixPass()(model)
        return ir.passes.PassResult(model, True)


def _fold_transpose(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    perm = node.attributes.get_ints("perm")
    output = node.outputs[0]
    if output.is_graph_output():
        return
    folded = add_initializer(
        graph, f"{output.name}/qvd/transposed", constant_array(source).transpose(perm)
    )
    output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)
    if not source.uses() and not source.is_graph_output():
        del graph.initializers[source.name or ""]


def _name_nodes(graph: ir.Graph) -> None:
    for index, node in enumerate(graph):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
