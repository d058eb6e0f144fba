"""From layers to sites: which inputs are quantized together, which layers stay float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import module_path
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.temporal_path import TemporalPath, find_temporal_path
from qvd_trt.export.graph.values import all_inputs, readers
from qvd_trt.export.plan.site_types import (
    MIN_CHANNELS,
    GraphSites,
    KeptLayer,
    Layer,
    Site,
    SiteKind,
)


def find_sites(model: FloatModel, keep_patterns: Iterable[str] = ()) -> GraphSites:
    """Group the graph's layers by the tensor they read and decide which stay float.

    Args:
        model: The float model.
        keep_patterns: Shell patterns for whole names of nodes, weights, torch modules or operators.

    Raises:
        UserError: a keep pattern matches nothing, or no layer is left to quantize.
    """
    layers = list(model.layers.values())
    path = find_temporal_path(model)
    ends = _end_layers(model)
    reasons = {layer.name: "time embedding MLP" for layer in layers if layer.name in path.trunk}
    reasons |= {name: reason for name, reason in ends.items() if name not in path.projections}
    excluded = frozenset(reasons) | path.projections
    for layer in layers:
        if layer.name not in path.projections and (narrow := _too_narrow(layer)):
            reasons.setdefault(layer.name, narrow)
    reasons |= _kept_by_user(model, keep_patterns)
    quantized = [layer for layer in layers if layer.name not in reasons]
    if not quantized:
        raise UserError(_nothing_left(model, reasons))
    sites = _group(model, quantized, path)
    return GraphSites(
        dense=tuple(site for site in sites if site.kind is SiteKind.DENSE),
        temporal=tuple(site for site in sites if site.kind is SiteKind.TEMPORAL),
        kept=(
            *(
                KeptLayer(layer.name, layer.op.value, reasons[layer.name])
                for layer in layers
                if layer.name in reasons
            ),
            *(KeptLayer(layer.name, layer.op, layer.reason) for layer in model.odd_layers),
        ),
        all_layers=(*layers, *model.odd_layers),
        excluded=excluded,
        strict_temporal=path.strict,
    )


def _nothing_left(model: FloatModel, reasons: Mapping[str, str]) -> str:
    """Why no layer is quantized: the commonest of the reasons."""
    counts = Counter(reasons.values())
    counts.update(layer.reason for layer in model.odd_layers if layer.name not in reasons)
    if not counts:
        return "the model has no Conv, Gemm or MatMul with constant weights; nothing to quantize"
    reason, count = counts.most_common(1)[0]
    layers = "1 layer stays" if count == 1 else f"{count} layers stay"
    return f"no layer is left to quantize: {layers} float for this reason: {reason}"


def _group(model: FloatModel, layers: list[Layer], path: TemporalPath) -> list[Site]:
    groups: dict[tuple[str, int, SiteKind], list[Layer]] = {}
    for layer in layers:
        tensor = model.input_of(layer).name or ""
        kind = SiteKind.TEMPORAL if layer.name in path.projections else SiteKind.DENSE
        groups.setdefault((tensor, layer.channel_axis, kind), []).append(layer)
    sites: list[Site] = []
    for (tensor, axis, kind), members in groups.items():
        taken = any(site.tensor == tensor for site in sites)
        alias = f"{tensor} along axis {axis}" if taken else ""
        sites.append(Site(tensor, kind, axis, members[0].in_channels, tuple(members), alias))
    return sites


def _too_narrow(layer: Layer) -> str | None:
    per_group = layer.in_channels // layer.groups
    if per_group < MIN_CHANNELS:
        return f"{per_group} input channels per group, INT8 kernels need {MIN_CHANNELS}"
    if layer.out_channels < MIN_CHANNELS:
        return f"{layer.out_channels} output channels, INT8 kernels need {MIN_CHANNELS}"
    return None


def _kept_by_user(model: FloatModel, patterns: Iterable[str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for pattern in patterns:
        known = {name: _names(model.nodes[name], layer) for name, layer in model.layers.items()}
        hits = [name for name, names in known.items() if pattern in names]
        # An exact name may hold brackets, which a shell pattern reads otherwise.
        hits = hits or [
            name
            for name, names in known.items()
            if any(fnmatchcase(text, pattern) for text in names)
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


def _end_layers(model: FloatModel) -> dict[str, str]:
    """The layers that touch the latent, or write the output, with no other layer between.

    A layer of a form that stays float is a layer, too.
    """
    signature, graph = model.signature, model.graph
    latent = next(value for value in graph.inputs if value.name == signature.latent)
    prediction = next(value for value in graph.outputs if value.name == signature.output.name)
    reading = readers(graph)

    def after(node: ir.Node) -> Iterator[ir.Node]:
        for output in node.outputs:
            yield from reading.get(output, ())

    def before(node: ir.Node) -> Iterator[ir.Node]:
        for value in all_inputs(node, extents=False):
            if (writer := value.producer()) is not None:
                yield writer

    writer = prediction.producer()
    first = _nearest_layers(model, reading.get(latent, ()), after)
    last = _nearest_layers(model, () if writer is None else (writer,), before)
    return dict.fromkeys(first, "first layer") | dict.fromkeys(last, "last layer")


def _nearest_layers(
    model: FloatModel,
    start: Iterable[ir.Node],
    neighbours: Callable[[ir.Node], Iterable[ir.Node]],
) -> list[str]:
    """Names of the layers reached first on every way from some nodes; extents are no way."""
    layers = {*model.layers, *(layer.name for layer in model.odd_layers)}
    found: list[str] = []
    seen: set[ir.Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in seen or node.op_type in ("Shape", "Size"):
            continue
        seen.add(node)
        if node.name in layers:
            found.append(node.name or "")
        else:
            stack.extend(neighbours(node))
    return found
