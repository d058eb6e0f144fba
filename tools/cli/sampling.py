"""The sampling options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from qvd_trt.calibrators.sources.input_shapes import parse_shapes
from qvd_trt.calibrators.sources.npz_files import read_npz
from qvd_trt.calibrators.sources.samplers import SAMPLERS, SCHEDULES, SPACINGS
from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions

DEFAULTS = SelfSamplingOptions()


def add_sampling(parser: argparse.ArgumentParser, title: str) -> None:
    """Add the options of :func:`read_sampling` as a group of that title."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(SAMPLERS)} (default: {DEFAULTS.sampler})",
    )
    group.add_argument(
        "--prediction",
        metavar="NAME",
        help="what the model predicts: epsilon (default), v_prediction or sample with ddim; each "
        "other sampler takes only its own",
    )
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help=f"noise schedule of ddim: {', '.join(SCHEDULES)}; cosine for squaredcos_cap_v2; "
        "linear:BETA0,BETA1 for other ends",
    )
    group.add_argument(
        "--spacing", metavar="NAME", help=f"timestep spacing of ddim: {', '.join(SPACINGS)}"
    )
    group.add_argument("--shift", type=float, metavar="X", help="sigma shift of flow")
    for option, default, what in (
        ("--steps", DEFAULTS.steps, "denoising steps"),
        ("--samples", DEFAULTS.samples, "trajectories"),
    ):
        group.add_argument(option, type=int, default=default, help=f"{what} (default: {default})")
    group.add_argument("--guidance", type=float, metavar="X", help="classifier-free guidance scale")
    group.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE.npz",
        help="the model's other inputs, one row per sample; an array under the latent's name "
        "gives its shape; with --guidance also uncond_NAME",
    )
    group.add_argument(
        "--shapes",
        nargs="+",
        metavar="NAME:DxDxD",
        default=[],
        help="input shapes where the model's are symbolic, for example sample:1x4x16x32x32",
    )
    group.add_argument(
        "--seed", type=int, default=DEFAULTS.seed, help="seed of noise and drawn inputs"
    )


def first_given(options: argparse.Namespace) -> str | None:
    """The first sampling option that has another value than its default, as it is written."""
    parser = argparse.ArgumentParser()
    add_sampling(parser, "sampling")
    for name, default in vars(parser.parse_args([])).items():
        if getattr(options, name) != default:
            return f"--{name}"
    return None


def read_sampling(options: argparse.Namespace) -> SelfSamplingOptions:
    """Gather the sampling options.

    Raises:
        UserError: the file of ``--inputs`` cannot be read, or ``--shapes`` is not understood.
    """
    return SelfSamplingOptions(
        sampler=options.sampler or DEFAULTS.sampler,
        prediction=options.prediction,
        schedule=options.schedule,
        spacing=options.spacing,
        shift=options.shift,
        steps=options.steps,
        samples=options.samples,
        guidance=options.guidance,
        seed=options.seed,
        extra_inputs=read_npz(options.inputs) if options.inputs else None,
        shapes=parse_shapes(options.shapes),
    )
