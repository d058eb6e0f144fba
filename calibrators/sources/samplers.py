"""Deterministic first-order samplers in numpy.

Every one of them is linear in the state ``x`` and the model's prediction ``p``:

    model input   = input_weight[i] * x
    next state    = state_weight[i] * x + prediction_weight[i] * p

so a sampler is a table of such weights, made once for a number of steps. The tables agree with
diffusers' ``DDIMScheduler`` (``eta=0``, ``clip_sample=False``), ``FlowMatchEulerDiscreteScheduler``
and ``EulerDiscreteScheduler`` (as Stable Video Diffusion configures it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvd_trt.export.arrays import Float32Array, Float64Array
from qvd_trt.export.errors import UserError

TRAIN_STEPS = 1000
"""Length of the training schedule of every supported model family."""

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """The weights of every step; the first model input is always standard normal noise.

    Attributes:
        timesteps: ``[S]`` float64, what the model is told at each step, in sampling order.
        noise_scale: Standard deviation of the initial state; ``1 / input_weight[0]``.
        input_weight: ``[S]`` float64.
        state_weight: ``[S]`` float64.
        prediction_weight: ``[S]`` float64.
        about: What it was made with, defaults included, for reports.
    """

    timesteps: Float64Array
    noise_scale: float
    input_weight: Float64Array
    state_weight: Float64Array
    prediction_weight: Float64Array
    about: str

    def scale_input(self, state: Float32Array, index: int) -> Float32Array:
        """What the model is given at step ``index``; any shape, float32."""
        scaled: Float32Array = state * np.float32(self.input_weight[index])
        return scaled

    def step(self, prediction: Float32Array, index: int, state: Float32Array) -> Float32Array:
        """The state after step ``index``; any shape, float32."""
        kept: Float32Array = state * np.float32(self.state_weight[index])
        kept += prediction * np.float32(self.prediction_weight[index])
        return kept


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """How to build a sampler; what a sampler does not use must stay at its default.

    Attributes:
        steps: Number of denoising steps, 1 to 1000.
        prediction: What the model predicts: ``epsilon``, ``v_prediction`` or ``sample`` for
            ``ddim``; None for the sampler's usual one.
        schedule: Noise schedule of ``ddim``: ``linear`` (betas 0.0001 to 0.02), ``scaled_linear``
            (0.00085 to 0.012) or ``squaredcos_cap_v2`` (also ``cosine``). The two linear ones
            take other ends as in ``linear:0.00085,0.012`` (AnimateDiff).
        spacing: Timestep spacing of ``ddim``: ``trailing``, ``leading`` or ``linspace``.
        shift: Sigma shift of ``flow``; above 1 spends more steps at high noise.
    """

    steps: int = 20
    prediction: str | None = None
    schedule: str | None = None
    spacing: str | None = None
    shift: float | None = None


def build_sampler(name: str, options: SamplerOptions) -> Sampler:
    """The sampler of that name in :data:`SAMPLERS`.

    Raises:
        UserError: unknown name, or an option that the sampler does not take.
    """
    if name not in SAMPLERS:
        raise UserError(f"--sampler: {name!r} is unknown; use {', '.join(SAMPLERS)}")
    if not 1 <= options.steps <= TRAIN_STEPS:
        raise UserError(f"--steps: {options.steps} is not supported; use 1 to {TRAIN_STEPS}")
    return SAMPLERS[name](options)


def ddim_sampler(options: SamplerOptions) -> Sampler:
    """DDIM with eta = 0, formula (12) of arXiv 2010.02502; integral timesteps.

    Raises:
        UserError: unknown prediction, schedule or spacing.
    """
    _refuse("ddim", options, "shift")
    schedule, spacing = options.schedule or "linear", options.spacing or "trailing"
    kept = _alphas_cumprod(schedule)
    timesteps = _spaced(options.steps, spacing)
    previous = timesteps - TRAIN_STEPS // options.steps
    signal = kept[timesteps]
    next_signal = np.where(previous >= 0, kept[np.maximum(previous, 0)], 1.0)
    a, b = np.sqrt(signal), np.sqrt(1 - signal)
    next_a, next_b = np.sqrt(next_signal), np.sqrt(1 - next_signal)
    prediction = options.prediction or "epsilon"
    if prediction == "epsilon":
        state_weight, prediction_weight = next_a / a, next_b - next_a * b / a
    elif prediction == "v_prediction":
        state_weight = next_a * a + next_b * b
        prediction_weight = next_b * a - next_a * b
    elif prediction == "sample":
        state_weight, prediction_weight = next_b / b, next_a - next_b * a / b
    else:
        raise UserError(
            f"--prediction: {prediction!r} is unknown; use epsilon, v_prediction or sample"
        )
    ones = np.ones(options.steps)
    return Sampler(
        timesteps.astype(np.float64),
        1.0,
        ones,
        state_weight,
        prediction_weight,
        f"prediction {prediction}, schedule {schedule}, spacing {spacing}",
    )


def flow_sampler(options: SamplerOptions) -> Sampler:
    """Euler steps of flow matching with a velocity prediction; timestep = 1000 sigma.

    Raises:
        UserError: another prediction, or a shift that is not positive.
    """
    _refuse("flow", options, "schedule", "spacing")
    _require_prediction("flow", options, "velocity")
    shift = 1.0 if options.shift is None else options.shift
    if not (math.isfinite(shift) and shift > 0):
        raise UserError(f"--shift: {shift} is not supported; use a positive number")

    def shifted(sigma: Float64Array) -> Float64Array:
        result: Float64Array = shift * sigma / (1 + (shift - 1) * sigma)
        return result

    # diffusers shifts its smallest sigma once when it is made and again with the others.
    smallest = shifted(np.array([1 / TRAIN_STEPS]))[0]
    sigmas = shifted(np.linspace(1.0, smallest, options.steps))
    ones = np.ones(options.steps)
    steps = np.diff(sigmas, append=0.0)
    return Sampler(sigmas * TRAIN_STEPS, 1.0, ones, ones, steps, f"shift {shift:g}")


def edm_sampler(options: SamplerOptions) -> Sampler:
    """Euler steps over Karras sigmas with v-prediction, as Stable Video Diffusion samples.

    Sigmas run from 700 to 0.002 (arXiv 2206.00364, formula 5, rho = 7); the timestep is
    ``0.25 log(sigma)`` and the model input is divided by ``sqrt(sigma^2 + 1)``.

    Raises:
        UserError: another prediction.
    """
    _refuse("edm", options, "schedule", "spacing", "shift")
    _require_prediction("edm", options, "v_prediction")
    rho, highest, lowest = 7.0, 700.0, 0.002
    ramp = np.linspace(highest ** (1 / rho), lowest ** (1 / rho), options.steps)
    sigmas = ramp**rho
    relative = np.diff(sigmas, append=0.0) / sigmas
    spread = np.sqrt(sigmas**2 + 1)
    return Sampler(
        timesteps=0.25 * np.log(sigmas),
        noise_scale=float(spread[0]),
        input_weight=1 / spread,
        state_weight=1 + relative * (1 - 1 / spread**2),
        prediction_weight=relative * sigmas / spread,
        about="prediction v_prediction, Karras sigmas 700 to 0.002",
    )


SAMPLERS: dict[str, Callable[[SamplerOptions], Sampler]] = {
    "ddim": ddim_sampler,
    "flow": flow_sampler,
    "edm": edm_sampler,
}
"""Samplers by their name on the command line."""


def _alphas_cumprod(schedule: str) -> Float64Array:
    """Fraction of signal power left at each training step, ``[1000]``.

    Betas are rounded to float32 as diffusers does: with the cosine schedule's last beta of 0.999
    that rounding alone moves the last alpha by 1e-5.
    """
    name, _, ends = schedule.partition(":")
    name = "squaredcos_cap_v2" if name == "cosine" else name
    if name == "linear":
        start, end = _ends(schedule, ends, (0.0001, 0.02))
        betas = np.linspace(start, end, TRAIN_STEPS)
    elif name == "scaled_linear":
        start, end = _ends(schedule, ends, (0.00085, 0.012))
        betas = np.linspace(start**0.5, end**0.5, TRAIN_STEPS) ** 2
    elif name == "squaredcos_cap_v2" and not ends:
        time = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
        bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    else:
        raise UserError(
            f"--schedule: {schedule!r} is unknown; use {', '.join(SCHEDULES)}, "
            "or give the betas' ends as in linear:0.00085,0.012"
        )
    alphas = np.float32(1) - betas.astype(np.float32)
    kept: Float64Array = np.cumprod(alphas.astype(np.float64))
    return kept


def _ends(schedule: str, text: str, default: tuple[float, float]) -> tuple[float, float]:
    if not text:
        return default
    try:
        start, end = map(float, text.split(","))
    except ValueError:
        start = end = math.nan
    if not 0 < start <= end < 1:
        raise UserError(
            f"--schedule: {schedule!r} is not understood; write the first and last beta as in "
            "linear:0.00085,0.012"
        )
    return start, end


def _spaced(steps: int, spacing: str) -> npt.NDArray[np.int64]:
    """Descending training timesteps, ``[steps]``; table 2 of arXiv 2305.08891."""
    if spacing == "linspace":
        chosen = np.linspace(0, TRAIN_STEPS - 1, steps).round()[::-1]
    elif spacing == "leading":
        chosen = np.arange(steps)[::-1] * float(TRAIN_STEPS // steps)
    elif spacing == "trailing":
        # Not arange(1000, 0, -ratio): rounding would give it one step too many at times.
        chosen = np.round(TRAIN_STEPS - np.arange(steps) * (TRAIN_STEPS / steps)) - 1
    else:
        raise UserError(f"--spacing: {spacing!r} is unknown; use {', '.join(SPACINGS)}")
    timesteps: npt.NDArray[np.int64] = chosen.astype(np.int64)
    return timesteps


def _refuse(name: str, options: SamplerOptions, *unused: str) -> None:
    for option in unused:
        if getattr(options, option) is not None:
            raise UserError(f"--{option} does not apply to --sampler {name}; leave it out")


def _require_prediction(name: str, options: SamplerOptions, prediction: str) -> None:
    if options.prediction not in (None, prediction):
        raise UserError(
            f"--prediction: --sampler {name} takes {prediction}, not {options.prediction}"
        )
