"""From statistics to the quantization plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from qvd_trt.calibrators.algorithms.algorithm import Algorithm
from qvd_trt.calibrators.algorithms.problem import SiteProblem
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.parallel_map import parallel_map
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.calibrators.temporal.solve_temporal_site import (
    holds_elsewhere,
    solve_temporal_site,
)
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.fold_math import canonical_weight
from qvd_trt.export.plan.quant_plan import (
    FLOAT_BITS,
    Bits,
    DensePlan,
    LayerQuant,
    QuantPlan,
    TemporalPlan,
)
from qvd_trt.export.plan.scale_math import beyond_fp16
from qvd_trt.export.plan.site_types import (
    MIN_ROWS_PER_CALL,
    GraphSites,
    KeptLayer,
    Layer,
    LayerOp,
    Site,
)

NEVER_EXERCISED = "its input was constant in calibration"
"""Reason of layers that stay float because no call says how large their input may become."""

UNKNOWN_FEATURE = "its feature also depends on inputs that one trajectory does not vary"
UNSTEADY_FEATURE = "a codebook of its feature does not hold on other trajectories"
"""Reasons of temporal layers that stay float: their speed does not depend on a codebook."""

TEMPORAL_FLOAT = "float"
"""As a temporal quantizer: leave the temporal sites in high precision."""


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """What the user decides about the plan.

    Attributes:
        bits: Widths.
        algorithm: How dense sites are solved.
        temporal_quantizer: A name in ``CODEBOOKS`` for all temporal sites, ``float``, or None for
            the algorithm's own, where it holds for trajectories left out.
        min_sqnr: Layers whose output falls below this SQNR (dB) on calibration rows stay float.
        shift_padded: Whether SCRI may shift in front of a zero-padded convolution.
    """

    bits: Bits
    algorithm: Algorithm
    temporal_quantizer: str | None = None
    min_sqnr: float | None = None
    shift_padded: bool = True

    def __post_init__(self) -> None:
        """Refuse names and limits that no site could be solved with.

        Raises:
            UserError: an unknown codebook, or ``min_sqnr`` where nothing is measured.
        """
        names = (*CODEBOOKS, TEMPORAL_FLOAT)
        if self.codebook not in names:
            raise UserError(
                f"--temporal: {self.codebook!r} is unknown; use one of {', '.join(names)}"
            )
        if self.min_sqnr is None:
            return
        if not math.isfinite(self.min_sqnr):
            raise UserError(f"--min-sqnr: {self.min_sqnr} is not supported; use a number of dB")
        if not self.algorithm.needs_rows:
            measuring = [name for name, entry in ALGORITHMS.items() if entry.needs_rows]
            raise UserError(
                "--min-sqnr needs an algorithm that measures layers; use one of "
                f"{', '.join(measuring)}"
            )

    @property
    def codebook(self) -> str:
        """Name of the temporal sites' codebook."""
        return self.temporal_quantizer or self.algorithm.temporal_quantizer


def solve(
    sites: GraphSites,
    stats: ActivationStats,
    read_weight: Callable[[str], AnyArray],
    options: SolveOptions,
    progress: Callable[[], None] = lambda: None,
) -> QuantPlan:
    """Solve every site, on all cores; the result does not depend on their number.

    Args:
        sites: What is quantized, and the layers already known to stay float.
        stats: Statistics of these sites.
        read_weight: Returns an initializer by name; called once per layer, in several threads, and
            not held.
        options: The user's decisions.
        progress: Called after each site.

    Raises:
        UserError: the statistics lack a site, or rows that the algorithm needs.
    """

    def dense(site: Site) -> _Solved:
        return _solve_dense(site, stats, read_weight, options)

    def temporal(site: Site) -> _Solved:
        return _solve_temporal(site, sites, stats, read_weight, options)

    solved = parallel_map(dense, sites.dense, progress)
    solved += parallel_map(temporal, sites.temporal, progress)
    plans = [found.plan for found in solved if found.plan is not None]
    return QuantPlan(
        model_hash=stats.model_hash,
        bits=options.bits,
        algorithm=options.algorithm.name,
        dense=tuple(plan for plan in plans if isinstance(plan, DensePlan)),
        temporal=tuple(plan for plan in plans if isinstance(plan, TemporalPlan)),
        kept=(*sites.kept, *(layer for found in solved for layer in found.kept)),
        float32=float32_tensors(stats),
    )


class _Solved(NamedTuple):
    plan: DensePlan | TemporalPlan | None
    kept: Sequence[KeptLayer] = ()


def _solve_dense(
    site: Site,
    stats: ActivationStats,
    read_weight: Callable[[str], AnyArray],
    options: SolveOptions,
) -> _Solved:
    site, narrow = _without_gemv(site, stats)
    if never_exercised(site, stats):
        idle = [KeptLayer(layer.name, layer.op.value, NEVER_EXERCISED) for layer in site.layers]
        return _Solved(None, narrow + idle)
    if not site.layers:
        return _Solved(None, narrow)
    plan = options.algorithm.solve(_problem(site, stats, read_weight, options))
    plan, weak = _without_weak_layers(site, plan, options.min_sqnr)
    return _Solved(plan if plan.layers else None, narrow + weak)


def _solve_temporal(
    site: Site,
    sites: GraphSites,
    stats: ActivationStats,
    read_weight: Callable[[str], AnyArray],
    options: SolveOptions,
) -> _Solved:
    reason = _float_feature(site, sites, stats, options)
    if reason is None:
        return _Solved(_temporal_plan(site, stats, read_weight, options))
    return _Solved(None, [KeptLayer(e.name, e.op.value, reason) for e in site.layers])


def constant_inputs(stats: ActivationStats) -> frozenset[str]:
    """Names of the graph inputs that had one value in all elements of all calls."""
    return frozenset(name for name, (low, high) in stats.input_ranges.items() if low == high)


def never_exercised(site: Site, stats: ActivationStats) -> bool:
    """Whether every channel of a dense site had one value in all calls: no scale follows then."""
    found = stats.sites.get(site.key)
    if found is None:
        return False
    low, high = found.ranges.over()
    return bool(np.array_equal(low, high))


def float32_tensors(stats: ActivationStats) -> tuple[str, ...]:
    """Names of the tensors that fp16 cannot hold, by what calibration measured."""
    return tuple(name for name, value in stats.magnitudes.items() if beyond_fp16(value))


def _float_feature(
    site: Site, sites: GraphSites, stats: ActivationStats, options: SolveOptions
) -> str | None:
    """Why a temporal site gets no codebook, or None."""
    if options.codebook == TEMPORAL_FLOAT or options.bits.activation == FLOAT_BITS:
        return "temporal site, kept float"
    if site.tensor in sites.strict_temporal or options.temporal_quantizer is not None:
        return None
    holds = holds_elsewhere(_feature(site, stats), options.bits, options.codebook)
    if holds is None:
        return UNKNOWN_FEATURE
    return None if holds else UNSTEADY_FEATURE


def _feature(site: Site, stats: ActivationStats) -> TemporalFeatures:
    feature = stats.temporal.get(site.tensor)
    if feature is None:
        raise UserError(f"the statistics hold no feature {site.tensor!r}; calibrate again")
    return feature


def _temporal_plan(
    site: Site,
    stats: ActivationStats,
    read_weight: Callable[[str], AnyArray],
    options: SolveOptions,
) -> TemporalPlan:
    return solve_temporal_site(
        site,
        _feature(site, stats),
        _weights(site, read_weight),
        options.bits,
        options.codebook,
    )


def _weights(site: Site, read_weight: Callable[[str], AnyArray]) -> dict[str, Float32Array]:
    return {layer.name: canonical_weight(layer, read_weight(layer.weight)) for layer in site.layers}


def _problem(
    site: Site,
    stats: ActivationStats,
    read_weight: Callable[[str], AnyArray],
    options: SolveOptions,
) -> SiteProblem:
    found = stats.sites.get(site.key)
    if found is None:
        raise UserError(f"the statistics hold no site {site.tensor!r}; calibrate again")
    if options.algorithm.needs_rows and any(w.key not in found.rows for w in site.windows):
        raise UserError(
            f"the statistics hold no sample rows, which --algorithm {options.algorithm.name} "
            "needs; calibrate again with this algorithm"
        )
    may_shift = options.shift_padded or not site.padded
    return SiteProblem(
        site, found, _weights(site, read_weight), options.bits, stats.timesteps, may_shift
    )


def _without_gemv(site: Site, stats: ActivationStats) -> tuple[Site, list[KeptLayer]]:
    kept = []
    layers: list[Layer] = []
    for layer in site.layers:
        rows = stats.output_elements[layer.name] / layer.out_channels
        if layer.op is not LayerOp.CONV and rows < MIN_ROWS_PER_CALL:
            reason = f"reads {rows:.0f} rows per call, INT8 GEMMs pay from {MIN_ROWS_PER_CALL}"
            kept.append(KeptLayer(layer.name, layer.op.value, reason))
        else:
            layers.append(layer)
    return replace(site, layers=tuple(layers)), kept


def _without_weak_layers(
    site: Site, plan: DensePlan, min_sqnr: float | None
) -> tuple[DensePlan, list[KeptLayer]]:
    if min_sqnr is None:
        return plan, []
    strong: list[LayerQuant] = []
    kept: list[KeptLayer] = []
    ops = {layer.name: layer.op.value for layer in site.layers}
    for layer in plan.layers:
        if layer.sqnr is not None and layer.sqnr < min_sqnr:
            reason = f"output SQNR {layer.sqnr:.1f} dB is below --min-sqnr {min_sqnr:g}"
            kept.append(KeptLayer(layer.name, ops[layer.name], reason))
        else:
            strong.append(layer)
    return replace(plan, layers=tuple(strong)), kept
