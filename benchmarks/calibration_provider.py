"""Calibration by ONNX Runtime's CUDA provider against its CPU provider: same plan, and how fast.

    python -m benchmarks.calibration_provider [--rounds 2] [--out docs/results]

Calibrates the shipped example by both, in turn, in one run, and compares the two plans: the
decisions (which sites are shifted and scaled), and the largest relative difference of a number.
TF32 is off on CUDA, so both compute in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.pandigits_sampling import EXAMPLE
from qvd_trt.export.apply_plan import ApplyOptions
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.ort_session import CPU, CUDA
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.plan.quant_plan import DensePlan, QuantPlan
from qvd_trt.export.progress import SilentProgress
from qvd_trt.export.targets import TARGETS, FloatType
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_request import QuantizeRequest


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """How far two plans of one model are apart.

    Attributes:
        sites: Dense sites.
        same_decisions: Sites where both shift or both do not, and both scale or both do not.
        activation_scale: Largest relative difference of a site's scale, where decisions agree.
        weight_scale: The same of the weights' scales.
        codebook_level: Largest difference of a level of a temporal codebook over its range.
    """

    sites: int
    same_decisions: int
    activation_scale: float
    weight_scale: float
    codebook_level: float


def difference(first: QuantPlan, second: QuantPlan) -> PlanDifference:
    """Compare two plans of the same model, algorithm and bits."""
    others = {site.tensor: site for site in second.dense}
    pairs = [(site, others[site.tensor]) for site in first.dense]
    same = [(a, b) for a, b in pairs if _decisions(a) == _decisions(b)]
    return PlanDifference(
        sites=len(pairs),
        same_decisions=len(same),
        activation_scale=max(_relative(*map(_activation_scale, pair)) for pair in same),
        weight_scale=max(_relative(*map(_weight_scales, pair)) for pair in same),
        codebook_level=max(
            float(np.abs(a.codebook.levels - b.codebook.levels).max() / np.ptp(a.codebook.levels))
            for a, b in zip(first.temporal, second.temporal, strict=True)
        ),
    )


def calibrate(providers: Sequence[str], folder: Path) -> tuple[QuantPlan, float]:
    """The plan of the shipped example, and the seconds of its calibration step."""
    output = folder / "model.onnx"
    report = quantize(
        QuantizeRequest(
            model=EXAMPLE / "model.onnx",
            output=output,
            apply=ApplyOptions(TARGETS["ort"], FloatType.FP32),
            calibration=(EXAMPLE / "calibration",),
            providers=providers,
        ),
        SilentProgress(),
    )
    return load_plan(Path(report.plan)), report.seconds["calibrate"]


def _decisions(site: DensePlan) -> tuple[bool, bool]:
    activation = site.activation
    assert activation is not None
    return activation.shift is not None, activation.smooth is not None


def _activation_scale(site: DensePlan) -> AnyArray:
    assert site.activation is not None
    return np.array([site.activation.scale], np.float32)


def _weight_scales(site: DensePlan) -> AnyArray:
    return np.concatenate([layer.weight.scales for layer in site.layers if layer.weight])


def _relative(first: AnyArray, second: AnyArray) -> float:
    return float(np.max(np.abs(first - second) / first))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"cpu": [], "cuda": []}
    plans = {}
    with tempfile.TemporaryDirectory(prefix="qvd-") as scratch:
        for _ in range(options.rounds):
            for name, providers in (("cpu", CPU), ("cuda", CUDA)):
                plans[name], taken = calibrate(providers, Path(scratch))
                seconds[name].append(taken)
                print(f"{name}: {taken:.2f} s", flush=True)
    found = difference(plans["cpu"], plans["cuda"])
    best = {name: min(times) for name, times in seconds.items()}
    result = {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "speedup": round(best["cpu"] / best["cuda"], 2),
        **asdict(found),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (options.out / "calibration_provider.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
