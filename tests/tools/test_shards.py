"""Shards of a calibration, merged in any order, are one run: the same files to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvd_trt.calibrators.sources.shard import Shard
from qvd_trt.export.errors import UserError
from tests.tools.command import Command
from tests.tools.recorded_calls import write_calls

SAMPLED = ("--sampler", "flow", "--steps", "3", "--samples", "7", "--shapes", "sample:1x16x6x6")
ONE = ("--sampler", "flow", "--steps", "11", "--samples", "1", "--shapes", "sample:1x16x6x6")
SOURCES = {
    "sampled": SAMPLED,
    "sampled, timesteps of training": (*SAMPLED, "--temporal-timesteps", "training"),
    "one sample": ONE,
    "files": ("--calib", "recorded"),
    "files, timesteps of the calls": ("--calib", "recorded", "--temporal-timesteps", "calibration"),
    "several paths": ("--calib", "more.npz", "recorded"),
    "JSON": ("--calib", "calls.json"),
    "script of dicts": ("--calib", "dicts.py"),
    "script of lists": ("--calib", "lists.py"),
    "files and a script": ("--calib", "recorded", "dicts.py", "more.npz"),
}


@pytest.fixture
def calls(command: Command) -> Command:
    write_calls(command.folder)
    return command


def shards(command: Command, count: int, *options: str) -> list[str]:
    """Calibrate all shards; returns their files."""
    names = []
    for index in range(1, count + 1):
        name = f"shard{index}of{count}.npz"
        result = command.done("text.onnx", *options, "--stats", name, "--shard", f"{index}/{count}")
        assert result.written == {name}
        assert f"shard       {index}/{count}\n" in result.out
        assert "--merge-stats" in result.out
        names.append(name)
    return names


def diverged(report: dict[str, Any]) -> list[str]:
    return [warning for warning in report["warnings"] if "diverge" in warning]


def assert_same_files(folder: Path, one: str, other: str) -> None:
    for suffix in (".npz", ".onnx", ".plan.json"):
        expected, found = (folder / f"{name}{suffix}" for name in (one, other))
        assert found.read_bytes() == expected.read_bytes(), suffix


@pytest.mark.parametrize("options", SOURCES.values(), ids=SOURCES)
def test_merged_shards_are_one_run(calls: Command, options: Sequence[str]) -> None:
    calls.done("text.onnx", *options, "--stats", "one.npz", "-o", "one.onnx")
    count = 1 if options is ONE else 3
    files = shards(calls, count, *options)
    order = np.random.default_rng(len(options)).permutation(files).tolist()
    merging = ("text.onnx", "--merge-stats", *order, "--stats", "merged.npz", "-o", "merged.onnx")
    report = calls.done(*merging, "--json").json()
    assert_same_files(calls.folder, "one", "merged")
    again = calls.done("text.onnx", *options, "--stats", "x.npz", "-o", "x.onnx", "--json").json()
    assert report["calibration"] == again["calibration"]
    assert diverged(report) == diverged(again)
    if options == SAMPLED:
        assert len(diverged(report)) == 1
    assert report["held_out"] == again["held_out"]
    assert report["seen"] == again["seen"]
    assert "merged.npz" in report["written"]


def test_a_shard_for_every_trajectory(calls: Command) -> None:
    """The last one holds nothing but what is held out."""
    calls.done("text.onnx", *SAMPLED, "--stats", "one.npz", "-o", "one.onnx")
    files = shards(calls, 7, *SAMPLED)
    calls.done("text.onnx", "--merge-stats", *files[::-1], "--stats", "m.npz", "-o", "m.onnx")
    assert_same_files(calls.folder, "one", "m")


def test_other_shards_cost_nothing(calls: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other shards are not read: the checksums in their ends tell them apart."""
    from qvd_trt.calibrators.sources import npz_files

    read: list[str] = []
    actual = npz_files.read_npz

    def spy(path: Path) -> object:
        read.append(path.name)
        return actual(path)

    monkeypatch.setattr(npz_files, "read_npz", spy)
    options = ("--calib", "recorded", "--stats", "s.npz", "--shard", "2/3", "--json")
    report = calls.done("text.onnx", *options).json()
    assert read == ["1.npz", "4.npz"]
    assert (report["shard"], report["samples"], report["held_out"]) == ("2/3", 9, 13)


def test_a_shard_that_is_there_is_kept(calls: Command) -> None:
    options = ("text.onnx", *SAMPLED, "--stats", "s.npz", "--shard", "2/3")
    calls.done(*options)
    again = calls.done(*options)
    assert not again.written
    assert "s.npz exists and is kept" in again.err
    assert "is of another run: it has another --seed (0, not 4)" in calls.refused(
        *options, "--seed", "4"
    )
    assert "s.npz is shard 2/3, not 1/3" in calls.refused(*options[:-1], "1/3")


def test_a_shard_without_a_call(calls: Command) -> None:
    """How many trajectories a script gives is known when it has run."""
    result = calls.done("text.onnx", "--calib", "dicts.py", "--stats", "s.npz", "--shard", "5/5")
    assert "no trajectory of load_data() of dicts.py belongs to shard 5/5" in result.err
    assert "more shards" not in result.err


def test_refused_merges(calls: Command) -> None:
    first, second, third = shards(calls, 3, *SAMPLED)
    whole = ("text.onnx", *SAMPLED, "--stats", "whole.npz", "-o", "whole.onnx")
    calls.done(*whole)

    def refused(*files: str, options: Sequence[str] = (), model: str = "text.onnx") -> str:
        return calls.refused(model, *options, "--merge-stats", *files)

    assert refused(third, first) == (
        "--merge-stats: shard 2/3 is missing; calibrate it with --shard and give its file, too"
    )
    assert "is shard 1/3, and so is shard1of3.npz; give each once" in refused(first, second, first)
    assert "holds the statistics of a whole run, no shard" in refused(first, "whole.npz", third)
    assert "belongs to another model" in refused(first, second, third, model="model.onnx")
    assert "another --keep" in refused(first, second, third, options=("--keep", "late_conv"))
    for option, value, said in (
        ("--seed", "1", "another --seed (1, not 0)"),
        ("--steps", "4", "another --steps (4, not 3)"),
        ("--sampler", "edm", "another --sampler (edm, not flow)"),
        ("--keep", "late_conv", "another --keep (sha256:"),
        ("--temporal-timesteps", "training", "another --temporal-timesteps (training, not cal"),
    ):
        name = f"{option[2:]}.npz"
        others = ("text.onnx", *SAMPLED, option, value, "--stats", name, "--shard", "2/3")
        calls.done(*others)
        assert f"{name} is of another run than {first}: it has {said}" in refused(
            first, name, third
        )
    calls.done("text.onnx", *SAMPLED, "--stats", "of4.npz", "--shard", "2/4")
    assert "another number of shards (2/4, not of 3)" in refused(first, "of4.npz", third)
    assert "s/absent.npz does not exist" in refused("s/absent.npz")
    (calls.folder / "cut.npz").write_bytes((calls.folder / second).read_bytes()[:-40])
    assert "cut.npz is not a complete statistics file" in refused(first, "cut.npz", third)


def test_a_shard_is_no_whole_run(calls: Command) -> None:
    (first,) = shards(calls, 1, *SAMPLED)
    assert calls.refused("text.onnx", "--stats", first) == (
        f"--stats: {first} is shard 1/1 of a run; give it and the others to --merge-stats"
    )


def test_refused_options(calls: Command) -> None:
    (first,) = shards(calls, 1, *SAMPLED)
    calls.done("text.onnx", "--merge-stats", first, "-o", "p.onnx")
    (calls.folder / "there.npz").write_bytes(b"")
    plan = ("--plan", "p.plan.json", "-o", "again.onnx")
    for options, said in (
        (("--shard", "1/2"), "--shard needs --stats"),
        (("--resume",), "--resume needs --stats"),
        (("--shard", "1/8", "--stats", "s.npz"), "at most 7 shards"),
        (("--shard", "1/2", "--stats", "s.npz", *plan), "--shard and --plan exclude"),
        (("--shard", "1/1", "--stats", "s.npz", "--merge-stats", first), "exclude each other"),
        (("--calib", "more.npz", "--merge-stats", first), "--calib and --merge-stats exclude"),
        (("--resume", "--stats", "s.npz", "--merge-stats", first), "finish each shard first"),
        (("--stats", "there.npz", "--merge-stats", first), "there.npz exists"),
        (("--stats", first, "--merge-stats", first), f"{first} exists"),
    ):
        assert said in calls.refused("text.onnx", *SAMPLED, *options)
    result = calls.done("text.onnx", "--seed", "3", "--merge-stats", first)
    assert "--seed is not used: the shards of --merge-stats were calibrated" in result.err


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/2"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UserError, match="write i/n, from 1/n to n/n"):
        Shard.parse(text)


def test_every_trajectory_is_in_one_shard() -> None:
    for count in range(1, 6):
        parts = [Shard.parse(f"{index}/{count}") for index in range(1, count + 1)]
        for trajectory in range(20):
            assert sum(part.takes(trajectory) for part in parts) == 1
