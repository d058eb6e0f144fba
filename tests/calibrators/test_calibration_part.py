"""Parts of a run merge, in any grouping and order, into what one run gives: to the byte."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvd_trt.calibrators.calibrate import CalibrationOptions, calibrate, calibrate_share, complete
from qvd_trt.calibrators.run_calls import Share
from qvd_trt.calibrators.sources.calls import Denoise, DenoiserCall, Wanted, every_trajectory
from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.calibrators.statistics.activation_stats import ActivationStats, ReferenceCall
from qvd_trt.calibrators.statistics.calibration_part import CalibrationPart, CalibrationRun
from qvd_trt.calibrators.statistics.collector import StatisticsCollector
from qvd_trt.calibrators.statistics.kept_calls import HELD_OUT_CALLS, KeptCalls
from qvd_trt.calibrators.statistics.part_file import load_header, load_part, save_part
from qvd_trt.calibrators.statistics.stats_file import load_stats, save_stats
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.site_types import GraphSites
from tests.export.graphs import GraphBuilder
from tests.tools.recorded_calls import text_model

OPTIONS = CalibrationOptions(sweep_training_timesteps=True)


@dataclass(frozen=True)
class Calls:
    """Trajectories of given lengths, some of the calls equal to others in all but their number."""

    lengths: Sequence[int]
    seeds: int
    known: bool

    def describe(self) -> str:
        return "made up"

    def trajectories(self) -> int | None:
        return len(self.lengths) if self.known else None

    def calls(self, wanted: Wanted = every_trajectory) -> int | None:
        chosen = wanted if self.known else every_trajectory
        return sum(length for number, length in enumerate(self.lengths) if chosen(number))

    def settings(self) -> dict[str, str]:
        return {"--calib": str(self)}

    def needs_predictions(self) -> bool:
        return False

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        for number, length in enumerate(self.lengths):
            if self.known and not wanted(number):
                continue
            for step in range(length):
                random = np.random.default_rng((number + step) % self.seeds)
                sample = random.standard_normal((1, 16, 6, 6)).astype(np.float32)
                sample[0, 0] = -0.0 if number % 2 else 0.0
                text = random.standard_normal((1, 16)).astype(np.float32)
                time = np.array([100 * (step % 3)])
                call = {"sample": sample, "timestep": time, "text": text}
                denoise(DenoiserCall(call, number, step))


@cache
def subject() -> tuple[FloatModel, GraphSites]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.onnx"
        onnx.save(text_model(), path)
        model = open_model(path)
        assert model.digest  # which is read from the file, once
    return model, find_sites(model)


def content(stats: ActivationStats) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_stats(stats, Path(folder) / "s.npz")
        return (Path(folder) / "s.npz").read_bytes()


def merged(parts: list[CalibrationPart], data: st.DataObject) -> CalibrationPart:
    """Merge neighbours of a shuffled list until one is left."""
    parts = data.draw(st.permutations(parts))
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [parts[at].merged(parts[at + 1])]
    return parts[0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 4),
    st.data(),
)
def test_shards_merge_into_one_run(
    lengths: list[int], seeds: int, known: bool, count: int, data: st.DataObject
) -> None:
    model, sites = subject()
    source = Calls(lengths, seeds, known)
    whole = calibrate(model, sites, source, OPTIONS)
    parts = [
        calibrate_share(model, sites, source, OPTIONS, Share(Shard(index, count)))
        for index in range(1, count + 1)
    ]
    found = complete(model, sites, merged(parts, data), sweep=True)
    assert content(found) == content(whole)


@pytest.mark.parametrize("known", [True, False])
def test_calls_of_equal_content_in_any_order(known: bool) -> None:
    """Their rows have equal priorities, and zeros of either sign."""
    model, sites = subject()
    source = Calls([3, 4, 3, 4, 3], 2, known)
    whole = content(calibrate(model, sites, source, OPTIONS))
    parts = [
        calibrate_share(model, sites, source, OPTIONS, Share(Shard(index, 3)))
        for index in (1, 2, 3)
    ]
    for a, b, c in itertools.permutations(parts):
        for part in (a.merged(b).merged(c), a.merged(b.merged(c))):
            assert content(complete(model, sites, part, sweep=True)) == whole
            assert part.first is not None
            assert (part.first.trajectory, part.first.step) == (0, 0)


def test_zeros_of_either_sign_are_one(tmp_path: Path) -> None:
    """Which of them a minimum gives depends on the order of its operands."""
    net = GraphBuilder(seed=2)
    sample = net.input("sample", ["batch", 16, 6, 6])
    net.input("timestep", ["batch"])
    x = net.conv(sample, 16, 16, (1, 1), "first")
    minus_zero = net.constant("minus_zero", np.float32(-0.0))
    x = net.op("Mul", net.op("Abs", x, name="positive"), minus_zero, name="zeros")
    x = net.conv(x, 16, 16, (3, 3), "middle", pads=[1, 1, 1, 1])
    x = net.conv(x, 16, 16, (1, 1), "last")
    onnx.save(net.model({x: ["batch", 16, 6, 6]}), tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx")
    sites = find_sites(model)
    collector = StatisticsCollector(model, sites, rows=False)
    zeros = -np.zeros((1, 16, 6, 6), np.float32)
    collector.observe(DenoiserCall({"sample": zeros, "timestep": -np.zeros(1, np.float32)}, 0, 0))
    stats = collector.finish()
    ranges = stats.sites["zeros_out"].ranges
    for value in (ranges.minimum, ranges.maximum, list(stats.input_ranges.values())):
        np.testing.assert_array_equal(value, 0)
        assert not np.signbit(value).any()


def test_the_comparison_sees_a_missing_shard() -> None:
    model, sites = subject()
    source = Calls([3, 3, 3], 9, known=True)
    part = calibrate_share(model, sites, source, OPTIONS, Share(Shard(1, 3)))
    assert content(complete(model, sites, part, sweep=True)) != content(
        calibrate(model, sites, source, OPTIONS)
    )


def kept(place: int) -> ReferenceCall:
    return ReferenceCall({}, np.zeros(0, np.float32), float(place), place)


def one_stream(count: int) -> tuple[list[int], list[int]]:
    """Places that are kept of a stream of calls, and those that are chosen: by plain counting."""
    stride = 1
    while len(range(0, count, stride)) > 2 * HELD_OUT_CALLS:
        stride *= 2
    places = list(range(0, count, stride))
    if count and places[-1] != count - 1:
        places.append(count - 1)
    if len(places) <= HELD_OUT_CALLS:
        return places, places
    at = np.linspace(0, len(places) - 1, HELD_OUT_CALLS).round().astype(int)
    return places, [places[index] for index in at]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.integers(1, 5), st.data())
def test_kept_calls_of_parts_are_those_of_the_stream(
    count: int, parts: int, data: st.DataObject
) -> None:
    owners = data.draw(st.lists(st.integers(0, parts - 1), min_size=count, max_size=count))
    streams = [KeptCalls() for _ in range(parts)]
    for place, owner in enumerate(owners):
        streams[owner] = streams[owner].with_call(place, kept(place))
        assert len(streams[owner].calls) <= 2 * HELD_OUT_CALLS + 1
    found = KeptCalls()
    for part in data.draw(st.permutations(streams)):
        found = found.merged(part)
    places, chosen = one_stream(count)
    assert list(found.calls) == places
    assert [call.timestep for call in found.chosen()] == chosen


def test_a_part_survives_its_file(tmp_path: Path) -> None:
    model, sites = subject()
    source = Calls([2, 30], 40, known=True)
    run = CalibrationRun("made up", source.settings(), sweep=True)
    paths = []
    for index in (1, 2):
        part = calibrate_share(model, sites, source, OPTIONS, Share(Shard(index, 2)))
        paths.append(tmp_path / f"{index}.npz")
        save_part(run, Shard(index, 2), part, paths[-1])
        header = load_header(paths[-1], "--stats")
        assert (header.run, header.shard, header.finished) == (run, Shard(index, 2), True)
        assert header.model_hash == model.digest
    one, other = (load_part(path, "--stats") for path in paths)
    found = complete(model, sites, one.merged(other), sweep=True)
    assert content(found) == content(calibrate(model, sites, source, OPTIONS))
    with pytest.raises(UserError, match="is shard 2/2 of a run"):
        load_stats(paths[1])
