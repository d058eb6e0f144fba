"""The sampling options that several commands share; imports nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions


def add_sampling(parser: argparse.ArgumentParser, title: str) -> None:
    """Add the options of :func:`read_sampling` as a group of that title."""
    group = parser.add_argument_group(title)
    group.add_argument("--sampler", metavar="NAME", help="ddim (default), flow or edm")
    group.add_argument(
        "--prediction",
        metavar="NAME",
        help="what the model predicts: epsilon, v_prediction, sample, or flow (default: the "
        "sampler's usual one)",
    )
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help="noise schedule of ddim: linear, scaled_linear, cosine, or linear:BETA0,BETA1",
    )
    group.add_argument(
        "--spacing", metavar="NAME", help="timestep spacing of ddim: trailing, leading or linspace"
    )
    group.add_argument("--shift", type=float, metavar="X", help="sigma shift of flow")
    group.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    group.add_argument("--samples", type=int, default=4, help="trajectories (default: 4)")
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
    group.add_argument("--seed", type=int, default=0, help="seed of noise and drawn inputs")


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
    # Here, so that parsers can be built without numpy.
    from qvd_trt.calibrators.sources.input_shapes import parse_shapes
    from qvd_trt.calibrators.sources.npz_files import read_npz
    from qvd_trt.calibrators.sources.self_sampling import SelfSamplingOptions

    return SelfSamplingOptions(
        sampler=options.sampler or "ddim",
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
