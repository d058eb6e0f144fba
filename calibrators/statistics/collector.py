"""Runs the float model in ONNX Runtime and streams statistics of its activations."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.statistics.activation_stats import (
    FOLDS,
    ActivationStats,
    ChannelRanges,
    ReferenceCall,
    SampleRows,
    SiteStats,
    TemporalFeatures,
    merge_magnitudes,
    merge_ranges,
    merge_temporal,
)
from qvd_trt.export.arrays import AnyArray, Float64Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import timestep_of
from qvd_trt.export.ort_session import CPU, open_session, run_session
from qvd_trt.export.passes.add_probes import (
    POSITION_COLUMNS,
    POSITIONS_INPUT,
    ProbeWriter,
    SiteProbes,
)
from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.precision.measured_tensors import measured_tensors
from qvd_trt.export.plan.site_types import GraphSites, Site, Window

ROW_BYTES_PER_WINDOW = 4 << 20
"""Sample rows kept per receptive field: at most this many bytes."""

MIN_ROWS, MAX_ROWS = 64, 512

_Range = tuple[AnyArray, AnyArray]
"""Least and greatest value, ``[C]`` each."""

_MASK = -1e30
"""Values below are additive masks, -inf or the type's least number: Softmax makes zeros of them in
any type."""


class StatisticsCollector:
    """Reduces every site inside the graph; no full activation leaves the session.

    Memory grows with distinct timesteps and temporal features, and not with calls: ranges are kept
    per timestep, sample rows in bounded reservoirs whose random choice depends on each call's
    content and not on the order of the calls.
    """

    def __init__(
        self,
        model: FloatModel,
        sites: GraphSites,
        *,
        rows: bool,
        expected_calls: int | None = None,
        providers: Sequence[str] = CPU,
    ) -> None:
        """Put probes on a copy of the graph and open it.

        Args:
            model: The float model.
            sites: Its sites, and the layers whose cost is to be known.
            rows: Whether sample rows are kept; ranges always are.
            expected_calls: Number of calls to come, if known: fewer rows are drawn from each.
            providers: ONNX Runtime execution providers, first choice first.

        Raises:
            UserError: ONNX Runtime cannot load the model.
        """
        self._model = model
        self._sites = sites
        self._providers = providers
        self._plain: ort.InferenceSession | None = None
        self._signature = model.signature
        self._model_hash = model.digest
        self._limits = {site.key: row_limit(site) if rows else 0 for site in sites.dense}
        probed = model.source.clone()
        DecomposeAttention(strict=False)(probed)  # as in the prepared graph: to measure inside
        self._prediction = model.signature.output.name
        writer = ProbeWriter(probed)
        if rows:
            writer.add_positions_input()
        self._rows_per_call = _rows_per_call(expected_calls) if rows else 0
        self._probes = {
            site.key: writer.add_site(site, min(self._limits[site.key], self._rows_per_call))
            for site in sites.dense
        }
        self._features = {
            site.tensor: writer.add_feature(site.tensor, site.channels) for site in sites.temporal
        }
        self._sizes = {layer.name: writer.add_size(layer.output) for layer in sites.all_layers}
        self._bounds = {
            name: bound
            for name, bound in measured_tensors(
                model.graph, model.prepared.opset_imports[""]
            ).items()
            if all(map(writer.has, bound.measured))
        }
        self._magnitude_probes = {
            name: writer.add_magnitude(name)
            for name in dict.fromkeys(
                name for bound in self._bounds.values() for name in bound.measured
            )
        }
        self._session = open_session(probed, model.data_folder, providers, bounded_memory=True)
        self._output_names = [output.name for output in self._session.get_outputs()]
        self._samples = 0
        self._keep = {
            site.key: " ".join(f"--keep {shlex.quote(layer.name)}" for layer in site.layers)
            for site in sites.dense
        }
        self._ranges: dict[str, dict[float, _Range]] = {name: {} for name in self._limits}
        self._fold_ranges: dict[str, dict[int, _Range]] = {name: {} for name in self._limits}
        self._rows: dict[str, dict[str, SampleRows]] = {name: {} for name in self._limits}
        self._temporal: dict[str, TemporalFeatures] = {}
        self._elements = dict.fromkeys(self._sizes, 0)
        self._magnitudes: dict[str, float] = {}
        self._input_ranges: dict[str, tuple[float, float]] = {}

    def hold_out(self, call: DenoiserCall) -> ReferenceCall:
        """Run the float model on one call without taking it into the statistics."""
        if has_empty_input(call):
            prediction = self._predict(call)
        else:
            feed = dict(call.inputs)
            if self._rows_per_call:
                feed[POSITIONS_INPUT] = np.zeros((self._rows_per_call, POSITION_COLUMNS))
            (prediction,) = run_session(self._session, [self._prediction], feed)
        return self.answered(call, prediction)

    def answered(self, call: DenoiserCall, prediction: AnyArray) -> ReferenceCall:
        """A call with the float model's answer."""
        timestep = timestep_of(call.inputs, self._signature)
        return ReferenceCall(call.inputs, prediction, timestep, call.step)

    def observe(self, call: DenoiserCall) -> AnyArray:
        """Run the float model on one call, reduce its statistics, return the prediction.

        A call with an empty input, such as no image tokens, is run but gives no statistics.

        Raises:
            UserError: an activation holds NaN or Inf.
        """
        if has_empty_input(call):
            return self._predict(call)
        timestep = timestep_of(call.inputs, self._signature)
        fold = call.trajectory % FOLDS
        feed = dict(call.inputs)
        priorities, positions = _draw_rows(call, self._rows_per_call)
        if self._rows_per_call:
            feed[POSITIONS_INPUT] = positions
        values = dict(zip(self._output_names, run_session(self._session, None, feed), strict=True))
        for tensor, probes in self._probes.items():
            self._reduce_ranges(tensor, probes, values, timestep, fold)
            self._reduce_rows(tensor, probes, values, timestep, fold, priorities)
        for tensor, output in self._features.items():
            self._reduce_feature(tensor, values[output], timestep, fold)
        for layer, output in self._sizes.items():
            self._elements[layer] += int(values[output])
        measured = {
            tensor: _magnitude(float(values[least]), float(values[greatest]))
            for tensor, (least, greatest) in self._magnitude_probes.items()
        }
        self._magnitudes = merge_magnitudes(
            self._magnitudes, {name: bound(measured) for name, bound in self._bounds.items()}
        )
        self._input_ranges = merge_ranges(
            self._input_ranges,
            {
                # A negative zero would depend on the order of the calls.
                name: (float(array.min()) + 0.0, float(array.max()) + 0.0)
                for name, array in call.inputs.items()
                if array.size
            },
        )
        self._samples += 1
        prediction: AnyArray = values[self._prediction]
        return prediction

    def _predict(self, call: DenoiserCall) -> AnyArray:
        """The prediction without probes, which cannot reduce what has no elements."""
        if self._plain is None:
            self._plain = open_session(
                self._model.source, self._model.data_folder, self._providers, bounded_memory=True
            )
        (prediction,) = run_session(self._plain, [self._prediction], call.inputs)
        return prediction

    def finish(self) -> ActivationStats:
        """The statistics of all calls so far; with empty axes where there was none."""
        steps = sorted({step for ranges in self._ranges.values() for step in ranges})
        sites = {}
        for site in self._sites.dense:
            tensor = site.key
            ranges = self._ranges[tensor]
            minimum, maximum = (
                np.array([ranges[step][end] for step in steps], np.float32) for end in (0, 1)
            )
            sites[tensor] = SiteStats(
                ranges=ChannelRanges(
                    minimum.reshape(-1, site.channels), maximum.reshape(-1, site.channels)
                ),
                fold_ranges=_by_fold(self._fold_ranges[tensor], site.channels),
                rows={
                    window.key: self._rows[tensor].get(window.key, _no_rows(site, window))
                    for window in site.windows
                    if self._rows_per_call
                },
                row_limit=self._limits[tensor],
            )
        return ActivationStats(
            model_hash=self._model_hash,
            samples=self._samples,
            timesteps=np.array(steps, np.float64),
            sites=sites,
            temporal={
                site.tensor: self._temporal.get(site.tensor, _no_features(site))
                for site in self._sites.temporal
            },
            output_elements={
                layer: total / max(self._samples, 1) for layer, total in self._elements.items()
            },
            magnitudes=self._magnitudes,
            input_ranges=self._input_ranges,
        )

    def _reduce_ranges(
        self,
        tensor: str,
        probes: SiteProbes,
        values: dict[str, AnyArray],
        timestep: float,
        fold: int,
    ) -> None:
        if not np.isfinite(values[probes.mean]):
            raise UserError(
                f"activation {tensor!r} holds NaN or Inf at timestep {timestep:g}; check that the "
                "float model is sound on these inputs (--prediction, --sampler, calibration "
                "files); where only masked rows are NaN, which the model drops, keep the layers "
                f"that read it float: {self._keep[tensor]}"
            )
        # A negative zero would depend on the order of the calls.
        found = values[probes.minimum] + np.float32(0), values[probes.maximum] + np.float32(0)
        self._ranges[tensor][timestep] = _wider(self._ranges[tensor].get(timestep), found)
        self._fold_ranges[tensor][fold] = _wider(self._fold_ranges[tensor].get(fold), found)

    def _reduce_rows(
        self,
        tensor: str,
        probes: SiteProbes,
        values: dict[str, AnyArray],
        timestep: float,
        fold: int,
        priorities: Float64Array,
    ) -> None:
        for key, output in probes.rows.items():
            rows = values[output]
            count = len(rows)
            sample = SampleRows(
                rows, priorities[:count], np.full(count, timestep), np.full(count, fold)
            )
            limit = self._limits[tensor]
            seen = self._rows[tensor].get(key)
            self._rows[tensor][key] = (
                sample.lowest(limit) if seen is None else seen.merged(sample, limit)
            )

    def _reduce_feature(self, tensor: str, rows: AnyArray, timestep: float, fold: int) -> None:
        distinct = np.unique(rows + rows.dtype.type(0), axis=0).astype(np.float32)
        count = len(distinct)
        feature = TemporalFeatures(
            distinct, np.full(count, timestep), np.full(count, 1 << fold, np.uint8)
        )
        seen = self._temporal.get(tensor)
        self._temporal[tensor] = feature if seen is None else merge_temporal(seen, feature)


def has_empty_input(call: DenoiserCall) -> bool:
    """Whether an input has no elements: such a call is run, but no statistic can hold it."""
    return any(not array.size for array in call.inputs.values())


def row_limit(site: Site) -> int:
    """How many sample rows are kept per receptive field of the site, between 64 and 512."""
    row_bytes = 4 * site.channels * max(window.taps for window in site.windows)
    return max(MIN_ROWS, min(MAX_ROWS, ROW_BYTES_PER_WINDOW // row_bytes))


def _wider(seen: _Range | None, found: _Range) -> _Range:
    if seen is None:
        return found
    return np.minimum(seen[0], found[0]), np.maximum(seen[1], found[1])


def _by_fold(ranges: Mapping[int, _Range], channels: int) -> ChannelRanges:
    found = ChannelRanges.unseen(FOLDS, channels)
    for fold, (low, high) in ranges.items():
        found.minimum[fold], found.maximum[fold] = low, high
    return found


def _no_rows(site: Site, window: Window) -> SampleRows:
    values = np.empty((0, site.channels, window.taps), np.float32)
    return SampleRows(values, np.empty(0), np.empty(0), np.empty(0, np.int64))


def _no_features(site: Site) -> TemporalFeatures:
    values = np.empty((0, site.channels), np.float32)
    return TemporalFeatures(values, np.empty(0), np.empty(0, np.uint8))


def _magnitude(least: float, greatest: float) -> float:
    """Largest magnitude of a tensor; 0 for an empty one, whose extremes are infinities."""
    negative = 0.0 if least < _MASK else -least
    return max(0.0, greatest, negative)


def _rows_per_call(expected_calls: int | None) -> int:
    """Enough that the reservoirs fill twice over, and at least 16."""
    if expected_calls is None:
        return 64
    return int(np.clip(1024 // max(expected_calls, 1), 16, 512))


def _draw_rows(call: DenoiserCall, count: int) -> tuple[Float64Array, Float64Array]:
    """Priorities ``[count]`` and positions ``[count, columns]``, seeded by the call's content."""
    digest = hashlib.sha256()
    for name in sorted(call.inputs):
        digest.update(name.encode())
        array = call.inputs[name]
        # Equal numbers draw equal rows, whichever float a model takes them in.
        wide = array.astype(np.float32) if array.dtype == np.float16 else array
        digest.update(np.ascontiguousarray(wide).tobytes())
    generator = np.random.default_rng(np.frombuffer(digest.digest(), np.uint32))
    positions = generator.random((count, POSITION_COLUMNS))
    return generator.random(count), positions
