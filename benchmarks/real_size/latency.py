"""Builds the engines of a real-size model on this GPU and times them against each other.

    python -m benchmarks.real_size.latency --models unet --out out/latency \
        --work /tmp/real_size --budget-s 520 [--level 3] [--plugin libqvd_trt_plugins.so]

The skeletons are those that make_models.py wrote (NAME_VARIANT.onnx.xz). Variants, in the order
of building: `fp` (the float graph, built with fp16), `w8a8` (ours, HTDQ as plain ONNX), `implicit`
(ours for convolutions alone, as `qvd-build --implicit` builds it), `modelopt`, `plugin` (ours, HTDQ
as the plugin), or any other that has a file; all but the first with int8 and fp16. Each is filled
with random weights, built, and its plan kept in the work folder, so that a second call goes on
where the first ended. With the budget spent no further engine is built, and those there are timed.

Each engine is timed alone and layer by layer as soon as it is built (shares come from the layers;
one by one they are slower as a whole). Then all engines of a model are timed in one process, one
CUDA graph launch of each in turn, in rounds of rotating order, so that clocks and temperature fall
on all alike; a speed-up is taken within a round, and a row without one is an engine timed alone.
A fused region (Myelin) is one layer to TensorRT, and the INT8 products inside of it are not seen:
the share of INT8 layers is a lower bound. `--kernel-trace` (see kernel_trace.py) gives the share of
INT8 kernels by name instead. Results are rewritten after every step.

Needs tensorrt (8.6 or 10), numpy and onnx; Python 3.10.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_size.cuda import Cuda
from benchmarks.real_size.engines import BuildOptions, TimedEngine, build_to, open_tensorrt
from benchmarks.real_size.kernel_trace import KernelTrace
from benchmarks.real_size.layer_report import HTDQ, INT8_PRODUCT, REFORMAT, layer_times, summarize
from benchmarks.real_size.skeleton import SKELETONS, fill
from qvd_trt.export.errors import UserError

VARIANTS = ("fp", "w8a8", "implicit", "modelopt", "plugin")
REFERENCE = "fp"
IMPLICIT = "implicit"
MIN_ROUNDS = 20
_CLOCKS = "name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu,power.draw"


class Results:
    """What was measured so far, on disk after every change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "latency.json"
        self.values: dict[str, Any] = {}
        if self._path.exists():
            self.values = json.loads(self._path.read_text())

    def engine(self, model: str, variant: str) -> dict[str, Any]:
        """The entry of an engine, made when there is none."""
        entry: dict[str, Any] = self.values.setdefault(model, {}).setdefault(variant, {})
        return entry

    def save(self) -> None:
        """Write the JSON file and the table."""
        self._path.write_text(json.dumps(self.values, indent=1) + "\n")
        (self._folder / "latency.md").write_text(table(self.values) + "\n")

    def save_layers(self, model: str, variant: str, layers: Sequence[Any]) -> None:
        """Write what the inspector said of an engine."""
        path = self._folder / f"{model}_{variant}.layers.json"
        path.write_text(json.dumps(layers, indent=1) + "\n")


def build(
    skeleton: Path, variant: str, plan: Path, entry: dict[str, Any], options: BuildOptions
) -> None:
    """Fill and build one variant."""
    folder = plan.with_suffix("")
    start = time.perf_counter()
    model = fill(skeleton, folder)
    entry["fill_s"] = round(time.perf_counter() - start, 1)
    entry.pop("error", None)
    try:
        implicit = variant == IMPLICIT
        seconds = build_to(model, plan, variant != REFERENCE, options, implicit=implicit)
        entry["build_s"] = round(seconds, 1)
        entry["level"] = options.level
        entry["engine_mb"] = round(plan.stat().st_size / 1e6, 1)
    except UserError as error:
        entry["error"] = str(error)[:2000]
    finally:
        shutil.rmtree(folder)


def time_interleaved(engines: dict[str, TimedEngine], cuda: Cuda, seconds: float) -> Any:
    """Milliseconds of every engine in every round, ``{name: [rounds]}``."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    start = time.perf_counter()
    while len(times[names[0]]) < MIN_ROUNDS or time.perf_counter() - start < seconds:
        for name in names:
            times[name].append(cuda.milliseconds(engines[name].launch))
        names.append(names.pop(0))
    return times


def spread(values: Any) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def examine(key: tuple[str, str], plan: Path, results: Results, tensorrt: tuple[Any, Any]) -> None:
    """Time one engine alone and layer by layer, so that something is known if the rest is cut."""
    cuda = Cuda()
    engine = TimedEngine(*tensorrt, plan, cuda)
    engine.warm_up()
    entry = results.engine(*key)
    entry["tensorrt"] = tensorrt[0].__version__
    entry["cuda_graph"] = engine.graph
    entry["outputs"] = engine.output_summary()
    entry["alone_ms"] = spread([cuda.milliseconds(engine.launch) for _ in range(MIN_ROUNDS)])
    results.save()
    layers, times = engine.layers(), engine.profile()
    results.save_layers(
        *key, [{**layer, "ms": times.get(layer.get("Name", ""))} for layer in layers]
    )
    entry["profile"] = summarize(layer_times(layers, times))
    results.save()


def compare(
    model: str,
    plans: dict[str, Path],
    results: Results,
    tensorrt: tuple[Any, Any],
    seconds: float,
    trace: KernelTrace | None,
) -> None:
    """Time the engines of one model against each other, then trace the kernels of each."""
    cuda = Cuda()
    engines = {variant: TimedEngine(*tensorrt, plan, cuda) for variant, plan in plans.items()}
    for engine in engines.values():
        engine.warm_up()
    before = gpu_state()
    times = time_interleaved(engines, cuda, seconds)
    results.values.setdefault("gpu", {})[model] = {"before": before, "after": gpu_state()}
    for variant, own in times.items():
        entry = results.engine(model, variant)
        entry["ms"] = {**spread(own), "rounds": len(own)}
        if REFERENCE in times:
            entry["speedup"] = spread(np.divide(times[REFERENCE], own))
    results.save()
    if trace is None:
        return
    for variant, engine in engines.items():
        try:
            results.engine(model, variant)["kernels"] = trace.kernels(engine.run)
        except RuntimeError as error:
            print(f"no kernel trace: {error}", flush=True)
        results.save()


def gpu_state() -> str:
    """Name, clocks, temperature and power, by nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def table(values: dict[str, Any]) -> str:
    """A markdown table, one line per engine."""
    lines = [
        "| model | engine | ms (quartiles) | speed-up over fp16 | INT8 kernels "
        "| INT8 layers: time, count | reformat | HTDQ | engine MB | build s (level) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, variants in values.items():
        if model == "gpu":
            continue
        for variant, entry in variants.items():
            cells = [model, variant, *_timing_cells(entry), *_profile_cells(entry)]
            cells.append(f"{entry.get('engine_mb', '-')}")
            cells.append(f"{entry.get('build_s', '-')} ({entry.get('level', '-')})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _timing_cells(entry: dict[str, Any]) -> list[str]:
    ms, speedup = entry.get("ms", entry.get("alone_ms")), entry.get("speedup")
    if ms is None:
        return [entry.get("error", "-")[:80].replace("|", " ").replace("\n", " "), "-"]
    graph = "" if entry.get("cuda_graph") else ", no graph"
    return [
        f"{ms['median']:.2f} ({ms['q1']:.2f}-{ms['q3']:.2f}{graph})",
        "-"
        if speedup is None
        else f"{speedup['median']:.3f} ({speedup['q1']:.3f}-{speedup['q3']:.3f})",
    ]


def _profile_cells(entry: dict[str, Any]) -> list[str]:
    if "profile" not in entry:
        return ["-"] * 4
    profile = entry["profile"]
    kinds = profile["kinds"]
    kernels = entry.get("kernels", {}).get("kinds")
    int8 = None if kernels is None else kernels.get(INT8_PRODUCT, {"share": 0.0})["share"]
    return [
        "-" if int8 is None else f"{int8:.1%}",
        f"{profile['int8_time_share']:.1%}, {profile['int8_layer_share']:.1%}",
        f"{kinds[REFORMAT]['share']:.1%}",
        f"{kinds[HTDQ]['share']:.2%}",
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("skeletons", type=Path, nargs="*", default=[SKELETONS], help="folders")
    parser.add_argument("--models", nargs="+", default=["unet", "wan"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, required=True, help="folder for weights and engines")
    parser.add_argument("--budget-s", type=float, default=520.0, help="of building, all models")
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing, for each model")
    parser.add_argument("--level", type=int, default=3, help="builder optimization level, 0 to 5")
    parser.add_argument("--plugin", type=Path, help="library with the HTDQ plugin")
    parser.add_argument("--kernel-trace", type=Path, help="library of kernel_trace.cpp")
    parser.add_argument("--logs", type=Path, help="folder for TensorRT's whole logs")
    options = parser.parse_args()
    deadline = time.perf_counter() + options.budget_s
    options.work.mkdir(parents=True, exist_ok=True)
    cache = options.work / "timing.cache"
    build_options = BuildOptions(options.level, cache, options.plugin, options.logs)
    tensorrt = open_tensorrt(options.plugin)
    trace = KernelTrace(options.kernel_trace) if options.kernel_trace else None
    results = Results(options.out)
    for model in options.models:
        plans: dict[str, Path] = {}
        for variant in options.variants:
            found = [
                path
                for folder in options.skeletons
                for path in folder.glob(f"{model}_{variant}.onnx.xz")
            ]
            plan = options.work / f"{model}_{variant}.plan"
            late = time.perf_counter() > deadline
            needs_plugin = variant == "plugin" and options.plugin is None
            if found and not plan.exists() and not late and not needs_plugin:
                entry = results.engine(model, variant)
                build(found[0], variant, plan, entry, build_options)
                results.save()
            if plan.exists():
                plans[variant] = plan
                if "profile" not in results.engine(model, variant):
                    examine((model, variant), plan, results, tensorrt)
                    print(table(results.values), flush=True)
        if plans:
            compare(model, plans, results, tensorrt, options.seconds, trace)
            print(table(results.values), flush=True)


if __name__ == "__main__":
    main()
