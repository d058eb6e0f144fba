"""A calibration that was stopped goes on where it was, and ends in the very same files."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence

import pytest

from qvd_trt.calibrators import run_calls
from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.statistics.collector import StatisticsCollector
from qvd_trt.export.arrays import AnyArray
from tests.tools.command import Command
from tests.tools.recorded_calls import write_calls
from tests.tools.test_shards import ONE, SAMPLED, SOURCES, assert_same_files

PARTIAL = "s.npz.partial"
PROCESS = (sys.executable, "-m", "qvd_trt.tools.cli.export")


class Watch:
    """Counts the calls that are run, and stops at one of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.stop_at: int | None = None

    def see(self, call: DenoiserCall) -> None:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((call.trajectory, call.step))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watches the collector, with every state saved however soon it comes."""
    found = Watch()
    for name in ("observe", "hold_out"):
        actual = getattr(StatisticsCollector, name)

        def watched(self: object, call: DenoiserCall, run: object = actual) -> AnyArray:
            found.see(call)
            return run(self, call)  # type: ignore[no-any-return, operator]

        monkeypatch.setattr(StatisticsCollector, name, watched)
    monkeypatch.setattr(run_calls, "SAVING_SHARE", float("inf"))
    return found


@pytest.fixture
def calls(command: Command) -> Command:
    write_calls(command.folder)
    return command


@pytest.mark.parametrize("options", SOURCES.values(), ids=SOURCES)
def test_stopped_at_any_call(calls: Command, watch: Watch, options: Sequence[str]) -> None:
    calls.done("text.onnx", *options, "--stats", "one.npz", "-o", "one.onnx")
    every = watch.calls
    resuming = ("text.onnx", *options, "--stats", "s.npz", "-o", "s.onnx", "--resume")
    begun: set[int] = set()
    for stop_at in {1, len(every) // 3, len(every) // 2, len(every) - 1}:
        watch.calls, watch.stop_at = [], stop_at
        stopped = calls(*resuming)
        assert stopped.code == 130
        assert stopped.written <= {PARTIAL}
        watch.calls, watch.stop_at = [], None
        calls.done(*resuming)
        again = len(watch.calls) + stop_at - len(every)
        begun.add(len(every) - len(watch.calls))
        longest = 3 if options[:2] == SAMPLED[:2] else run_calls.CALLS_BETWEEN_SAVES
        assert 0 <= again <= max(longest, 11 if options is ONE else 0)
        assert_same_files(calls.folder, "one", "s")
        assert not (calls.folder / PARTIAL).exists()
        for name in ("s.npz", "s.onnx", "s.plan.json"):
            (calls.folder / name).unlink()
    # A single sample begins anew; all else goes on.
    assert (begun == {0}) == (options is ONE)


def test_stopped_again_and_again(calls: Command, watch: Watch) -> None:
    """A call is never run more than once after its trajectory was finished."""
    calls.done("text.onnx", *SAMPLED, "--stats", "one.npz", "-o", "one.onnx")
    resuming = ("text.onnx", *SAMPLED, "--stats", "s.npz", "-o", "s.onnx", "--resume")
    watch.stop_at, runs, made = 4, 0, 0
    while True:
        watch.calls, runs = [], runs + 1
        code = calls(*resuming).code
        made += len(watch.calls)
        if code == 0:
            break
        assert code == 130
    assert (runs, made) == (7, 6 * 4 + 3)
    assert_same_files(calls.folder, "one", "s")


def test_shards_are_gone_on_with(calls: Command, watch: Watch) -> None:
    calls.done("text.onnx", "--calib", "recorded", "--stats", "one.npz", "-o", "one.onnx")
    names = []
    for index in (1, 2):
        names.append(name := f"{index}.npz")
        shard = ("text.onnx", "--calib", "recorded", "--stats", name, "--shard", f"{index}/2")
        watch.calls, watch.stop_at = [], 20
        stopped = calls(*shard)
        assert stopped.code == 130
        assert stopped.written == {f"{name}.partial"}
        said = calls.refused("text.onnx", "--merge-stats", f"{name}.partial")
        assert "is of an interrupted calibration; finish it with --resume" in said
        watch.calls, watch.stop_at = [], None
        calls.done(*shard, "--resume")
        assert not (calls.folder / f"{name}.partial").exists()
    calls.done("text.onnx", "--merge-stats", *names, "--stats", "m.npz", "-o", "m.onnx")
    assert_same_files(calls.folder, "one", "m")


@pytest.fixture
def stopped(calls: Command, watch: Watch) -> Command:
    """A calibration that was stopped in its fourth trajectory."""
    watch.stop_at = 10
    assert calls("text.onnx", *SAMPLED, "--stats", "s.npz").written == {PARTIAL}
    watch.calls, watch.stop_at = [], None
    return calls


def test_without_resume_it_begins_anew(stopped: Command, watch: Watch) -> None:
    result = stopped.done("text.onnx", *SAMPLED, "--stats", "s.npz")
    assert result.err.startswith(
        f"qvd-export: warning: {PARTIAL} of an interrupted calibration is not used and will be "
        "replaced; give --resume to go on with it\n"
    )
    assert len(watch.calls) == 21
    assert not (stopped.folder / PARTIAL).exists()


def test_states_of_others_are_refused(stopped: Command) -> None:
    resuming = ("text.onnx", *SAMPLED, "--stats", "s.npz", "--resume")
    refused = f"--resume: {PARTIAL} is of another calibration: it has another "
    for options, difference in (
        (("--seed", "2"), "--seed (0, not 2)"),
        (("--samples", "8"), "--samples (7, not 8)"),
        (("--keep", "late_conv"), "--keep (sha256:"),
        (("--shard", "1/3"), "--shard (1/1, not 1/3)"),
        (("--calib", "recorded"), "--calib (None, not 5 files, sha256:"),
    ):
        assert stopped.refused(*resuming, *options).startswith(f"{refused}{difference}")
    assert f"{refused}model" in stopped.refused("model.onnx", *resuming[1:])
    partial = stopped.folder / PARTIAL
    partial.write_bytes(partial.read_bytes()[:-100])
    assert f"--resume: {PARTIAL} is not a complete" in stopped.refused(*resuming)
    assert stopped.done(*resuming[:-1])


def test_a_state_beside_its_file_is_removed(stopped: Command) -> None:
    """It was killed between the one and the other."""
    state = (stopped.folder / PARTIAL).read_bytes()
    resuming = ("text.onnx", *SAMPLED, "--stats", "s.npz", "--resume")
    stopped.done(*resuming)
    (stopped.folder / PARTIAL).write_bytes(state)
    stopped.done(*resuming)
    assert not (stopped.folder / PARTIAL).exists()


def test_what_a_killed_writer_left_is_removed(calls: Command) -> None:
    """The scratch folder of a file that was half written."""
    for name in (".s.npz.abcd_123", f".{PARTIAL}.abcd_123"):
        (calls.folder / name).mkdir()
        (calls.folder / name / "s.npz").write_bytes(b"half")
    others = (".t.npz.abcd_123", ".s.npz.notmine")
    for name in others:
        (calls.folder / name).mkdir()
    subprocess.run(
        [*PROCESS, "text.onnx", *SAMPLED, "--stats", "s.npz"],
        cwd=calls.folder,
        check=True,
        capture_output=True,
    )
    assert {path.name for path in calls.folder.glob(".*")} == set(others)


def on_a_small_disk(most: int, command: Command, *options: str) -> subprocess.CompletedProcess[str]:
    """Run where no file may be larger than so many bytes."""
    return subprocess.run(
        [*PROCESS, "text.onnx", *options],
        cwd=command.folder,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


@pytest.mark.parametrize(
    "options", [(), ("--shard", "1/2"), ("--merge-stats", "first.npz", "second.npz")], ids=str
)
def test_a_full_disk(calls: Command, options: Sequence[str]) -> None:
    """No file may grow beyond 64 KiB: neither a state nor statistics fit."""
    for index in ("1", "2"):
        stats = "first.npz" if index == "1" else "second.npz"
        calls.done("text.onnx", *SAMPLED, "--stats", stats, "--shard", f"{index}/2")
    before = {path: path.stat().st_size for path in calls.folder.rglob("*")}
    sampling = () if options[:1] == ("--merge-stats",) else SAMPLED
    done = on_a_small_disk(1 << 16, calls, *sampling, "--stats", "s.npz", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("qvd-export: error: s.npz")
    assert "cannot be written (File too large); free space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_size for path in calls.folder.rglob("*")} == before


def test_a_disk_that_was_full_and_has_room_again(calls: Command) -> None:
    calls.done("text.onnx", *SAMPLED, "--stats", "one.npz", "-o", "one.onnx")
    resuming = (*SAMPLED, "--stats", "s.npz", "-o", "s.onnx", "--resume")
    most = (calls.folder / "one.npz").stat().st_size - 1
    assert on_a_small_disk(most, calls, *resuming).returncode == 2
    assert (calls.folder / PARTIAL).exists()
    assert not (calls.folder / "s.npz").exists()
    calls.done("text.onnx", *resuming)
    assert_same_files(calls.folder, "one", "s")
