"""Same-seed trajectories of the float model against each quantized one: paired PSNR.

    python -m benchmarks.trajectory_psnr [--clips 16] [--steps 25] [--guidance 2]
        [--bits w8a8 ...] [--algorithms qvd minmax ...] [--out docs/results]

Rows: the fp32-vs-fp16 floor, each baseline, QVD; columns: the shipped example and its stressed
twin (function-preserving synthetic stress, sigma 1.5). PSNR of the decoded clips, data range 2,
mean over clips with a 95 % confidence interval; digit accuracy by the shipped classifier.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.pandigits_sampling import (
    EXAMPLE,
    ClipRequest,
    classifier_accuracy,
    clip_labels,
    confidence_interval,
    onnx_predict,
    paired_psnr,
    sample_clips,
)
from benchmarks.stressed_twin import stressed_twin
from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.export.apply_plan import ApplyOptions
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from qvd_trt.export.plan.quant_plan import Bits
from qvd_trt.export.progress import SilentProgress
from qvd_trt.export.targets import TARGETS, FloatType
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_request import QuantizeRequest

FLOOR = "fp16"


@dataclass(frozen=True, slots=True)
class Row:
    """One quantized model against its float model.

    Attributes:
        model: ``natural`` or ``stressed``.
        bits: Widths, or ``fp16`` for the floor.
        algorithm: Name, or ``fp16``.
        psnr: Mean over clips, dB.
        interval: Half width of its 95 % confidence interval, dB.
        worst: Lowest clip, dB.
        step_sqnr: Mean SQNR of one step on held-out calls, dB; None for the floor.
        digit_accuracy: Of the quantized clips.
    """

    model: str
    bits: str
    algorithm: str
    psnr: float
    interval: float
    worst: float
    step_sqnr: float | None
    digit_accuracy: float


class ResultFiles:
    """The rows so far, as JSON and as a markdown table; rewritten after every row."""

    def __init__(self, stem: Path, *, append: bool) -> None:
        self._stem = stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        if append and stem.with_suffix(".json").exists():
            self.rows = [Row(**row) for row in json.loads(stem.with_suffix(".json").read_text())]

    def add(self, row: Row) -> None:
        """Add a row, replacing one of the same model, bits and algorithm."""
        key = (row.model, row.bits, row.algorithm)
        self.rows = [r for r in self.rows if (r.model, r.bits, r.algorithm) != key] + [row]
        text = json.dumps([asdict(r) for r in self.rows], indent=1)
        self._stem.with_suffix(".json").write_text(text + "\n")
        self._stem.with_suffix(".md").write_text(table(self.rows) + "\n")


def measure(
    model: str,
    float_model: Path,
    request: ClipRequest,
    variants: Sequence[tuple[str, str]],
    folder: Path,
    report: ResultFiles,
) -> None:
    """Sample with the float model once and with every variant, and compare."""
    reference = sample_clips(onnx_predict(float_model), request)
    accuracy = classifier_accuracy(reference, request.labels)
    print(f"{model}: float digit accuracy {accuracy['digit']:.3f}", flush=True)
    for bits, algorithm in variants:
        start = time.perf_counter()
        quantized = folder / f"{model}.{bits}.{algorithm}.onnx"
        sqnr = _write_variant(float_model, quantized, bits, algorithm, folder / f"{model}.npz")
        clips = sample_clips(onnx_predict(quantized), request)
        psnr = paired_psnr(reference, clips)
        row = Row(
            model=model,
            bits=bits,
            algorithm=algorithm,
            psnr=round(float(psnr.mean()), 2),
            interval=round(confidence_interval(psnr), 2),
            worst=round(float(psnr.min()), 2),
            step_sqnr=sqnr,
            digit_accuracy=classifier_accuracy(clips, request.labels)["digit"],
        )
        print(row, f"{time.perf_counter() - start:.0f} s", flush=True)
        report.add(row)


def table(rows: Sequence[Row]) -> str:
    """A markdown table, one line per variant."""
    lines = [
        "| model | bits | algorithm | PSNR dB (95 % CI) | worst clip | step SQNR dB | digits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        step = "" if row.step_sqnr is None else f"{row.step_sqnr:.1f}"
        lines.append(
            f"| {row.model} | {row.bits} | {row.algorithm} | {row.psnr:.1f} +- {row.interval:.1f} "
            f"| {row.worst:.1f} | {step} | {row.digit_accuracy:.2f} |"
        )
    return "\n".join(lines)


def _write_variant(
    float_model: Path, output: Path, bits: str, algorithm: str, stats: Path
) -> float | None:
    if algorithm == FLOOR:
        lowered = open_model(float_model).prepared.clone()
        LowerPrecision("fp16")(lowered)
        save_model(lowered, output)
        return None
    report = quantize(
        QuantizeRequest(
            model=float_model,
            output=output,
            apply=ApplyOptions(TARGETS["ort"], FloatType.FP32),
            bits=Bits.parse(bits),
            algorithm=algorithm,
            calibration=(EXAMPLE / "calibration",),
            stats=stats,
        ),
        SilentProgress(),
    )
    return report.mean_sqnr()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--bits", nargs="+", default=["w8a8"])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--models", nargs="+", default=["natural", "stressed"])
    parser.add_argument("--no-floor", action="store_true", help="leave out fp32 against fp16")
    parser.add_argument("--append", action="store_true", help="keep the rows already there")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    request = ClipRequest(
        labels=clip_labels(options.clips),
        steps=options.steps,
        guidance=options.guidance,
        batch=options.batch,
    )
    # The algorithm that needs most statistics first: the others then reuse its cache.
    names = sorted(options.algorithms, key=lambda name: not ALGORITHMS[name].needs_rows)
    variants = [(bits, name) for bits in options.bits for name in names]
    if not options.no_floor:
        variants.insert(0, (FLOOR, FLOOR))
    report = ResultFiles(options.out / "trajectory_psnr", append=options.append)
    with tempfile.TemporaryDirectory(prefix="qvd-") as scratch:
        folder = Path(scratch)
        for model in options.models:
            float_model = EXAMPLE / "model.onnx"
            if model == "stressed":
                twin, _ = stressed_twin(open_model(float_model), sigma=1.5, seed=0)
                float_model = folder / "stressed.onnx"
                save_model(twin, float_model)
            measure(model, float_model, request, variants, folder, report)
    print(table(report.rows))


if __name__ == "__main__":
    main()
