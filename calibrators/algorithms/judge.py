"""What a candidate's grids do to the outputs of a site's layers, at a bounded cost.

A site of a large model has thousands of outputs, and tens of candidates are judged on each of
several folds. The noise of all outputs is the mean square of a few random combinations of them
(Johnson and Lindenstrauss, 1984), and that of the weights' grids the mean over a random choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qvd_trt.calibrators.algorithms.algorithm import absmax_weights
from qvd_trt.calibrators.algorithms.problem import (
    SiteProblem,
    layer_output,
    quantized_rows,
    transformed_rows,
)
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.plan.fold_math import folded_weight
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant
from qvd_trt.export.plan.scale_math import fake_quantized
from qvd_trt.export.plan.site_types import Layer

MIXTURES = 128
"""Combinations of outputs that activation noise is taken from: the noise of a single clipped
channel is met within an eighth, that of many channels far better."""

SAMPLED_OUTPUTS, SAMPLED_ROWS = 256, 128
"""Outputs of each layer, and sample rows, that weight noise is taken from."""


@dataclass(frozen=True, slots=True, eq=False)
class _SampledLayer:
    """Some outputs of a layer as a layer of their own.

    Attributes:
        layer: As in the graph but for its number of outputs.
        weight: ``[n, C / groups, taps]``.
        power: Mean square of the layer's float output.
    """

    layer: Layer
    weight: Float32Array
    power: float


class Judge:
    """Noise over signal of the site's layers under a grid, summed over the layers.

    Args:
        problem: The site with all its sample rows.
        folds: The same with the rows of one fold each.
    """

    def __init__(self, problem: SiteProblem, folds: Sequence[SiteProblem]) -> None:
        self.problem = problem
        self.folds = folds
        random = np.random.default_rng(0)
        layers = problem.site.layers
        exact = sum(layer.out_channels for layer in layers) <= MIXTURES
        mixtures: dict[str, list[Float32Array]] = {}
        self._sampled: list[_SampledLayer] = []
        for layer in layers:
            weight = problem.weights[layer.name]
            mixture = _mixture(layer, weight, None if exact else random)
            rows = problem.rows(layer)
            flat = rows.reshape(len(rows), -1) @ mixture
            power = max(float(np.square(flat, dtype=np.float64).sum(axis=1).mean()), 1e-30)
            mixtures.setdefault(layer.window.key, []).append(mixture * np.float32(power**-0.5))
            self._sampled.append(_sampled(layer, weight, power, random))
        # Signs of different layers are independent, so the squares of a sum are a sum of squares.
        self._mixtures = {
            key: np.concatenate(found, axis=1) if exact else np.add.reduce(found)
            for key, found in mixtures.items()
        }

    def activation_noise(self, fold: int, grid: ActivationQuant) -> float:
        """``sum |(Q(X') - X') W'|^2 / |X W|^2`` on the rows of one fold, means over the outputs."""
        noise = 0.0
        for key, mixture in self._mixtures.items():
            rows = self.folds[fold].stats.rows[key].values
            error = quantized_rows(rows, grid) - transformed_rows(rows, grid)
            if grid.smooth is not None:
                error *= grid.smooth[None, :, None]
            outputs = error.reshape(len(error), -1) @ mixture
            noise += float(np.square(outputs, dtype=np.float64).sum(axis=1).mean())
        return noise

    def weight_noise(self, grid: ActivationQuant) -> float:
        """``sum |X' (Q(W') - W')|^2 / |X W|^2``, the weights on scales that clip nothing."""
        if self.problem.bits.weight == FLOAT_BITS:
            return 0.0
        noise = 0.0
        for sampled in self._sampled:
            layer, weight = sampled.layer, sampled.weight
            folded = folded_weight(layer, weight, grid)
            site = replace(self.problem, weights={layer.name: weight})
            error = fake_quantized(folded, absmax_weights(site, layer, grid)) - folded
            rows = transformed_rows(self.problem.rows(layer)[:SAMPLED_ROWS], grid)
            output = layer_output(layer, rows, error)
            noise += float(np.square(output, dtype=np.float64).mean()) / sampled.power
        return noise


def _mixture(
    layer: Layer, weight: Float32Array, random: np.random.Generator | None
) -> Float32Array:
    """``[C * taps, M]``: combinations of the outputs, whose squares sum up to their mean square.

    With random signs in expectation; without a generator the outputs themselves.
    """
    outputs = layer.out_channels
    if random is None:
        signs = np.eye(outputs, dtype=np.float32)
    else:
        signs = random.choice(np.array([-1, 1], np.float32), (outputs, MIXTURES))
        signs /= np.float32(MIXTURES**0.5)
    signs /= np.float32(outputs**0.5)
    per_group = outputs // layer.groups
    mixed = []
    for first in range(0, outputs, per_group):
        group = slice(first, first + per_group)
        mixed.append(weight[group].reshape(per_group, -1).T @ signs[group])
    return np.concatenate(mixed)


def _sampled(
    layer: Layer, weight: Float32Array, power: float, random: np.random.Generator
) -> _SampledLayer:
    """As many outputs of every group."""
    per_group = layer.out_channels // layer.groups
    count = max(1, min(per_group, SAMPLED_OUTPUTS // layer.groups))
    chosen = np.sort(random.permutation(per_group)[:count])
    outputs = (np.arange(layer.groups)[:, None] * per_group + chosen).reshape(-1)
    return _SampledLayer(replace(layer, out_channels=len(outputs)), weight[outputs], power)
