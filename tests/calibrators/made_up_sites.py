"""Sites with made-up activations and weights, and the error of a plan computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.statistics.activation_stats import (
    FOLDS,
    ChannelRanges,
    SampleRows,
    SiteStats,
)
from qvd_trt.export.plan.quant_plan import W8A8, Bits, DensePlan
from qvd_trt.export.plan.scale_math import activation_levels, weight_levels
from qvd_trt.export.plan.site_types import (
    GraphSites,
    KeptLayer,
    Layer,
    LayerOp,
    Site,
    SiteKind,
    Window,
)

Array = npt.NDArray[Any]
PADDED = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))


def linear(name: str = "linear", channels: int = 16, out: int = 24) -> Layer:
    return Layer(name, LayerOp.MATMUL, f"{name}.w", f"{name}_out", 1, 0, out, channels * out)


def conv(name: str = "conv", channels: int = 16, out: int = 24, groups: int = 1) -> Layer:
    size = channels // groups * out * 9
    return Layer(name, LayerOp.CONV, f"{name}.w", f"{name}_out", 0, 1, out, size, PADDED, groups)


def site_problem(
    values: Array, layers: Sequence[Layer], bits: Bits = W8A8, seed: int = 0, trajectories: int = 4
) -> SiteProblem:
    """A site whose activation takes the given `[rows, C]` values; windows are filled with them.

    Row `i` is seen in trajectory `i % trajectories`, at one of ten timesteps, in their order. In a
    padded window a sixth of the rows has its first three taps outside, where zeros are.
    """
    rng = np.random.default_rng(seed)
    channels = values.shape[1]
    axis = 1 if layers[0].op is LayerOp.CONV else -1
    site = Site("x", SiteKind.DENSE, axis, channels, tuple(layers))
    folds = np.arange(len(values)) % trajectories
    timesteps = np.arange(len(values)) * 10 // len(values)
    rows = {}
    for window in site.windows:
        drawn = values[_alike(folds * 10 + timesteps, window.taps, rng)]
        patches = np.moveaxis(drawn, 1, 2).copy()
        if window.padded:
            patches[::6, :, :3] = 0
        count = len(patches)
        rows[window.key] = SampleRows(
            patches.astype(np.float32), rng.random(count), timesteps.astype(np.float64), folds
        )
    weights = {
        layer.name: rng.normal(
            size=(layer.out_channels, channels // layer.groups, layer.window.taps)
        ).astype(np.float32)
        for layer in layers
    }
    stats = SiteStats(
        ranges=_ranges(values, timesteps, 10),
        fold_ranges=_ranges(values, folds, FOLDS),
        rows=rows,
        row_limit=len(values),
    )
    return SiteProblem(site, stats, weights, bits, np.arange(10.0))


def _alike(labels: Array, count: int, rng: np.random.Generator) -> Array:
    """For each row the indices of `count` rows with its label, drawn at random: `[rows, count]`."""
    return np.stack([rng.choice(np.flatnonzero(labels == label), count) for label in labels])


def _ranges(values: Array, parts: Array, count: int) -> ChannelRanges:
    found = ChannelRanges.unseen(count, values.shape[1])
    for part in np.unique(parts):
        rows = values[parts == part]
        found.minimum[part], found.maximum[part] = rows.min(axis=0), rows.max(axis=0)
    return found


def scattered(seed: int, channels: int = 16, rows: int = 160, shifted: float = 2.0) -> Array:
    """Channels with scales over two decades and centres far from zero."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 1.5, channels))
    centre = shifted * scale * rng.normal(size=channels)
    values: Array = (rng.normal(size=(rows, channels)) * scale + centre).astype(np.float32)
    return values


def measured_error(problem: SiteProblem, plan: DensePlan) -> float:
    """Mean squared error of the outputs over their power, summed over the layers, by hand."""
    total = 0.0
    for layer, quant in zip(problem.site.layers, plan.layers, strict=True):
        rows, weight = problem.rows(layer).astype(np.float64), problem.weights[layer.name]
        shift: Array = np.zeros(problem.site.channels)
        smooth: Array = np.ones(problem.site.channels)
        used = rows
        if plan.activation is not None:
            if plan.activation.shift is not None:
                shift = plan.activation.shift
            if plan.activation.smooth is not None:
                smooth = plan.activation.smooth
            mapped = (rows - shift[:, None]) / smooth[:, None]
            low, high = activation_levels(plan.activation.bits)
            used = np.clip(np.rint(mapped / plan.activation.scale), low, high)
            used = used * plan.activation.scale
        folded = weight * spread(layer, smooth)
        if quant.weight is not None:
            scales = quant.weight.scales[:, None, None]
            _, high = weight_levels(quant.weight.bits)
            folded = np.clip(np.rint(folded / scales), -high, high) * scales
        output = product(layer, used, folded) + (weight * spread(layer, shift)).sum((1, 2))
        if quant.bias_correction is not None:
            output = output + quant.bias_correction
        expected = product(layer, rows, weight)
        total += float(np.square(output - expected).mean() / np.square(expected).mean())
    return total


def spread(layer: Layer, values: Array) -> Array:
    """A vector over the activation's channels at the weight elements that read them."""
    per_group = len(values) // layer.groups
    group = np.arange(layer.out_channels) // (layer.out_channels // layer.groups)
    found: Array = values.reshape(layer.groups, per_group)[group][:, :, None]
    return found


def product(layer: Layer, rows: Array, weight: Array) -> Array:
    per_group = rows.shape[1] // layer.groups
    per_output = layer.out_channels // layer.groups
    columns = []
    for index in range(layer.out_channels):
        first = index // per_output * per_group
        columns.append((rows[:, first : first + per_group] * weight[index]).sum((1, 2)))
    return np.stack(columns, axis=1)


SHAPES: Mapping[str, Sequence[Layer]] = {
    "linear": [linear()],
    "three that share an input": [linear("q"), linear("k", out=8), linear("v")],
    "padded": [conv()],
    "grouped": [conv(groups=2)],
    "padded and shortcut": [
        conv(), replace(conv("short"), window=Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0))),
    ],
}  # fmt: skip


def found_sites(
    dense: Sequence[Site] = (), temporal: Sequence[Site] = (), kept: Sequence[KeptLayer] = ()
) -> GraphSites:
    """Sites as a graph would have them, all of whose layers are in reach of INT8."""
    layers = tuple(layer for site in (*dense, *temporal) for layer in site.layers)
    return GraphSites(tuple(dense), tuple(temporal), tuple(kept), layers, frozenset(), frozenset())
