"""Calibration on the model's own denoising trajectories; nothing is recorded beforehand.

Noise is denoised by a sampler through the float model, and every call on the way is a calibration
call, so that the timesteps are covered uniformly as in Q-Diffusion (arXiv 2302.04304, section 4.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from qvd_trt.calibrators.sources.calls import (
    Denoise,
    DenoiserCall,
    Wanted,
    every_trajectory,
)
from qvd_trt.calibrators.sources.channel_split import ChannelSplit
from qvd_trt.calibrators.sources.conditioning import Conditioning
from qvd_trt.calibrators.sources.samplers import Sampler, SamplerOptions, build_sampler
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec, check_inputs

DIVERGED = 10.0
"""Root mean square of a latent from which on its trajectory has diverged; 1 is usual."""


@dataclass(frozen=True, slots=True, eq=False)
class SelfSamplingOptions:
    """How to sample.

    Attributes:
        sampler: ``ddim``, ``flow`` or ``edm``.
        prediction: See :class:`SamplerOptions`; None for the sampler's usual one.
        schedule: See :class:`SamplerOptions`.
        spacing: See :class:`SamplerOptions`.
        shift: See :class:`SamplerOptions`.
        steps: Denoising steps of each trajectory.
        samples: Number of trajectories.
        guidance: Classifier-free guidance scale (arXiv 2207.12598); None or 1 for none. With
            guidance every step makes two calls, and ``extra_inputs`` must hold ``uncond_NAME``
            for at least one input NAME.
        seed: Trajectory ``i`` depends on (seed, i) only, not on how many there are.
        extra_inputs: Arrays by input name, of the input's dtype: a row per sample, cycled, on the
            batch axis or on a leading axis more (see :class:`Conditioning`). An array named as the
            latent or the timestep only gives its shape.
        shapes: Concrete shapes by input name, where the graph's are symbolic.
    """

    sampler: str = "ddim"
    prediction: str | None = None
    schedule: str | None = None
    spacing: str | None = None
    shift: float | None = None
    steps: int = 20
    samples: int = 4
    guidance: float | None = None
    seed: int = 0
    extra_inputs: Mapping[str, AnyArray] | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def defaults_used(self) -> str | None:
        """The default settings, when neither the sampler nor what it goes by was chosen.

        Raises:
            UserError: the number of steps is not supported.
        """
        usual = SelfSamplingOptions()
        chosen = ("sampler", "prediction", "schedule", "spacing", "shift")
        if any(getattr(self, name) != getattr(usual, name) for name in chosen):
            return None
        about = build_sampler(self.sampler, self.sampler_options()).about
        inputs = "" if self.extra_inputs else ", other inputs than latent and timestep drawn"
        return (
            f"sampler {self.sampler} ({about}), {self.steps} steps, {self.samples} samples, "
            f"seed {self.seed}{inputs}"
        )

    def given(self) -> tuple[str, ...]:
        """The options that differ from their defaults, as commands write them."""
        usual = SelfSamplingOptions()
        plain = (item.name for item in fields(self) if item.name not in ("extra_inputs", "shapes"))
        found = [f"--{name}" for name in plain if getattr(self, name) != getattr(usual, name)]
        arrays = (("--inputs", self.extra_inputs), ("--shapes", self.shapes))
        return (*found, *(name for name, value in arrays if value))

    def settings(self) -> dict[str, str]:
        """Every option as text, by the name that commands give it; of arrays, a digest."""
        plain = (item.name for item in fields(self) if item.name not in ("extra_inputs", "shapes"))
        arrays = hashlib.sha256()
        for name, array in sorted((self.extra_inputs or {}).items()):
            arrays.update(f"{name} {array.dtype} {array.shape}".encode())
            arrays.update(np.ascontiguousarray(array).tobytes())
        return {
            **{f"--{name}": str(getattr(self, name)) for name in plain},
            "--inputs": f"sha256:{arrays.hexdigest()}" if self.extra_inputs else "None",
            "--shapes": str(sorted((self.shapes or {}).items())),
        }

    def sampler_options(self) -> SamplerOptions:
        """What the sampler is built with."""
        return SamplerOptions(
            steps=self.steps,
            prediction=self.prediction,
            schedule=self.schedule,
            spacing=self.spacing,
            shift=self.shift,
        )

    @property
    def guided(self) -> bool:
        """Whether a step makes an unconditional call too."""
        return self.guidance is not None and self.guidance != 1.0


class LatentSize(NamedTuple):
    """Root mean square of a latent, and where it was met."""

    rms: float = 1.0
    sample: int = 0
    step: int = 0

    def divergence(self) -> str | None:
        """A warning when this largest latent is far beyond its noise, or None.

        Noise and data of the supported families have unit scale, and so has every model input in
        between. Wrong weights of the sampler let it grow by orders of magnitude.
        """
        if self.rms < DIVERGED:
            return None
        return (
            f"self-sampled trajectories diverge: the latent grows to {self.rms:.3g} times its "
            f"usual size (trajectory {self.sample}, step {self.step}), and figures on it say "
            "nothing; check that --sampler, --prediction and --schedule are those the model was "
            "trained for"
        )


class SelfSampling:
    """Noise denoised by the sampler through the float model.

    The state is kept in float32 and cast to the latent input's dtype for each call.
    """

    def __init__(self, options: SelfSamplingOptions, signature: ModelSignature) -> None:
        """Build the sampler and the inputs' shapes, and check one call's inputs.

        Raises:
            UserError: a wrong option, an extent that nobody gave, or an array that does not fit.
        """
        _check_options(options)
        self._options = options
        self._signature = signature
        self._sampler = build_sampler(options.sampler, options.sampler_options())
        self._conditioning = Conditioning(
            signature, options.extra_inputs or {}, options.shapes or {}, options.seed
        )
        if options.guided:
            self._conditioning.require_unconditional()
        self._largest = LatentSize()
        self._times = _cast_timesteps(
            self._sampler, signature.input(signature.timestep), options.sampler
        )
        self._prepare(0)

    @property
    def sampler(self) -> Sampler:
        """The sampler of every trajectory."""
        return self._sampler

    def describe(self) -> str:
        """One line for the report."""
        options = self._options
        guidance = f"guidance {options.guidance:g}" if options.guided else ""
        details = (self._sampler.about, guidance, f"seed {options.seed}")
        how = ", ".join(detail for detail in details if detail)
        return (
            f"{options.samples} self-sampled trajectories of {options.steps} {options.sampler} "
            f"steps ({how})"
        )

    def trajectories(self) -> int:
        """Number of samples."""
        return self._options.samples

    def calls(self, wanted: Wanted = every_trajectory) -> int:
        """Samples x steps, twice that under guidance."""
        samples = sum(map(wanted, range(self._options.samples)))
        return samples * self._options.steps * (2 if self._options.guided else 1)

    def settings(self) -> Mapping[str, str]:
        """Every option, and a digest of the given arrays."""
        return self._options.settings()

    def needs_predictions(self) -> bool:
        """Each step goes on from the prediction before."""
        return True

    def drawn_inputs(self) -> tuple[str, ...]:
        """Inputs that were neither given nor sampled, and so were made up; warn about them."""
        return self._conditioning.drawn

    @property
    def largest(self) -> LatentSize:
        """The largest latent of the trajectories driven so far; unit size where none is larger."""
        return self._largest

    def divergence(self) -> str | None:
        """A warning when the trajectories driven so far grew far beyond their noise, or None."""
        return self._largest.divergence()

    def drive(self, denoise: Denoise, wanted: Wanted = every_trajectory) -> None:
        """Sample the wanted trajectories.

        Raises:
            UserError: a trajectory becomes NaN or Inf, or the model's output does not fit its
                latent input.
        """
        self._largest = LatentSize()
        for sample in filter(wanted, range(self._options.samples)):
            self._drive_sample(sample, denoise)

    def _drive_sample(self, sample: int, denoise: Denoise) -> None:
        noise, variants = self._prepare(sample)
        split: ChannelSplit | None = None
        state = noise
        for index in range(self._options.steps):
            # Every sampler's first model input is unit noise, so how the channels divide can be
            # learned from the first prediction.
            latent = (
                split.join(self._sampler.scale_input(state, index)) if split is not None else noise
            )
            prediction = self._predict(denoise, latent, variants, sample, index)
            if split is None:
                split = ChannelSplit.between(noise, prediction.shape)
                state = split.own(noise) * np.float32(self._sampler.noise_scale)
            with np.errstate(over="ignore", invalid="ignore"):
                state = self._sampler.step(split.prediction(prediction), index, state)
            self._check_finite(state, sample, index)
            self._note_size(state, sample, index)

    def _prepare(self, sample: int) -> tuple[Float32Array, list[dict[str, AnyArray]]]:
        """The sample's noise, and its other inputs: conditional, then unconditional."""
        conditional = self._conditioning.inputs(sample)
        variants = [conditional]
        if self._options.guided:
            variants.append({**conditional, **self._conditioning.unconditional(sample)})
        noise = self._conditioning.noise(sample)
        for inputs in variants:
            check_inputs(
                self._complete(inputs, noise, 0), self._signature, f"--inputs, sample {sample}"
            )
        return noise, variants

    def _complete(
        self, inputs: Mapping[str, AnyArray], latent: Float32Array, index: int
    ) -> dict[str, AnyArray]:
        signature = self._signature
        time_shape = self._conditioning.shape(signature.timestep)
        with np.errstate(over="ignore"):
            cast = latent.astype(signature.input(signature.latent).dtype)
        return {
            **inputs,
            signature.latent: cast,
            signature.timestep: np.full(time_shape, self._times[index], self._times.dtype),
        }

    def _predict(
        self,
        denoise: Denoise,
        latent: Float32Array,
        variants: list[dict[str, AnyArray]],
        sample: int,
        index: int,
    ) -> Float32Array:
        predictions = []
        for position, inputs in enumerate(variants):
            step = index * len(variants) + position
            call = DenoiserCall(self._complete(inputs, latent, index), sample, step)
            predictions.append(np.asarray(denoise(call)).astype(np.float32))
        if len(predictions) == 1:
            return predictions[0]
        conditional, unconditional = predictions
        scale = np.float32(self._options.guidance)
        guided: Float32Array = unconditional + scale * (conditional - unconditional)
        return guided

    def _note_size(self, state: Float32Array, sample: int, index: int) -> None:
        """Keep the greatest scale of what the model is given next, or of the last state."""
        last = index + 1 == self._options.steps
        given = state if last else self._sampler.scale_input(state, index + 1)
        if given.size:
            rms = float(np.sqrt(np.mean(np.square(given, dtype=np.float64))))
            self._largest = max(self._largest, LatentSize(rms, sample, index))

    def _check_finite(self, state: Float32Array, sample: int, index: int) -> None:
        if not np.isfinite(state).all():
            raise UserError(
                f"self-sampled trajectory {sample} holds NaN or Inf after step {index} (timestep "
                f"{self._times[index]}); check that --sampler, --prediction and --schedule are "
                "those the model was trained for"
            )


def _check_options(options: SelfSamplingOptions) -> None:
    if options.samples < 1:
        raise UserError(f"--samples: {options.samples} is not supported; use 1 or more")
    if options.seed < 0:
        raise UserError(f"--seed: {options.seed} is not supported; use 0 or more")
    if options.guidance is not None and not np.isfinite(options.guidance):
        raise UserError(f"--guidance: {options.guidance} is not supported; use a finite number")


def _cast_timesteps(sampler: Sampler, spec: TensorSpec, name: str) -> AnyArray:
    """``[S]`` timesteps in the input's dtype, rounded where that is an integer."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        rounded = np.round(sampler.timesteps)
        if len(np.unique(rounded)) < len(np.unique(sampler.timesteps)):
            raise UserError(
                f"--sampler {name} has timesteps that coincide as {spec.dtype}, which the model's "
                f"input {spec.name!r} takes; use fewer steps or another --sampler"
            )
        return rounded.astype(dtype)
    return sampler.timesteps.astype(dtype)
