"""The plan of one temporal site: its codebook, its scores, the weights behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qvd_trt.calibrators.statistics.activation_stats import FOLDS, TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.calibrators.temporal.td_score import td_score
from qvd_trt.calibrators.weight_scales import mse_grid
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.metrics import sqnr
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, Bits, Codebook, LayerQuant, TemporalPlan
from qvd_trt.export.plan.scale_math import fake_quantized
from qvd_trt.export.plan.site_types import Layer, Site

BASELINE = "uniform"

MAY_LOSE = 6.0
"""dB that a codebook may lose on features of a trajectory that it was not made from."""

ENOUGH = 50.0
"""dB that no codebook need exceed: few values it holds exactly, and none of another trajectory."""


def solve_temporal_site(
    site: Site,
    feature: TemporalFeatures,
    weights: Mapping[str, Float32Array],
    bits: Bits,
    quantizer: str,
) -> TemporalPlan:
    """Build the codebook and score it against the symmetric uniform grid of the same width.

    Args:
        site: The temporal site.
        feature: Its values over the timesteps, ``[S, C]``.
        weights: ``[N, C, 1]`` by layer name.
        bits: Widths.
        quantizer: A name in ``CODEBOOKS``.
    """
    codebook = CODEBOOKS[quantizer](feature, bits.activation)
    baseline = CODEBOOKS[BASELINE](feature, bits.activation)
    layers = tuple(
        _plan_layer(layer, feature.values, codebook, weights[layer.name], bits)
        for layer in site.layers
    )
    return TemporalPlan(
        tensor=site.tensor,
        quantizer=quantizer,
        codebook=codebook,
        layers=layers,
        td_score_before=_score(feature, baseline),
        td_score_after=_score(feature, codebook),
    )


def holds_elsewhere(feature: TemporalFeatures, bits: Bits, quantizer: str) -> bool | None:
    """Whether codebooks serve features of trajectories that they were not made from.

    Every fold is left out once. The codebook of the others may lose `MAY_LOSE` dB on what only the
    fold has, against the codebook of all on all.

    Returns:
        None where a single fold tells nothing.
    """
    build = CODEBOOKS[quantizer]
    folds = [1 << fold for fold in range(FOLDS) if (feature.folds & (1 << fold)).any()]
    if len(folds) < 2:
        return None
    everything = build(feature, bits.activation)
    expected = min(sqnr(feature.values, everything(feature.values)), ENOUGH)
    for fold in folds:
        alone = feature.at(feature.folds == fold)
        others = feature.at((feature.folds & ~np.uint8(fold)) != 0)
        if not len(alone.values):
            continue
        found = build(others, bits.activation)(alone.values)
        if sqnr(alone.values, found) < expected - MAY_LOSE:
            return False
    return True


def _score(feature: TemporalFeatures, codebook: Codebook) -> float:
    return td_score(feature.values, codebook(feature.values), feature.timesteps)


def _plan_layer(
    layer: Layer,
    feature: Float32Array,
    codebook: Codebook,
    weight: Float32Array,
    bits: Bits,
) -> LayerQuant:
    grid, used = None, weight
    if bits.weight != FLOAT_BITS:
        power = np.mean(np.square(feature), axis=0)[None, :, None]
        grid = mse_grid(weight, bits.weight, power)
        used = fake_quantized(weight, grid)
    reference = feature @ weight[:, :, 0].T
    output = codebook(feature) @ used[:, :, 0].T
    return LayerQuant(layer.name, grid, sqnr=round(sqnr(reference, output), 2))
