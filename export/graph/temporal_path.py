"""Temporal features: activations that the timestep decides and the latent does not touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.graph.values import input_dependence, readers


@dataclass(frozen=True, slots=True)
class TemporalPath:
    """The layers that only ever see temporal features.

    Attributes:
        trunk: Names of the embedding MLP's layers, which everything temporal passes; they stay
            in high precision.
        projections: Names of the layers that carry the embedding into the blocks
            (``time_emb_proj``, AdaLN modulation); their inputs are the temporal sites.
        strict: Names of the temporal sites' tensors that depend on the timestep alone.
    """

    trunk: frozenset[str]
    projections: frozenset[str]
    strict: frozenset[str]


def find_temporal_path(model: FloatModel) -> TemporalPath:
    """Walk the graph from the timestep (docs/method.md#temporal-features).

    A tensor is temporal when it depends on the timestep and not on the latent. It may depend on
    other conditioning too (the relaxed rule: fps, guidance, pooled text), unless token sequences
    enter and leave a token axis: such tensors are activations like any other.
    """
    dependence = input_dependence(model.graph)
    nodes, signature = model.nodes, model.signature
    temporal: dict[str, ir.Value] = {}
    for name, layer in model.layers.items():
        value = model.input_of(layer)
        if _is_temporal(value, dependence[value], nodes[name], signature):
            temporal[name] = value
    reading = readers(model.graph)
    reached = {name: _temporal_layers_after(nodes[name], temporal, reading) for name in temporal}
    trunk = frozenset(name for name, after in reached.items() if _is_trunk(name, after, reached))
    projections = frozenset(temporal) - trunk
    strict = frozenset(
        temporal[name].name or ""
        for name in projections
        if dependence[temporal[name]] == {signature.timestep}
    )
    return TemporalPath(trunk, projections, strict)


def _is_temporal(
    value: ir.Value, depends_on: frozenset[str], node: ir.Node, signature: ModelSignature
) -> bool:
    if signature.timestep not in depends_on or signature.latent in depends_on:
        return False
    conditioning = depends_on - {signature.timestep}
    if all(len(signature.input(name).shape) <= 2 for name in conditioning):
        return True
    has_token_axis = node.op_type != "Gemm" and (value.shape is None or len(value.shape) > 2)
    return not has_token_axis


def _temporal_layers_after(
    node: ir.Node,
    temporal: Mapping[str, ir.Value],
    reading: Mapping[ir.Value, list[ir.Node]],
) -> frozenset[str]:
    def successors(node: ir.Node) -> list[ir.Node]:
        return [reader for output in node.outputs for reader in reading.get(output, ())]

    found: set[str] = set()
    seen: set[ir.Node] = set()
    stack = successors(node)
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.name in temporal:
            found.add(current.name or "")
        elif current.op_type in ("MatMul", "Gemm", "Conv"):
            # Beyond a layer that is not temporal the feature has met the latent.
            continue
        stack.extend(successors(current))
    return frozenset(found)


def _is_trunk(name: str, after: frozenset[str], reached: Mapping[str, frozenset[str]]) -> bool:
    """A trunk layer feeds most of the temporal layers that do not come before it.

    The majority, not just any: a LoRA pair inside one block (Cosmos) is no trunk.
    """
    before = sum(name in others for others in reached.values())
    others = len(reached) - 1 - before
    return bool(after) and 2 * len(after) >= others
