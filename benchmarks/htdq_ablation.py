"""Codebooks compared on a model's temporal features, and nothing else quantized.

    python -m benchmarks.htdq_ablation MODEL.onnx [--bits 8 6 4] [--output htdq.md]

Evaluates every temporal feature that depends on the timestep alone, at the steps of the DDIM
sampler and at all training timesteps, and prints for every construction and width the TDScore and
the signal to quantization-noise ratio after the next layer (without its bias), means over sites.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.sources.samplers import (
    SPACINGS,
    TRAIN_STEPS,
    SamplerOptions,
    ddim_sampler,
)
from qvd_trt.calibrators.statistics.activation_stats import TemporalFeatures
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.calibrators.temporal.td_score import td_score
from qvd_trt.calibrators.temporal.timestep_sweep import TemporalSweep
from qvd_trt.export.arrays import AnyArray, Float64Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import TensorSpec
from qvd_trt.export.model_file import open_model
from qvd_trt.export.plan.site_types import Site


@dataclass(frozen=True, slots=True, eq=False)
class TemporalSite:
    """A temporal feature and what reads it.

    Attributes:
        tensor: Its name.
        weights: One ``[C, N]`` float64 matrix per layer behind it.
    """

    tensor: str
    weights: tuple[Float64Array, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """One codebook on one site, or the mean over sites."""

    td_score: float
    sqnr: float


Features = Mapping[str, TemporalFeatures]


def temporal_sites(model: FloatModel) -> list[Site]:
    """Find the sites whose feature depends on the timestep alone.

    Raises:
        UserError: there is none.
    """
    found = find_sites(model)
    sites = [site for site in found.temporal if site.tensor in found.strict_temporal]
    if not sites:
        raise UserError("no temporal feature of this model depends on the timestep alone")
    return sites


def with_weights(model: FloatModel, site: Site) -> TemporalSite:
    """The site with the weights behind it."""
    return TemporalSite(
        site.tensor,
        tuple(
            np.moveaxis(model.weight(layer.weight).astype(np.float64), layer.in_axis, 0)
            for layer in site.layers
        ),
    )


def score_site(site: TemporalSite, test: TemporalFeatures, quantized: AnyArray) -> Score:
    """TDScore, and the mean SQNR in dB of the layers behind the feature."""
    exact = test.values.astype(np.float64)
    noise = exact - quantized
    ratios = [np.square(exact @ w).sum() / np.square(noise @ w).sum() for w in site.weights]
    sqnr = float(np.mean(10.0 * np.log10(ratios)))
    return Score(td_score(test.values, quantized, test.timesteps), sqnr)


def mean_scores(
    sites: Sequence[TemporalSite], calibration: Features, test: Features, bits: int
) -> Iterator[tuple[str, Score]]:
    """For every construction: its name and its mean over the sites."""
    for name, build in CODEBOOKS.items():
        # UNets read one embedding in every block: equal features share their codebook.
        built: dict[bytes, AnyArray] = {}
        scores = []
        for site in sites:
            key = calibration[site.tensor].values.tobytes()
            if key not in built:
                codebook = build(calibration[site.tensor], bits)
                built[key] = codebook(test[site.tensor].values)
            scores.append(score_site(site, test[site.tensor], built[key]))
        yield (
            name,
            Score(
                float(np.mean([score.td_score for score in scores])),
                float(np.mean([score.sqnr for score in scores])),
            ),
        )


def report(
    title: str, sites: Sequence[TemporalSite], sampled: Features, full: Features, widths: list[int]
) -> Iterator[str]:
    """Yield the lines of the markdown report."""
    steps = len(next(iter(sampled.values())).timesteps)
    values = full[sites[0].tensor].values
    skew = float(np.mean(((values - values.mean()) / values.std()) ** 3))
    distinct = len({feature.values.tobytes() for feature in full.values()})
    yield f"# Codebooks for the temporal features of {title}\n"
    yield (
        f"{len(sites)} sites ({distinct} distinct features); the first has {values.shape[1]} "
        f"channels, skew {skew:.1f}, range {values.min():.3f} to {values.max():.3f}. "
        "Cells: TDScore / SQNR after the next layer in dB, means over sites.\n"
    )
    settings = (
        (f"{steps}", f"{steps}", sampled, sampled),
        (f"{TRAIN_STEPS}", f"{TRAIN_STEPS}", full, full),
        (f"{steps}", f"{TRAIN_STEPS}", sampled, full),
    )
    for calibrated, tested, calibration, test in settings:
        yield f"## Calibrated on {calibrated} timesteps, tested on {tested}\n"
        yield "| codebook | " + " | ".join(f"{bits} bit" for bits in widths) + " |"
        yield "|---" * (1 + len(widths)) + "|"
        columns = [dict(mean_scores(sites, calibration, test, bits)) for bits in widths]
        for name in CODEBOOKS:
            cells = (f"{c[name].td_score:.3f} / {c[name].sqnr:.1f}" for c in columns)
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="float ONNX denoiser")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4], choices=range(1, 9))
    parser.add_argument("--steps", type=int, default=25, help="steps of the DDIM sampler")
    parser.add_argument("--spacing", default="trailing", choices=SPACINGS)
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        model = open_model(options.model)
        found = temporal_sites(model)
        sites = [with_weights(model, site) for site in found]
        sampler = ddim_sampler(SamplerOptions(steps=options.steps, spacing=options.spacing))
        sweep = TemporalSweep(model, found)
        # Other inputs are read for their extents only.
        template = {spec.name: _filled(spec, 0.0) for spec in model.signature.inputs}
        sampled = sweep.run(template, np.sort(sampler.timesteps))
        full = sweep.run(template, np.arange(TRAIN_STEPS, dtype=np.float64))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = []
    for line in report(options.model.name, sites, sampled, full, options.bits):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


def _filled(spec: TensorSpec, value: float) -> AnyArray:
    """Fill an array of the input's fixed extents, 1 for the symbolic ones."""
    shape = [extent if isinstance(extent, int) else 1 for extent in spec.shape]
    return np.full(shape, value, spec.dtype)


if __name__ == "__main__":
    sys.exit(main())
