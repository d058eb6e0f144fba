"""Same-seed trajectories of TensorRT engines against ONNX Runtime: paired PSNR of whole clips.

    python -m benchmarks.engine_psnr --qdq inline.onnx --engine inline=inline.engine \
        --engine plugin=plugin.engine --engine fp16=fp16.engine [--plugin LIB] [--clips 16]
        [--steps 20] [--guidance 1] [--drawn clips.npz] [--out docs/results]

Every denoiser draws the same clips of the example from the same noise, by itself: the float model
and the QDQ model in ONNX Runtime (Q/DQ as written), and every engine. The table pairs them.
`qvd-build` makes the engines; docs/results.md has the commands.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.pandigits_sampling import (
    EXAMPLE,
    ClipRequest,
    Predict,
    classifier_accuracy,
    clip_labels,
    confidence_interval,
    onnx_predict,
    paired_psnr,
    sample_clips,
)
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.tools.engine.engine_session import EngineSession


@dataclass(frozen=True, slots=True)
class Pair:
    """Two denoisers that drew the same clips.

    Attributes:
        first: What is the reference.
        second: What is compared with it.
        psnr: Mean over clips, dB.
        interval: Half width of its 95 % confidence interval, dB.
        worst: Lowest clip, dB.
        digit_accuracy: Of the second's clips.
    """

    first: str
    second: str
    psnr: float
    interval: float
    worst: float
    digit_accuracy: float


def engine_predict(engine: Path, plugin: Path | None) -> Predict:
    """The denoiser as a TensorRT engine."""
    session = EngineSession(engine, plugin=plugin)

    def predict(feed: Mapping[str, AnyArray]) -> Float32Array:
        (prediction,) = session.run(feed).values()
        return prediction.astype(np.float32)

    return predict


def compare(clips: Mapping[str, Float32Array], labels: AnyArray) -> list[Pair]:
    """Every pair of denoisers, in the order in which they drew."""
    accuracy = {name: classifier_accuracy(drawn, labels)["digit"] for name, drawn in clips.items()}
    pairs = []
    for first, second in itertools.combinations(clips, 2):
        psnr = paired_psnr(clips[first], clips[second])
        pairs.append(
            Pair(
                first=first,
                second=second,
                psnr=round(float(psnr.mean()), 2),
                interval=round(confidence_interval(psnr), 2),
                worst=round(float(psnr.min()), 2),
                digit_accuracy=accuracy[second],
            )
        )
    return pairs


def load_clips(drawn: Path | None, settings: tuple[int, float, int]) -> dict[str, Float32Array]:
    """Clips of an earlier call, by denoiser; none when there was no such call.

    Raises:
        ValueError: they were drawn with other steps, guidance or in another number.
    """
    if drawn is None or not drawn.exists():
        return {}
    with np.load(drawn) as clips:
        if tuple(clips["settings"]) != settings:
            raise ValueError(f"{drawn} has (steps, guidance, clips) {tuple(clips['settings'])}")
        return {name: clips[name] for name in clips.files if name != "settings"}


def table(pairs: Sequence[Pair]) -> str:
    """A markdown table, one line per pair."""
    lines = [
        "| reference | compared | PSNR dB (95 % CI) | worst clip | digits |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.first} | {p.second} | {p.psnr:.1f} +- {p.interval:.1f} | {p.worst:.1f} "
        f"| {p.digit_accuracy:.2f} |"
        for p in pairs
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qdq", type=Path, required=True, help="QDQ file of the engines")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--plugin", type=Path, help="plugin library for engines that need it")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--drawn",
        type=Path,
        metavar="FILE.npz",
        help="clips drawn so far, read and extended: ONNX Runtime may draw on another machine",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    request = ClipRequest(
        clip_labels(options.clips), options.steps, options.guidance, batch=options.batch
    )
    engines = dict(entry.split("=", 1) for entry in options.engine)
    denoisers = {
        "float, ORT": lambda: onnx_predict(EXAMPLE / "model.onnx"),
        "QDQ, ORT": lambda: onnx_predict(options.qdq),
    } | {
        f"{name}, engine": lambda path=path: engine_predict(Path(path), options.plugin)
        for name, path in engines.items()
    }
    clips = load_clips(options.drawn, settings := (options.steps, options.guidance, options.clips))
    for name, open_denoiser in denoisers.items():
        if name in clips:
            continue
        start = time.perf_counter()
        clips[name] = sample_clips(open_denoiser(), request)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if options.drawn is not None:
            np.savez(options.drawn, **clips, settings=settings)  # type: ignore[arg-type]
    pairs = compare({name: clips[name] for name in denoisers}, request.labels)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "engine_psnr"
    stem.with_suffix(".json").write_text(json.dumps([asdict(p) for p in pairs], indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(pairs) + "\n")
    print(table(pairs))


if __name__ == "__main__":
    main()
