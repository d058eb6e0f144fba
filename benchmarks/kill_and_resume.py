"""Kills a calibration at random moments and goes on with it until it is done: the same result.

    python -m benchmarks.kill_and_resume --kills 200

A child runs ``qvd-export --stats FILE --resume`` on a small model and is killed (SIGKILL) after a
random time, over and over. After every kill all files that are there must be whole; at the end
statistics, plan and model must equal, byte for byte, those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from qvd_trt.calibrators.statistics.part_file import load_part, partial_path
from qvd_trt.calibrators.statistics.stats_file import load_stats
from qvd_trt.export.plan.plan_json import load_plan
from tests.models.small_unet import write_small_unet

SAMPLING = ("--sampler", "flow", "--steps", "50", "--samples", "12", "--shapes", "sample:1x16x8x8")
COMMAND = (sys.executable, "-m", "qvd_trt.tools.cli.export", "model.onnx")
EXPORT = (*COMMAND, *SAMPLING, "--stats", "s.npz", "-o", "q.onnx")
OUTPUTS = ("s.npz", "q.onnx", "q.plan.json")
STALLED = 40
"""Kills in a row without an end, after which a run is let through: start-up takes most of it."""


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        kills: How many times a child was killed.
        finished: Runs that came to their end, each compared with the undisturbed one.
        found: How often which file was there, and whole, after a kill.
    """

    kills: int = 0
    finished: int = 0
    found: Counter[str] = field(default_factory=Counter)


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Begin an export into a folder that holds ``model.onnx``."""
    return subprocess.Popen(
        [*EXPORT, *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def check_whole(folder: Path) -> list[str]:
    """Read every file that a killed child left; returns their names.

    Raises:
        UserError: one of them is not whole.
    """
    stats = folder / "s.npz"
    found = []
    for path, read in (
        (stats, load_stats),
        (partial_path(stats), lambda path: load_part(path, "--resume")),
        (folder / "q.plan.json", load_plan),
        (folder / "q.onnx", lambda path: onnx.checker.check_model(onnx.load(path))),
    ):
        if path.exists():
            read(path)
            found.append(path.name)
    return found


def kill_and_resume(kills: int, seed: int = 0) -> Outcome:
    """Disturb runs until so many kills were made.

    Raises:
        UserError: a file was half-written.
        AssertionError: a finished run differs from the undisturbed one.
    """
    dice = random.Random(seed)
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_small_unet(folder / "model.onnx")
        begin = time.monotonic()
        assert start(folder).wait() == 0
        whole = time.monotonic() - begin
        expected = {name: (folder / name).read_bytes() for name in OUTPUTS}
        while outcome.kills < kills:
            for name in OUTPUTS:
                (folder / name).unlink()
            _disturb(folder, kills, whole, dice, outcome)
            found = {name: (folder / name).read_bytes() for name in OUTPUTS}
            assert found == expected, [name for name in OUTPUTS if found[name] != expected[name]]
            assert not partial_path(folder / "s.npz").exists()
            outcome.finished += 1
    return outcome


def _disturb(folder: Path, kills: int, whole: float, dice: random.Random, outcome: Outcome) -> None:
    """Kill one run again and again until it is done."""
    for attempt in range(STALLED + 1):
        child = start(folder, "--resume")
        if outcome.kills < kills and attempt < STALLED:
            try:
                child.wait(dice.uniform(0.25, 1.0) * whole)
            except subprocess.TimeoutExpired:
                child.kill()
                outcome.kills += 1
        code = child.wait()
        outcome.found.update(check_whole(folder))
        if code == 0:
            return
        assert code == -9, code
    raise AssertionError("a run that nobody killed did not end")


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    outcome = kill_and_resume(options.kills, options.seed)
    print(f"{outcome.kills} kills, {outcome.finished} runs finished, all identical")
    print(f"whole files found after kills and ends: {dict(outcome.found)}")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
