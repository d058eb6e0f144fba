"""The HTDQ node in front of the layers that read a temporal feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qvd_trt.calibrators.plan import Codebook, TemporalPlan

HTDQ_DOMAIN = "qvd"
HTDQ_OP = "HTDQ"
PLUGIN_NAMESPACE = "qvd"
PLUGIN_VERSION = "1"
HTDQ_SUFFIX = "/qvd/htdq"
"""What the node and its output add to the name of the feature."""


class InsertHtdq(ir.passes.InPlacePass):
    """Put one ``qvd::HTDQ`` node on each temporal feature, for the planned layers only."""

    def __init__(self, plans: Sequence[TemporalPlan]) -> None:
        super().__init__()
        self._plans: Mapping[str, TemporalPlan] = {plan.tensor: plan for plan in plans}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name or "": node for node in model.graph}
        for plan in self._plans.values():
            readers = [nodes[quant.name] for quant in plan.layers]
            feature = readers[0].inputs[0]
            assert feature is not None
            node = htdq_node(feature, plan.codebook)
            model.graph.insert_before(readers[0], node)
            for reader in readers:
                reader.replace_input_with(0, node.outputs[0])
        if self._plans:
            model.opset_imports[HTDQ_DOMAIN] = 1
        return ir.passes.PassResult(model, bool(self._plans))


def htdq_node(feature: ir.Value, codebook: Codebook) -> ir.Node:
    """``qvd::HTDQ`` with the table and TensorRT's plugin attributes."""
    node = ir.node(
        HTDQ_OP,
        [feature],
        attributes={
            "levels": [float(level) for level in codebook.levels],
            "thresholds": [float(threshold) for threshold in codebook.thresholds],
            "plugin_namespace": PLUGIN_NAMESPACE,
            "plugin_version": PLUGIN_VERSION,
        },
        domain=HTDQ_DOMAIN,
        name=f"{feature.name}{HTDQ_SUFFIX}",
    )
    output = node.outputs[0]
    output.name = f"{feature.name}{HTDQ_SUFFIX}"
    output.shape, output.type = feature.shape, feature.type
    return node
