"""From layers to sites: which inputs are quantized together, which layers stay float."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.sites import KeptLayer, Layer, LayerOp, Site, SiteKind
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.export.graph.layers import find_layers, layer_input, static_shape
from qvd_trt.export.graph.module_path import module_path
from qvd_trt.export.graph.temporal import TemporalPath, find_temporal_path

MIN_CHANNELS = 16
"""INT8 kernels work on blocks of 16 channels; narrower layers are faster in float."""


@dataclass(frozen=True, slots=True)
class GraphSites:
    """What can be quantized in a graph.

    Attributes:
        dense: Sites with a uniform grid, in topological order.
        temporal: Sites with a codebook.
        kept: Layers that stay float, with the reason.
        all_layers: Every layer with a constant weight, quantized or not.
        excluded: Names of the first, last and time-path layers, which no share of INT8 counts.
        strict_temporal: Tensors of the temporal sites that depend on the timestep alone.
    """

    dense: tuple[Site, ...]
    temporal: tuple[Site, ...]
    kept: tuple[KeptLayer, ...]
    all_layers: tuple[Layer, ...]
    excluded: frozenset[str]
    strict_temporal: frozenset[str]


def find_sites(
    graph: ir.Graph, signature: ModelSignature, keep_patterns: Iterable[str] = ()
) -> GraphSites:
    """Group the graph's layers by the tensor they read and decide which stay float.

    Args:
        graph: The float graph; every node with a constant weight has a unique name.
        signature: Its timestep and latent.
        keep_patterns: Shell patterns for whole names of nodes, weights, torch modules or operators.

    Raises:
        UserError: a keep pattern matches nothing, or no layer is left to quantize.
    """
    layers, odd = find_layers(graph)
    path = find_temporal_path(graph, layers, signature)
    ends = _end_layers(graph, layers, signature)
    reasons = {layer.name: "time embedding MLP" for layer in layers if layer.name in path.trunk}
    reasons |= {name: reason for name, reason in ends.items() if name not in path.projections}
    excluded = frozenset(reasons) | path.projections
    for layer in layers:
        if layer.name not in path.projections and (narrow := _too_narrow(graph, layer)):
            reasons.setdefault(layer.name, narrow)
    reasons |= _kept_by_user(graph, layers, keep_patterns)
    quantized = [layer for layer in layers if layer.name not in reasons]
    if not quantized:
        raise UserError("no layer is left to quantize; see --keep and the model's channel counts")
    sites = _group(graph, quantized, path)
    return GraphSites(
        dense=tuple(site for site in sites if site.kind is SiteKind.DENSE),
        temporal=tuple(site for site in sites if site.kind is SiteKind.TEMPORAL),
        kept=tuple(
            [
                KeptLayer(layer.name, layer.op.value, reasons[layer.name])
                for layer in layers
                if layer.name in reasons
            ]
            + odd
        ),
        all_layers=tuple(layers),
        excluded=excluded,
        strict_temporal=path.strict,
    )


def _group(graph: ir.Graph, layers: list[Layer], path: TemporalPath) -> list[Site]:
    nodes = {node.name: node for node in graph}
    groups: dict[tuple[str, int, SiteKind], list[Layer]] = {}
    for layer in layers:
        tensor = layer_input(nodes[layer.name]).name or ""
        axis = 1 if layer.op is LayerOp.CONV else -1
        kind = SiteKind.TEMPORAL if layer.name in path.projections else SiteKind.DENSE
        groups.setdefault((tensor, axis, kind), []).append(layer)
    return [
        Site(tensor, kind, axis, _in_channels(graph, members[0]), tuple(members))
        for (tensor, axis, kind), members in groups.items()
    ]


def _in_channels(graph: ir.Graph, layer: Layer) -> int:
    return static_shape(graph.initializers[layer.weight])[layer.in_axis] * layer.groups


def _too_narrow(graph: ir.Graph, layer: Layer) -> str | None:
    per_group = _in_channels(graph, layer) // layer.groups
    if per_group < MIN_CHANNELS:
        return f"{per_group} input channels per group, INT8 kernels need {MIN_CHANNELS}"
    if layer.out_channels < MIN_CHANNELS:
        return f"{layer.out_channels} output channels, INT8 kernels need {MIN_CHANNELS}"
    return None


def _kept_by_user(graph: ir.Graph, layers: list[Layer], patterns: Iterable[str]) -> dict[str, str]:
    nodes = {node.name: node for node in graph}
    reasons: dict[str, str] = {}
    for pattern in patterns:
        hits = [
            layer.name
            for layer in layers
            if any(fnmatchcase(name, pattern) for name in _names(nodes[layer.name], layer))
        ]
        if not hits:
            raise UserError(
                f"--keep {pattern!r} matches no layer; patterns match whole names of nodes or "
                "weights (list them with -v), of operators such as MatMul or, where torch's "
                "exporter noted them, of modules, for example '*time_emb_proj*'"
            )
        reasons |= dict.fromkeys(hits, f"--keep {pattern}")
    return reasons


def _names(node: ir.Node, layer: Layer) -> tuple[str, ...]:
    """By what a user may call a layer."""
    return layer.name, layer.weight, layer.op.value, module_path(node)


def _end_layers(graph: ir.Graph, layers: list[Layer], signature: ModelSignature) -> dict[str, str]:
    """The layers that touch the latent, or write the output, with no other layer between."""
    layer_names = {layer.name for layer in layers}
    ends: dict[str, str] = {}
    latent = next(value for value in graph.inputs if value.name == signature.latent)
    seen: set[ir.Node] = set()
    stack: list[ir.Node] = list(latent.consumers())
    while stack:
        node = stack.pop()
        if node in seen or node.op_type in ("Shape", "Size"):
            continue
        seen.add(node)
        if node.name in layer_names:
            ends[node.name or ""] = "first layer"
        else:
            stack.extend(node.successors())
    seen.clear()
    stack = [p for value in graph.outputs if (p := value.producer()) is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name in layer_names:
            ends[node.name or ""] = "last layer"
        else:
            stack.extend(node.predecessors())
    return ends
