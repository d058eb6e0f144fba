"""The rules around the algorithms: what becomes of layers that do not pay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.solve import (
    NEVER_EXERCISED,
    TEMPORAL_FLOAT,
    UNKNOWN_FEATURE,
    UNSTEADY_FEATURE,
    SolveOptions,
    never_exercised,
    solve,
)
from qvd_trt.calibrators.statistics.activation_stats import (
    EVERY_FOLD,
    ActivationStats,
    TemporalFeatures,
)
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.calibrators.temporal.solve_temporal_site import holds_elsewhere
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.fold_math import restored_weight
from qvd_trt.export.plan.quant_plan import W8A8, Bits, QuantPlan, WeightQuant
from qvd_trt.export.plan.site_types import KeptLayer, Layer, Site, SiteKind
from tests.calibrators.made_up_sites import (
    Array,
    conv,
    found_sites,
    linear,
    scattered,
    site_problem,
)


class TestSolve:
    """The rules around the algorithms: what becomes of layers that do not pay."""

    def solve(
        self,
        layers: Sequence[Layer],
        *,
        algorithm: str = "qvd",
        bits: Bits = W8A8,
        min_sqnr: float | None = None,
        rows: bool = True,
        rows_per_call: float = 100,
        temporal: Sequence[Layer] = (),
        quantizer: str = "hidi",
        values: Array | None = None,
        shift_padded: bool = True,
    ) -> QuantPlan:
        problem = site_problem(scattered(0) if values is None else values, layers, bits)
        sites = [problem.site] if layers else []
        feature = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
        stats = ActivationStats(
            model_hash="sha256:x",
            samples=3,
            timesteps=problem.timesteps,
            sites={"x": problem.stats if rows else replace(problem.stats, rows={})},
            temporal={
                "t": TemporalFeatures(feature, np.arange(20.0), np.full(20, EVERY_FOLD, np.uint8))
            },
            output_elements={
                layer.name: rows_per_call * layer.out_channels for layer in (*layers, *temporal)
            },
        )
        weights = {
            layer.weight: restored_weight(layer, problem.weights[layer.name], (24, 16, 3, 3))
            for layer in layers
        }
        weights |= {layer.weight: np.ones((16, 24), np.float32) for layer in temporal}
        seen: list[None] = []
        sites_of_time = [Site("t", SiteKind.TEMPORAL, -1, 16, tuple(temporal))] if temporal else []
        plan = solve(
            found_sites(sites, sites_of_time, [KeptLayer("known", "Conv", "first layer")]),
            stats,
            weights.__getitem__,
            SolveOptions(bits, ALGORITHMS[algorithm], quantizer, min_sqnr, shift_padded),
            lambda: seen.append(None),
        )
        assert len(seen) == len(sites) + len(sites_of_time)
        return plan

    @pytest.mark.parametrize("bits", ["w4a8", "w8a6", "w16a8", "w8a16"])
    def test_widths(self, bits: str) -> None:
        plan = self.solve([linear()], bits=Bits.parse(bits), temporal=[linear("p")])
        (site,) = plan.dense
        weight, activation = site.layers[0].weight, site.activation
        assert (weight.bits if weight else 16) == plan.bits.weight
        assert (activation.bits if activation else 16) == plan.bits.activation
        assert site.layers[0].sqnr is not None
        assert site.layers[0].sqnr > 15
        if bits == "w8a16":
            assert plan.temporal == ()
            assert plan.kept[-1] == KeptLayer("p", "MatMul", "temporal site, kept float")
        else:
            assert len(plan.temporal[0].codebook.levels) <= 2**plan.bits.activation

    def test_sqnr_falls_with_the_width(self) -> None:
        found = [
            self.solve([linear()], bits=Bits.parse(bits)).dense[0].layers[0].sqnr
            for bits in ("w8a8", "w8a6", "w4a6", "w2a2")
        ]
        assert len(found) == 4
        for wider, narrower in itertools.pairwise(found):
            assert wider is not None
            assert narrower is not None
            assert wider > narrower + 3

    def test_no_shift_before_padding(self) -> None:
        for layer, shift_padded, shifted in (
            (conv(), True, True),
            (conv(), False, False),
            (linear(), False, True),
        ):
            values = scattered(0, shifted=9.0)
            (site,) = self.solve([layer], values=values, shift_padded=shift_padded).dense
            assert site.activation is not None
            assert (site.activation.shift is not None) == shifted

    def test_kept_layers_are_passed_on(self) -> None:
        assert self.solve([linear()]).kept == (KeptLayer("known", "Conv", "first layer"),)

    def test_min_sqnr(self) -> None:
        layers = [linear("q"), linear("k")]
        found = self.solve(layers).dense[0].layers
        low, high = sorted(quant.sqnr or 0 for quant in found)
        assert low < high
        plan = self.solve(layers, min_sqnr=(low + high) / 2)
        (site,) = plan.dense
        assert [quant.sqnr for quant in site.layers] == [high]
        kept = plan.kept[-1]
        assert kept.op == "MatMul"
        assert kept.reason == f"output SQNR {low:.1f} dB is below --min-sqnr {(low + high) / 2:g}"

    def test_min_sqnr_that_nothing_reaches(self) -> None:
        plan = self.solve([linear("q"), linear("k")], min_sqnr=200)
        assert plan.dense == ()
        assert [layer.name for layer in plan.kept] == ["known", "q", "k"]

    @pytest.mark.parametrize("algorithm", ["minmax", "shift", "smoothquant"])
    def test_min_sqnr_needs_a_measurement(self, algorithm: str) -> None:
        # Statistics without rows are those that these algorithms ask for.
        with pytest.raises(UserError, match="--min-sqnr needs an algorithm"):
            self.solve([linear()], algorithm=algorithm, min_sqnr=20, rows=False)

    @pytest.mark.parametrize(("rows", "quantized"), [(15.9, False), (16, True), (1, False)])
    def test_matrix_vector_products_stay_float(self, rows: float, quantized: bool) -> None:
        plan = self.solve([linear()], rows_per_call=rows)
        assert bool(plan.dense) == quantized
        if not quantized:
            assert plan.kept[-1].name == "linear"
            assert f"reads {rows:.0f} rows per call" in plan.kept[-1].reason

    @pytest.mark.parametrize(
        ("value", "spread", "kept"), [(0, 0, True), (3, 0, True), (0, 1, False)]
    )
    def test_a_constant_input_tells_no_scale(self, value: float, spread: float, kept: bool) -> None:
        values = np.full((200, 16), value, np.float32)
        values[:100, 2] += np.float32(spread)
        plan = self.solve([linear()], values=values)
        assert bool(plan.dense) != kept
        reasons = [layer.reason for layer in plan.kept if layer.name == "linear"]
        assert reasons == [NEVER_EXERCISED] * kept

    def test_convolutions_have_no_such_rule(self) -> None:
        assert self.solve([conv()], rows_per_call=1).dense

    def test_temporal_sites_kept_float_on_request(self) -> None:
        plan = self.solve([linear()], temporal=[linear("p")], quantizer=TEMPORAL_FLOAT)
        assert plan.temporal == ()
        assert plan.kept[-1] == KeptLayer("p", "MatMul", "temporal site, kept float")

    @pytest.mark.parametrize("quantizer", sorted(CODEBOOKS))
    def test_temporal_plan(self, quantizer: str) -> None:
        (site,) = self.solve([linear()], temporal=[linear("p")], quantizer=quantizer).temporal
        assert (site.tensor, site.quantizer) == ("t", quantizer)
        assert site.td_score_after <= 1
        if quantizer == "uniform":
            assert site.td_score_after == site.td_score_before

    def test_statistics_without_the_site(self) -> None:
        problem = site_problem(scattered(0), [linear()])
        stats = ActivationStats(
            "sha256:x", 1, np.array([5.0]), {}, {}, {"linear": 2400.0, "p": 2400.0}
        )
        options = SolveOptions(W8A8, ALGORITHMS["minmax"], "hidi")
        weight = np.ones((16, 24), np.float32)
        with pytest.raises(UserError, match="no site 'x'"):
            solve(found_sites([problem.site]), stats, lambda _: weight, options)
        temporal = Site("t", SiteKind.TEMPORAL, -1, 16, (linear("p"),))
        with pytest.raises(UserError, match="no feature 't'"):
            solve(found_sites(temporal=[temporal]), stats, lambda _: weight, options)

    def test_statistics_without_rows(self) -> None:
        problem = site_problem(scattered(0), [linear()])
        bare = replace(problem.stats, rows={})
        stats = ActivationStats("sha256:x", 1, np.array([5.0]), {"x": bare}, {}, {"linear": 2400.0})
        weight = np.ones((16, 24), np.float32)

        def solved(name: str) -> QuantPlan:
            options = SolveOptions(W8A8, ALGORITHMS[name], "hidi")
            return solve(found_sites([problem.site]), stats, lambda _: weight, options)

        with pytest.raises(UserError, match="no sample rows, which --algorithm qvd needs"):
            solved("qvd")
        quant = solved("minmax").dense[0].layers[0]
        assert quant.sqnr is None
        assert isinstance(quant.weight, WeightQuant)


def test_sites_of_one_tensor_are_judged_by_their_own_ranges() -> None:
    """Along one axis each channel has one value, along the other none has."""
    live, constant = (
        replace(site_problem(values, [linear()], W8A8).stats, rows={})
        for values in (scattered(0), np.ones_like(scattered(0)))
    )
    first = Site("x", SiteKind.DENSE, -1, 16, (linear(),))
    second = replace(first, alias="x along axis 1")
    stats = ActivationStats(
        "sha256:x", 1, np.array([5.0]), {"x": live, "x along axis 1": constant}, {}, {}
    )
    assert [never_exercised(site, stats) for site in (first, second)] == [False, True]


class TestRelaxedFeatures:
    """Temporal features that other inputs change, too: does a codebook hold for unseen ones?"""

    FEATURE = Site("t", SiteKind.TEMPORAL, -1, 16, (linear("p"),))

    def solve(self, offsets: Sequence[float], strict: bool = False) -> QuantPlan:
        """Ten timesteps of one trajectory for every offset, which is added to even noise."""
        rng = np.random.default_rng(0)
        count = len(offsets)
        noise = rng.uniform(-1, 1, (count, 10, 16)) + np.reshape(offsets, (-1, 1, 1))
        values = noise.reshape(-1, 16).astype(np.float32)
        feature = TemporalFeatures(
            values,
            np.tile(np.arange(10.0), count),
            np.repeat(1 << np.arange(count), 10).astype(np.uint8),
        )
        stats = ActivationStats(
            model_hash="sha256:x",
            samples=10 * count,
            timesteps=np.arange(10.0),
            sites={},
            temporal={"t": feature},
            output_elements={"p": 2400.0},
        )
        sites = found_sites([], [self.FEATURE])
        if strict:
            sites = replace(sites, strict_temporal=frozenset({"t"}))
        weight = np.ones((16, 24), np.float32)
        return solve(sites, stats, lambda _: weight, SolveOptions(W8A8, ALGORITHMS["qvd"]))

    def test_conditions_alike_get_a_codebook(self) -> None:
        assert len(self.solve([0.0] * 8).temporal) == 1

    def test_conditions_that_leave_the_codebook_stay_float(self) -> None:
        plan = self.solve([0.0, 4.0, 8.0])
        assert plan.temporal == ()
        assert plan.kept == (KeptLayer("p", "MatMul", UNSTEADY_FEATURE),)

    def test_few_values_that_a_codebook_holds_exactly(self) -> None:
        """Of all trajectories without an error, and of those left out with a small one."""
        rng = np.random.default_rng(0)
        value = rng.normal(size=(1, 64)).astype(np.float32)
        feature = TemporalFeatures(
            np.concatenate([value, value + np.float32(1e-3)]),
            np.zeros(2),
            np.array([1, 2], np.uint8),
        )
        assert holds_elsewhere(feature, W8A8, "hidi")

    def test_one_trajectory_tells_nothing(self) -> None:
        plan = self.solve([0.0])
        assert plan.temporal == ()
        assert plan.kept == (KeptLayer("p", "MatMul", UNKNOWN_FEATURE),)

    def test_the_timestep_alone_needs_no_other_trajectory(self) -> None:
        assert len(self.solve([0.0], strict=True).temporal) == 1
