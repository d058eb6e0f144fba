"""A lower default opset for runtimes that know no newer one (TensorRT 8.6 takes 17)."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.passes.opset.lower_rules import RULES
from qvd_trt.export.passes.opset.schema import (
    HIGHEST,
    LOWEST,
    check_node,
    describe,
    drop_new_defaults,
    least_ir_version,
)


class LowerOpset(ir.passes.InPlacePass):
    """Rewrite a graph so that it means the same at a lower opset of the default domain.

    Operators that changed between both opsets are rewritten (``RULES``), attributes that the target
    lacks are dropped where they say what their absence says, and everything is checked against the
    schemas of the target: a node that is not certain to mean the same is an error.
    Nodes of other domains are left alone. The IR version drops to the one that belongs to the
    target. Names of nodes and tensors stay; new ones start with the name of the node they replace.

    Args:
        target: The opset wanted, 17 to 24. A graph that is there already is left alone.
    """

    def __init__(self, target: int = 17) -> None:
        super().__init__()
        if not LOWEST <= target < HIGHEST:
            raise ValueError(f"target opset {target} is not {LOWEST} to {HIGHEST - 1}")
        self._target = target

    def requires(self, model: ir.Model) -> None:
        """Check that the opset is known and functions are inlined."""
        source = model.opset_imports.get("")
        if source is None or source > HIGHEST:
            raise ir.passes.PreconditionError(
                f"the model has opset {source}; rewrites are known up to {HIGHEST}"
            )
        if model.functions:
            names = ", ".join(sorted({function.name for function in model.functions.values()}))
            raise ir.passes.PreconditionError(
                f"the model holds functions ({names}); inline them before lowering its opset"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite, then check every node.

        Raises:
            UserError: a node has no equal at the target; names the node, its operator and opset.
        """
        source = model.opset_imports[""]
        if source <= self._target:
            return ir.passes.PassResult(model, False)
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            self._rewrite(node, source)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            drop_new_defaults(node, source, self._target)
            check_node(node, source, self._target)
        model.opset_imports[""] = self._target
        model.ir_version = min(model.ir_version, least_ir_version(self._target))
        return ir.passes.PassResult(model, True)

    def _rewrite(self, node: ir.Node, source: int) -> None:
        rule = RULES.get(node.op_type) if node.domain == "" else None
        if rule is None or not any(self._target < change <= source for change in rule.changes):
            return
        try:
            rule.rewrite(node, source)
        except UserError as error:
            raise UserError(
                f"opset {source} to {self._target}: {describe(node)}: {error}"
            ) from error
