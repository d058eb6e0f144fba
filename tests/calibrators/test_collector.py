"""Statistics reduced inside the graph, against the same statistics computed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate
from qvd_trt.calibrators.sources.calls import (
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, SampleRows
from qvd_trt.calibrators.statistics.collector import (
    MAX_ROWS,
    MIN_ROWS,
    StatisticsCollector,
    row_limit,
)
from qvd_trt.calibrators.statistics.stats_file import check_belongs
from qvd_trt.calibrators.temporal.timestep_sweep import TemporalSweep, training_timesteps
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.model_file import open_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.site_types import GraphSites, Site, Window
from qvd_trt.export.progress import SILENT
from tests.export.calibrated import Calibrated, noise_feeds
from tests.export.graphs import GraphBuilder

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A float model and its sites."""

    model: FloatModel
    sites: GraphSites

    @property
    def path(self) -> Path:
        return self.model.path

    @property
    def signature(self) -> ModelSignature:
        return self.model.signature

    def collector(
        self, *, rows: bool = True, expected_calls: int | None = None
    ) -> StatisticsCollector:
        return StatisticsCollector(self.model, self.sites, rows=rows, expected_calls=expected_calls)

    def collect(self, calls: Sequence[DenoiserCall], **options: Any) -> ActivationStats:
        collector = self.collector(**options)
        for call in calls:
            collector.observe(call)
        return collector.finish()

    def activations(self, tensors: Sequence[str], call: DenoiserCall) -> dict[str, Array]:
        """What ONNX Runtime computes for these tensors in the model without probes."""
        proto = onnx.load(self.path)
        inputs = {value.name for value in proto.graph.input}
        wanted = [tensor for tensor in tensors if tensor not in inputs]
        del proto.graph.output[:]
        proto.graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
        )
        values = open_session(ir.from_proto(proto)).run(wanted, dict(call.inputs))
        found = dict(zip(wanted, values, strict=True))
        return {**found, **{name: call.inputs[name] for name in tensors if name in inputs}}


def windows_net() -> onnx.ModelProto:
    """Convolutions of every window and linear layers of every rank on one narrow path."""
    net = GraphBuilder(seed=3)
    sample = net.input("sample", ["batch", 4, 9, 7])
    time = net.input("timestep", ["batch"])
    column = net.op("Unsqueeze", time, net.constant("last", np.array([1])), name="column")
    waves = net.op(
        "Sin", net.op("Mul", column, net.weight("f", 1, 16), name="angles"), name="waves"
    )
    x = net.gemm(waves, 16, 16, "time_1")
    x = net.gemm(net.op("Relu", x, name="act_1"), 16, 16, "time_2")
    time_act = net.op("Relu", x, name="act_2")
    x = net.conv(sample, 4, 16, (1, 1), "first")
    for index in range(2):
        bias = net.gemm(time_act, 16, 16, f"proj_{index}")
        bias = net.op(
            "Unsqueeze", bias, net.constant(f"a{index}", np.array([2, 3])), name=f"t{index}"
        )
        x = net.op("Add", x, bias, name=f"timed_{index}")
    strided = net.conv(x, 16, 16, (3, 2), "strided", pads=[1, 0, 2, 1], strides=[2, 1])
    dilated = net.conv(x, 16, 16, (3, 3), "dilated", pads=[0, 3, 4, 2], dilations=[2, 1])
    wide = net.conv(dilated, 16, 32, (3, 3), "wide", pads=[1, 1, 1, 1])
    halves = net.conv(wide, 32, 32, (3, 3), "halves", group=2, strides=[2, 2])
    flat = [
        net.op("ReduceMean", value, net.constant(f"axes_{index}", np.array([2, 3])),
               name=f"mean_{index}", keepdims=1)
        for index, value in enumerate((strided, halves))
    ]  # fmt: skip
    x = net.op("Add", x, flat[0], name="joined")
    extra = net.conv(flat[1], 32, 16, (1, 1), "pointwise")
    x = net.op("Add", x, extra, name="joined_again")
    video = net.reshape(x, [0, 16, 3, 3, 7], "video")
    video = net.conv(video, 16, 16, (3, 1, 1), "over_time", pads=[1, 0, 0, 1, 0, 0])
    x = net.reshape(video, [0, 16, 63], "pixels")
    x = net.op("Transpose", x, name="tokens", perm=[0, 2, 1])
    x = net.linear(x, 16, 16, "rank_3")
    x = net.gemm(net.reshape(x, [-1, 16], "rows"), 16, 16, "gemm")
    x = net.linear(net.op("Relu", x, name="positive"), 16, 4, "last")
    x = net.reshape(x, [-1, 9, 7, 4], "image")
    x = net.op("Transpose", x, name="prediction", perm=[0, 3, 1, 2])
    return net.model({x: ["batch", 4, 9, 7]})


def subject_of(model: onnx.ModelProto, path: Path, **save: Any) -> Subject:
    onnx.save(model, path, **save)
    opened = open_model(path)
    return Subject(opened, find_sites(opened))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(windows_net(), tmp_path_factory.mktemp("collect") / "windows.onnx")


@pytest.fixture(scope="module")
def calls(subject: Subject) -> list[DenoiserCall]:
    """Six calls at three timesteps, of batch 2 and 3."""
    return [
        DenoiserCall(noise_feeds(subject.signature, seed, {"batch": 2 + seed % 2}), 0, seed)
        for seed in range(6)
    ]


@pytest.fixture(scope="module")
def stats(subject: Subject, calls: list[DenoiserCall]) -> ActivationStats:
    return subject.collect(calls)


@pytest.fixture(scope="module")
def seen(subject: Subject, calls: list[DenoiserCall]) -> dict[str, list[tuple[float, Array]]]:
    """Every activation of every call with its timestep, by tensor."""
    tensors = [site.tensor for site in (*subject.sites.dense, *subject.sites.temporal)]
    found: dict[str, list[tuple[float, Array]]] = {tensor: [] for tensor in tensors}
    for call in calls:
        timestep = float(call.inputs["timestep"][0])
        for tensor, value in subject.activations(tensors, call).items():
            found[tensor].append((timestep, value))
    return found


def test_every_window_is_there(subject: Subject) -> None:
    """What the other tests of this file rely on."""
    layers = [layer for site in subject.sites.dense for layer in site.layers]
    windows = {layer.name: layer.window for layer in layers}
    assert len(windows) == 8
    assert windows["strided"].strides == (2, 1)
    assert windows["strided"].pads_begin != windows["strided"].pads_end
    assert windows["dilated"].dilations == (2, 1)
    assert windows["over_time"].kernel == (3, 1, 1)
    assert windows["rank_3"] == windows["gemm"] == Window()
    assert {layer.groups for layer in layers} == {1, 2}
    assert [len(site.windows) for site in subject.sites.dense] == [2, 1, 1, 1, 1, 1, 1]


def test_ranges_are_those_of_each_timestep(
    subject: Subject, stats: ActivationStats, seen: dict[str, list[tuple[float, Array]]]
) -> None:
    np.testing.assert_array_equal(stats.timesteps, [101, 501, 901])
    assert stats.samples == 6
    for site in subject.sites.dense:
        ranges = stats.sites[site.tensor].ranges
        assert ranges.minimum.shape == ranges.maximum.shape == (3, site.channels)
        for index, timestep in enumerate(stats.timesteps):
            rows = np.concatenate(
                [channel_rows(site, value) for step, value in seen[site.tensor] if step == timestep]
            )
            np.testing.assert_allclose(
                ranges.minimum[index], rows.min(axis=0), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                ranges.maximum[index], rows.max(axis=0), rtol=1e-5, atol=1e-6
            )


def test_every_sampled_row_is_one_that_the_layer_reads(
    subject: Subject, stats: ActivationStats, seen: dict[str, list[tuple[float, Array]]]
) -> None:
    padded = 0
    for site in subject.sites.dense:
        found = stats.sites[site.tensor]
        assert found.rows.keys() == {window.key for window in site.windows}
        for window in site.windows:
            sample = found.rows[window.key]
            possible = {
                step: np.concatenate(
                    [patches(site, window, v) for s, v in seen[site.tensor] if s == step]
                )
                for step in stats.timesteps
            }
            assert sample.values.shape[1:] == (site.channels, max(window.taps, 1))
            assert len(sample.values) > 16
            for row, timestep in zip(sample.values, sample.timesteps, strict=True):
                distance = np.abs(possible[timestep] - row).max(axis=(1, 2)).min()
                assert distance < 1e-5
            if window.padded:
                padded += int((sample.values == 0).all(axis=1).any(axis=1).sum())
    assert padded > 10  # zeros of the padding were among them


def test_rows_come_from_everywhere(
    subject: Subject, stats: ActivationStats, seen: dict[str, list[tuple[float, Array]]]
) -> None:
    for site in subject.sites.dense:
        for window in site.windows:
            sample = stats.sites[site.tensor].rows[window.key]
            assert set(sample.timesteps) == set(stats.timesteps)
            possible = sum(len(patches(site, window, value)) for _, value in seen[site.tensor])
            distinct = len(np.unique(sample.values, axis=0))
            assert distinct > 0.4 * min(possible, len(sample.values))


def test_rows_are_sorted_by_priority(subject: Subject, calls: list[DenoiserCall]) -> None:
    for count in (1, 2):
        for site in subject.collect(calls[:count]).sites.values():
            for sample in site.rows.values():
                assert (np.diff(sample.priorities) > 0).all()


def test_temporal_features_are_whole(
    subject: Subject, stats: ActivationStats, seen: dict[str, list[tuple[float, Array]]]
) -> None:
    (site,) = subject.sites.temporal
    assert site.tensor == "act_2_out"
    feature = stats.temporal[site.tensor]
    np.testing.assert_array_equal(feature.timesteps, [101, 501, 901])
    for timestep, row in zip(feature.timesteps, feature.values, strict=True):
        for step, value in seen[site.tensor]:
            if step == timestep:
                np.testing.assert_allclose(value, np.broadcast_to(row, value.shape), rtol=1e-5)


def test_output_elements(subject: Subject, stats: ActivationStats) -> None:
    found = stats.output_elements
    assert found.keys() == {layer.name for layer in subject.sites.all_layers}
    assert found["first"] == 2.5 * 16 * 9 * 7  # half of the calls are of batch 2, half of 3
    assert found["strided"] == 2.5 * 16 * 5 * 7
    assert found["gemm"] == 2.5 * 63 * 16
    assert found["proj_0"] == 2.5 * 16


class TestOrder:
    def test_permuted_calls_give_identical_statistics(
        self, subject: Subject, calls: list[DenoiserCall], stats: ActivationStats
    ) -> None:
        for order in list(itertools.permutations(range(6)))[100:700:299]:
            assert_identical(subject.collect([calls[index] for index in order]), stats)

    def test_merged_parts_are_one_pass(
        self, subject: Subject, calls: list[DenoiserCall], stats: ActivationStats
    ) -> None:
        parts = [
            subject.collect(calls[:2]),
            subject.collect(calls[2:3]),
            subject.collect(calls[3:]),
        ]
        assert_identical(parts[0].merged(parts[1]).merged(parts[2]), stats)
        assert_identical(parts[2].merged(parts[0].merged(parts[1])), stats)

    def test_merged_reservoirs_that_overflow(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        """With 512 rows a call every reservoir is cut, by the same choice in any order."""
        whole = subject.collect(calls, expected_calls=2)
        first = subject.collect(calls[:3], expected_calls=2)
        rest = subject.collect(calls[3:], expected_calls=2)
        sizes = {len(s.values) for site in whole.sites.values() for s in site.rows.values()}
        assert sizes == {512}
        assert_identical(first.merged(rest), whole)
        assert_identical(rest.merged(first), whole)

    def test_other_calls_give_other_statistics(
        self, subject: Subject, calls: list[DenoiserCall], stats: ActivationStats
    ) -> None:
        """Negative control."""
        with pytest.raises(AssertionError):
            assert_identical(subject.collect([*calls[:5], calls[0]]), stats)


class TestPrediction:
    @pytest.mark.parametrize("rows", [True, False])
    def test_is_that_of_the_model_itself(
        self, subject: Subject, calls: list[DenoiserCall], rows: bool
    ) -> None:
        collector = subject.collector(rows=rows)
        session = open_session(subject.path)
        for call in calls[:3]:
            expected = session.run(None, dict(call.inputs))[0]
            np.testing.assert_array_equal(collector.observe(call), expected)
            np.testing.assert_array_equal(collector.hold_out(call).prediction, expected)

    def test_held_out_calls_leave_no_trace(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        collector = subject.collector()
        for call in calls[:3]:
            collector.observe(call)
        held = collector.hold_out(calls[3])
        assert held.timestep == calls[3].inputs["timestep"][0]
        assert held.inputs is calls[3].inputs
        assert_identical(collector.finish(), subject.collect(calls[:3]))

    def test_no_rows_when_none_are_asked_for(
        self, subject: Subject, calls: list[DenoiserCall], stats: ActivationStats
    ) -> None:
        found = subject.collect(calls, rows=False)
        assert all(site.rows == {} for site in found.sites.values())
        for tensor, site in found.sites.items():
            np.testing.assert_array_equal(site.ranges.minimum, stats.sites[tensor].ranges.minimum)


class TestUnsoundModels:
    def net(self, op: str) -> onnx.ModelProto:
        net = GraphBuilder()
        x = net.input("sample", ["batch", 16, 4, 4])
        net.input("timestep", ["batch"])
        x = net.conv(x, 16, 16, (1, 1), "first", bias=False)
        x = net.op(op, x, name="unsound")
        x = net.conv(x, 16, 16, (1, 1), "middle")
        return net.model({net.conv(x, 16, 16, (1, 1), "last"): ["batch", 16, 4, 4]})

    @pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
    def test_nan_and_inf_are_refused(self, op: str, tmp_path: Path) -> None:
        """Log and Sqrt of negative values are NaN, the reciprocal of zero is Inf."""
        subject = subject_of(self.net(op), tmp_path / "model.onnx")
        sample = np.random.default_rng(0).normal(size=(1, 16, 4, 4)).astype(np.float32)
        if op == "Reciprocal":
            sample[0, :, :2] = 0  # the first layer has no bias
        call = DenoiserCall({"sample": sample, "timestep": np.full(1, 741, np.float32)}, 0, 0)
        with pytest.raises(UserError, match=r"'unsound_out' holds NaN or Inf at timestep 741"):
            subject.collector().observe(call)

    def test_sound_values_pass(self, tmp_path: Path) -> None:
        subject = subject_of(self.net("Tanh"), tmp_path / "model.onnx")
        subject.collect([DenoiserCall(noise_feeds(subject.signature, 0), 0, 0)])

    def test_no_call(self, subject: Subject) -> None:
        with pytest.raises(UserError, match="no calibration call"):
            calibrate(subject.model, subject.sites, ListedCalls([]), CalibrationOptions())

    def test_statistics_of_no_call_are_neutral_in_a_merge(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        stats, empty = subject.collect(calls), subject.collector().finish()
        for merged in (stats.merged(empty), empty.merged(stats)):
            assert_identical(merged, stats)
            assert merged.input_ranges == stats.input_ranges
            assert merged.magnitudes == stats.magnitudes


def test_model_with_external_data(
    subject: Subject, calls: list[DenoiserCall], stats: ActivationStats, tmp_path: Path
) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(
        onnx.load(subject.path),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=256,
    )
    assert path.stat().st_size < (tmp_path / "weights.bin").stat().st_size
    external = open_model(path)
    again = replace(subject, model=external).collect(calls)
    assert_identical(replace(again, model_hash=stats.model_hash), stats)
    sweep = TemporalSweep(external, subject.sites.temporal)
    found = sweep.run(calls[0].inputs, np.array([501.0]))["act_2_out"]
    np.testing.assert_array_equal(found.values, stats.temporal["act_2_out"].values[1:2])


@pytest.mark.parametrize("opset", [17, 20])
def test_old_and_new_reductions(opset: int, tmp_path: Path) -> None:
    """ReduceMin and ReduceMax take their axes as attributes before opset 18."""
    net = GraphBuilder(opset=opset)
    x = net.input("sample", ["batch", 16, 4, 4])
    net.input("timestep", ["batch"])
    x = net.conv(x, 16, 16, (1, 1), "first")
    x = net.conv(x, 16, 16, (3, 3), "middle")
    model = net.model({net.conv(x, 16, 16, (1, 1), "last"): ["batch", 16, 2, 2]})
    subject = subject_of(model, tmp_path / "model.onnx")
    call = DenoiserCall(noise_feeds(subject.signature, 0), 0, 0)
    found = subject.collect([call]).sites["first_out"].ranges
    value = subject.activations(["first_out"], call)["first_out"]
    np.testing.assert_array_equal(found.maximum[0], value.max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(found.minimum[0], value.min(axis=(0, 2, 3)))


class TestRowLimit:
    def test_bounds(self, subject: Subject) -> None:
        site = subject.sites.dense[0]
        assert row_limit(site) == MAX_ROWS
        assert row_limit(replace(site, channels=10_000_000)) == MIN_ROWS
        limit = row_limit(replace(site, channels=1000))
        taps = max(window.taps for window in site.windows)
        assert MIN_ROWS < limit < MAX_ROWS
        assert limit * 4 * 1000 * taps <= 4 << 20

    def test_rows_are_bounded(self, subject: Subject, calls: list[DenoiserCall]) -> None:
        stats = subject.collect(calls, expected_calls=2)
        held = sum(s.values.nbytes for site in stats.sites.values() for s in site.rows.values())
        bound = sum(
            4 * site.channels * window.taps * row_limit(site)
            for site in subject.sites.dense
            for window in site.windows
        )
        assert 0 < held <= bound


@dataclass
class ListedCalls:
    """A source of given calls; remembers what the denoiser returned."""

    listed: Sequence[DenoiserCall]
    number_of_trajectories: int | None = None
    predictions: list[Array] = field(default_factory=list)

    def describe(self) -> str:
        return "listed"

    def trajectories(self) -> int | None:
        return self.number_of_trajectories

    def settings(self) -> dict[str, str]:
        return {}

    def needs_predictions(self) -> bool:
        return False

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        return len(self.listed)

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        self.predictions += [denoise(call) for call in self.listed]


class TestCalibrate:
    def run(self, subject: Subject, source: ListedCalls, *, sweep: bool = False) -> ActivationStats:
        options = CalibrationOptions(sweep_training_timesteps=sweep)
        return calibrate(subject.model, subject.sites, source, options, SILENT)

    def test_every_fifth_call_of_one_trajectory_is_held_out(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        source = ListedCalls(calls, 1)
        stats = self.run(subject, source)
        assert [call.inputs for call in stats.held_out] == [calls[2].inputs]
        assert stats.samples == 5
        others = [call for call in calls if call is not calls[2]]
        expected = subject.collect(others, expected_calls=6)
        assert_identical(replace(stats, held_out=()), expected)
        np.testing.assert_array_equal(stats.held_out[0].prediction, source.predictions[2])

    def test_the_last_of_several_trajectories_is_held_out(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        several = [replace(call, trajectory=index // 2) for index, call in enumerate(calls)]
        stats = self.run(subject, ListedCalls(several, 3))
        assert [call.inputs for call in stats.held_out] == [c.inputs for c in calls[4:]]
        assert [call.inputs for call in stats.seen] == [calls[0].inputs]
        found = replace(stats, held_out=(), seen=())
        assert_identical(found, subject.collect(several[:4], expected_calls=6))
        folds = stats.sites[subject.sites.dense[0].key].fold_ranges.called()
        assert folds.tolist() == [0, 1]

    def test_a_single_call_is_not_held_out(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        stats = self.run(subject, ListedCalls([calls[2]], 1))
        assert stats.samples == 1
        assert stats.held_out == ()

    def test_held_out_calls_are_bounded_and_spread(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        many = [replace(calls[index % 6], step=index, trajectory=index // 3) for index in range(23)]
        many = [replace(call, trajectory=min(call.trajectory, 1)) for call in many]
        stats = self.run(subject, ListedCalls(many, 2))
        assert len(stats.held_out) == 8
        assert stats.held_out[0].inputs is many[3].inputs
        assert stats.held_out[-1].inputs is many[22].inputs
        assert len(stats.seen) == 2

    def test_seen_calls_are_at_the_held_out_timesteps(
        self, subject: Subject, calls: list[DenoiserCall]
    ) -> None:
        many = [
            replace(calls[step % 6], step=step, trajectory=trajectory)
            for trajectory in range(3)
            for step in range(40)
        ]
        stats = self.run(subject, ListedCalls(many, 3))
        held_out = [call.timestep for call in stats.held_out]
        assert len(held_out) == 8
        assert [call.timestep for call in stats.seen] == held_out[::2]

    @pytest.mark.parametrize("count", [1, 6])
    def test_sweep_covers_all_training_timesteps(
        self, subject: Subject, calls: list[DenoiserCall], count: int
    ) -> None:
        plain = self.run(subject, ListedCalls(calls[:count], 1))
        stats = self.run(subject, ListedCalls(calls[:count], 1), sweep=True)
        feature = stats.temporal["act_2_out"]
        np.testing.assert_array_equal(feature.timesteps, np.arange(1000))
        for timestep, row in zip(
            plain.temporal["act_2_out"].timesteps, plain.temporal["act_2_out"].values, strict=True
        ):
            np.testing.assert_allclose(feature.values[int(timestep)], row, rtol=1e-5, atol=1e-6)

    def test_statistics_of_another_model(self, subject: Subject, stats: ActivationStats) -> None:
        check_belongs(stats.model_hash, subject.model, Path("a.npz"))
        with pytest.raises(UserError, match=r"a\.npz belongs to another model"):
            check_belongs("sha256:other", subject.model, Path("a.npz"))


class TestTemporalSweep:
    def test_equals_the_whole_model(self, calibrated: Callable[[str], Calibrated]) -> None:
        model = calibrated("animatediff")
        (site,) = model.sites.temporal
        subject = Subject(model.model, model.sites)
        steps = np.array([0.0, 17.0, 500.0, 999.0])
        template = model.feeds()
        sweep = TemporalSweep(model.model, [site])
        found = sweep.run(template, steps)[site.tensor]
        np.testing.assert_array_equal(found.timesteps, steps)
        for index, step in enumerate(steps):
            feeds = noise_feeds(model.signature, 5, timestep=step)
            value = subject.activations([site.tensor], DenoiserCall(feeds, 0, 0))[site.tensor]
            expected = np.unique(value.reshape(-1, site.channels), axis=0)
            assert len(expected) == 1
            np.testing.assert_allclose(found.values[index], expected[0], rtol=1e-6, atol=1e-7)
        assert np.abs(np.diff(found.values, axis=0)).max() > 1e-3

    def test_does_not_run_the_denoiser(
        self, calibrated: Callable[[str], Calibrated], monkeypatch: pytest.MonkeyPatch
    ) -> None:

        from qvd_trt.calibrators.temporal import timestep_sweep

        model = calibrated("animatediff")
        opened: list[ir.Model] = []

        def spy(part: ir.Model, *args: Any, **options: Any) -> Any:
            opened.append(part)
            return open_session(part, *args, **options)

        monkeypatch.setattr(timestep_sweep, "open_session", spy)
        TemporalSweep(model.model, model.sites.temporal)
        (part,) = opened
        assert len(part.graph) < 0.1 * len(model.model.graph)
        assert not any(node.op_type == "Conv" for node in part.graph)

    def test_training_timesteps(self) -> None:
        np.testing.assert_array_equal(training_timesteps(np.array([1.0, 901])), np.arange(1000))
        np.testing.assert_array_equal(training_timesteps(np.array([1500.5])), np.arange(1502))
        sigmas = training_timesteps(np.array([-1.5, 0.2, 1.6]))
        assert (sigmas[0], sigmas[-1], len(sigmas)) == (-1.5, 1.6, 1000)


def test_architectures_are_probed_without_a_change(
    calibrated: Callable[[str], Calibrated],
) -> None:
    """The prediction of every exported architecture, with probes on all of its sites."""
    for name in ("latte", "wan"):
        model = calibrated(name)
        subject = Subject(model.model, model.sites)
        call = DenoiserCall(model.feeds(), 0, 0)
        expected = open_session(model.path).run(None, dict(call.inputs))[0]
        found = subject.collector().observe(call)
        np.testing.assert_array_equal(found, expected)


def channel_rows(site: Site, value: Array) -> Array:
    """The activation as rows of channels."""
    axis = site.channel_axis
    rows: Array = np.moveaxis(value, axis, -1).reshape(-1, site.channels)
    return rows


def patches(site: Site, window: Window, value: Array) -> Array:
    """All that a layer of this window reads, `[positions, C, taps]`, by plain loops."""
    if not window.kernel:
        return channel_rows(site, value)[:, :, None]
    padding = [(0, 0), (0, 0), *zip(window.pads_begin, window.pads_end, strict=True)]
    padded = np.pad(value, padding)
    reach = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    starts = [
        range(0, extent - span + 1, stride)
        for extent, span, stride in zip(padded.shape[2:], reach, window.strides, strict=True)
    ]
    found = []
    for start in itertools.product(*starts):
        patch = padded
        for axis, first in enumerate(start):
            taps = first + np.arange(0, reach[axis], window.dilations[axis])
            patch = patch.take(taps, axis=2 + axis)
        found.append(patch.reshape(*patch.shape[:2], -1))
    return np.concatenate(found)


def assert_identical(found: ActivationStats, expected: ActivationStats) -> None:
    assert found.samples == expected.samples
    np.testing.assert_array_equal(found.timesteps, expected.timesteps)
    assert found.sites.keys() == expected.sites.keys()
    for tensor, site in expected.sites.items():
        other = found.sites[tensor]
        np.testing.assert_array_equal(other.ranges.minimum, site.ranges.minimum)
        np.testing.assert_array_equal(other.ranges.maximum, site.ranges.maximum)
        assert other.rows.keys() == site.rows.keys()
        for key, sample in site.rows.items():
            assert_same_rows(other.rows[key], sample)
    assert_same_features(found.temporal, expected.temporal)
    assert found.output_elements == pytest.approx(expected.output_elements)


def assert_same_rows(found: SampleRows, expected: SampleRows) -> None:
    np.testing.assert_array_equal(found.priorities, expected.priorities)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.timesteps, expected.timesteps)


def assert_same_features(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for tensor, feature in expected.items():
        np.testing.assert_array_equal(found[tensor].values, feature.values)
        np.testing.assert_array_equal(found[tensor].timesteps, feature.timesteps)
