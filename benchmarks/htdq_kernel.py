"""The HTDQ kernel on this machine's GPU: built, tested, checked by compute-sanitizer and timed.

    PYTHONPATH=.src python -m benchmarks.htdq_kernel [--tensorrt-root DIR ...] [--limit 420]

Needs nvcc and pytest. Each TensorRT root (headers suffice) adds a run of the plugin's tests. Prints
what passed, then a table: microseconds per launch, bytes read and written per second, the time as a
multiple of a device-to-device copy of the same bytes in the same run, and where torch is installed
its `bucketize` and indexing. The rows with 64 MB of values are held to the target.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvd_trt.trt_plugins.build import SOURCES, find_nvcc

ROOT = Path(__file__).parents[1]
TESTS = Path("tests") / "trt_plugins"
TOOLS = ("memcheck", "racecheck", "initcheck")
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
LAST_LINES = 15
TORCH_CALLS = 10
TARGET_BYTES = 64 << 20
TARGET_RATIO = 1.3


@dataclass(frozen=True, slots=True)
class Timing:
    """One size of one type, microseconds per launch; `fastest` is the launcher's own choice."""

    dtype: str
    levels: int
    values: int
    method: str
    kernel: float
    copy: float

    @property
    def bytes_moved(self) -> int:
        """Read and written."""
        return 2 * self.values * VALUE_BYTES[self.dtype]

    @property
    def ratio(self) -> float:
        """The kernel's time as a multiple of the copy's."""
        return self.kernel / self.copy

    @property
    def has_target(self) -> bool:
        """Whether the target is about this row."""
        return self.method == "fastest" and self.bytes_moved == 2 * TARGET_BYTES


class Steps:
    """Runs commands one after the other, none past the time limit, and remembers how they ended."""

    def __init__(self, limit: float) -> None:
        self._end = time.monotonic() + limit
        self.failed = False

    def run(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> str:
        """Return what the command printed; say in one line how it ended, in more if badly."""
        start = time.monotonic()
        status: int | str
        left = max(self._end - start, 1.0)
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=left,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
            output, status = done.stdout, done.returncode or "ok"
        except FileNotFoundError:
            output, status = "", "not installed"
        except subprocess.TimeoutExpired:
            output, status = "", "out of time"
        lines = output.strip().splitlines()
        last = lines[-1] if lines else ""
        print(f"{name}: {status} in {time.monotonic() - start:.0f} s: {last}", flush=True)
        if status != "ok":
            self.failed = True
            print("\n".join(lines[-LAST_LINES:]), flush=True)
        return output


def test(steps: Steps, roots: Sequence[Path]) -> None:
    """Run the tests of the kernel, then those of the plugin for each set of headers."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    steps.run("kernel and lookup", [*pytest, TESTS / "test_kernel.py", TESTS / "test_lookup.py"])
    for root in roots:
        environment = {"TENSORRT_ROOT": str(root.resolve())}
        steps.run(f"plugin with {root}", [*pytest, TESTS / "test_plugin.py"], environment)


def sanitize(steps: Steps) -> None:
    """Run the kernel's tests under each of compute-sanitizer's tools."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer: not installed")
        return
    pytest: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for tool in TOOLS:
        wrapper = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        environment = {"QVD_TRT_KERNEL_WRAPPER": shlex.join(wrapper)}
        only = "sizes" if tool == "memcheck" else "hard"
        command = [*pytest, "-m", "gpu", "-k", only, TESTS / "test_kernel.py"]
        steps.run(f"compute-sanitizer {tool}", command, environment)


def measure(steps: Steps, folder: Path) -> list[Timing]:
    """Build the timing program, count its wide loads and stores, and run it."""
    program = folder / "htdq_kernel"
    sources = [SOURCES / "src" / "htdq" / name for name in ("kernel.cu", "table.cpp")]
    flags = ["-std=c++17", "-O3", "-arch=native", f"-I{SOURCES / 'src'}"]
    source = ROOT / "benchmarks" / "htdq_kernel.cu"
    command: list[str | Path] = [find_nvcc(), *flags, source, *sources, "-o", program]
    steps.run("build of the timing program", command)
    if shutil.which("cuobjdump"):
        code = subprocess.run(["cuobjdump", "-sass", program], capture_output=True, text=True)
        counts = {name: code.stdout.count(name) for name in ("LDG.E.128", "STG.E.128", "LDL")}
        print("instructions:", ", ".join(f"{count} {name}" for name, count in counts.items()))
    rows = [line.split() for line in steps.run("timing", [program]).splitlines()]
    return [
        Timing(row[0], int(row[1]), int(row[2]), row[3], float(row[4]), float(row[5]))
        for row in rows
        if len(row) == 7
    ]


def torch_times(timings: Sequence[Timing]) -> dict[tuple[str, int, int], float]:
    """Microseconds of ``levels[bucketize(x, thresholds)]`` for the same sizes."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    found: dict[tuple[str, int, int], float] = {}
    for timing in timings:
        if timing.method != "fastest":
            continue
        levels = torch.linspace(-4, 4, timing.levels, device="cuda")
        thresholds = (levels[1:] + levels[:-1]) / 2
        x = 1.5 * torch.randn(timing.values, device="cuda").to(types[timing.dtype])
        levels = levels.to(x.dtype)
        levels[torch.bucketize(x.float(), thresholds, out_int32=True)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(TORCH_CALLS):
                levels[torch.bucketize(x.float(), thresholds, out_int32=True)]
        times = []
        for _ in range(15):
            start, stop = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) * 1e3 / TORCH_CALLS)
        found[timing.dtype, timing.levels, timing.values] = sorted(times)[len(times) // 2]
    return found


def main() -> int:
    """Run the command; returns 1 when a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensorrt-root", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=420.0, help="seconds for all steps")
    options = parser.parse_args()
    steps = Steps(options.limit)
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    steps.run("GPU", smi)
    with tempfile.TemporaryDirectory() as folder:
        timings = measure(steps, Path(folder))
    test(steps, options.tensorrt_root)
    sanitize(steps)
    torch = torch_times(timings)
    print("\n| type | levels | values | method | us | GB/s | copy us | time / copy | torch us |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in timings:
        rate = row.bytes_moved / row.kernel / 1e3
        beside = torch.get((row.dtype, row.levels, row.values))
        print(
            f"| {row.dtype} | {row.levels} | {row.values} | {row.method} | {row.kernel:.2f} | "
            f"{rate:.0f} | {row.copy:.2f} | {row.ratio:.2f} | "
            f"{'-' if beside is None else f'{beside:.1f}'} |"
        )
    for row in (row for row in timings if row.has_target):
        verdict = "within" if row.ratio <= TARGET_RATIO else "NOT within"
        print(
            f"64 MB of {row.dtype}, {row.levels} levels: {row.ratio:.2f} times a copy, "
            f"{verdict} {TARGET_RATIO}"
        )
    return int(steps.failed)


if __name__ == "__main__":
    sys.exit(main())
