"""Runs the float model in ONNX Runtime and streams statistics of its activations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from qvd_trt.calibrators.arrays import AnyArray, Float64Array
from qvd_trt.calibrators.collect.probes import (
    POSITION_COLUMNS,
    POSITIONS_INPUT,
    ProbeWriter,
    SiteProbes,
)
from qvd_trt.calibrators.collect.request import StatisticsRequest, row_limit
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.ort_session import open_session, run_session
from qvd_trt.calibrators.sites import Layer, Site
from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.signature import ModelSignature
from qvd_trt.calibrators.stats import (
    ActivationStats,
    ChannelRanges,
    HeldOutCall,
    SampleRows,
    SiteStats,
    TemporalFeatures,
    merge_temporal,
)


class StatisticsCollector:
    """Reduces every site inside the graph; no full activation leaves the session.

    Memory does not grow with the number of calls: ranges are kept per distinct timestep, sample
    rows in bounded reservoirs whose random choice depends on each call's content and not on the
    order of the calls.
    """

    def __init__(
        self,
        model: Path,
        model_hash: str,
        signature: ModelSignature,
        dense: Sequence[Site],
        temporal: Sequence[Site],
        all_layers: Sequence[Layer],
        request: StatisticsRequest,
        *,
        expected_calls: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._signature = signature
        self._model_hash = model_hash
        self._dense = {site.tensor: site for site in dense}
        self._limits = {site.tensor: row_limit(site) if request.rows else 0 for site in dense}
        proto = onnx.load(model, load_external_data=False)
        self._prediction = proto.graph.output[0].name
        writer = ProbeWriter(proto)
        if request.rows:
            writer.add_positions_input()
        self._rows_per_call = _rows_per_call(expected_calls) if request.rows else 0
        self._probes = {
            site.tensor: writer.add_site(site, min(self._limits[site.tensor], self._rows_per_call))
            for site in dense
        }
        self._features = {
            site.tensor: writer.add_feature(site.tensor, site.channels) for site in temporal
        }
        self._sizes = {layer.name: writer.add_size(layer.output) for layer in all_layers}
        self._session = open_session(proto, model.parent, providers, bounded_memory=True)
        self._output_names = [output.name for output in self._session.get_outputs()]
        self._samples = 0
        self._ranges: dict[str, dict[float, tuple[AnyArray, AnyArray]]] = {
            name: {} for name in self._dense
        }
        self._rows: dict[str, dict[str, SampleRows]] = {name: {} for name in self._dense}
        self._temporal: dict[str, TemporalFeatures] = {}
        self._elements = dict.fromkeys(self._sizes, 0)

    def hold_out(self, call: DenoiserCall) -> HeldOutCall:
        """Run the float model on one call without taking it into the statistics."""
        feed = dict(call.inputs)
        if self._rows_per_call:
            feed[POSITIONS_INPUT] = np.zeros((self._rows_per_call, POSITION_COLUMNS))
        (prediction,) = run_session(self._session, [self._prediction], feed)
        return HeldOutCall(call.inputs, prediction, timestep_of(call, self._signature))

    def observe(self, call: DenoiserCall) -> AnyArray:
        """Run the float model on one call, reduce its statistics, return the prediction.

        Raises:
            UserError: an activation holds NaN or Inf.
        """
        timestep = timestep_of(call, self._signature)
        feed = dict(call.inputs)
        priorities, positions = _draw_rows(call, self._rows_per_call)
        if self._rows_per_call:
            feed[POSITIONS_INPUT] = positions
        values = dict(zip(self._output_names, run_session(self._session, None, feed), strict=True))
        for tensor, probes in self._probes.items():
            self._reduce_ranges(tensor, probes, values, timestep)
            self._reduce_rows(tensor, probes, values, timestep, priorities)
        for tensor, output in self._features.items():
            self._reduce_feature(tensor, values[output], timestep)
        for layer, output in self._sizes.items():
            self._elements[layer] += int(values[output])
        self._samples += 1
        prediction: AnyArray = values[self._prediction]
        return prediction

    def finish(self) -> ActivationStats:
        """The statistics of all calls so far.

        Raises:
            UserError: there was no call.
        """
        if not self._samples:
            raise UserError("no calibration call was made; give --calib at least one sample")
        steps = sorted({step for ranges in self._ranges.values() for step in ranges})
        sites = {}
        for tensor, ranges in self._ranges.items():
            sites[tensor] = SiteStats(
                ranges=ChannelRanges(
                    minimum=np.stack([ranges[step][0] for step in steps]),
                    maximum=np.stack([ranges[step][1] for step in steps]),
                ),
                rows=self._rows[tensor],
                row_limit=self._limits[tensor],
            )
        return ActivationStats(
            model_hash=self._model_hash,
            samples=self._samples,
            timesteps=np.array(steps, np.float64),
            sites=sites,
            temporal=dict(self._temporal),
            output_elements={
                layer: total / self._samples for layer, total in self._elements.items()
            },
        )

    def _reduce_ranges(
        self, tensor: str, probes: SiteProbes, values: dict[str, AnyArray], timestep: float
    ) -> None:
        if not np.isfinite(values[probes.mean]):
            raise UserError(
                f"activation {tensor!r} holds NaN or Inf at timestep {timestep:g}; check that the "
                "float model is sound on these inputs (--prediction, --sampler, calibration files)"
            )
        minimum, maximum = values[probes.minimum], values[probes.maximum]
        seen = self._ranges[tensor].get(timestep)
        if seen is not None:
            minimum, maximum = np.minimum(minimum, seen[0]), np.maximum(maximum, seen[1])
        self._ranges[tensor][timestep] = (minimum, maximum)

    def _reduce_rows(
        self,
        tensor: str,
        probes: SiteProbes,
        values: dict[str, AnyArray],
        timestep: float,
        priorities: Float64Array,
    ) -> None:
        for key, output in probes.rows.items():
            rows = values[output]
            count = len(rows)
            sample = SampleRows(rows, priorities[:count], np.full(count, timestep))
            limit = self._limits[tensor]
            seen = self._rows[tensor].get(key)
            self._rows[tensor][key] = (
                sample.lowest(limit) if seen is None else seen.merged(sample, limit)
            )

    def _reduce_feature(self, tensor: str, rows: AnyArray, timestep: float) -> None:
        distinct = np.unique(rows, axis=0).astype(np.float32)
        feature = TemporalFeatures(distinct, np.full(len(distinct), timestep))
        seen = self._temporal.get(tensor)
        self._temporal[tensor] = feature if seen is None else merge_temporal(seen, feature)


def timestep_of(call: DenoiserCall, signature: ModelSignature) -> float:
    """The call's timestep; of several (one per sample or frame), the first."""
    return float(np.ravel(call.inputs[signature.timestep])[0])


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
        digest.update(np.ascontiguousarray(call.inputs[name]).tobytes())
    generator = np.random.default_rng(np.frombuffer(digest.digest(), np.uint32))
    positions = generator.random((count, POSITION_COLUMNS))
    return generator.random(count), positions
