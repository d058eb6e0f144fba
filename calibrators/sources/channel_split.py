"""Which channels of a denoiser's input and output belong to the sampled latent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class ChannelSplit:
    """How the latent input's channels relate to the prediction's.

    Three layouts are known, with I input and O output channels on the one axis that differs:

    - I = O: everything is the latent;
    - O = 2 I: the model also predicts a variance (learned sigma); the first half is used;
    - O < I: the first O input channels are the latent, the others are conditioning that stays
      as it was drawn (image latents of Stable Video Diffusion, masks of Wan).

    Attributes:
        axis: The channel axis.
        channels: Channels of the latent.
        conditioning: The input's other channels, or None.
    """

    axis: int
    channels: int
    conditioning: Float32Array | None

    @classmethod
    def between(cls, noise: Float32Array, output: tuple[int, ...]) -> ChannelSplit:
        """The split of an input drawn as ``noise`` for a model that returns shape ``output``.

        Raises:
            UserError: the two shapes are in none of the known relations.
        """
        differing = [
            axis
            for axis, (before, after) in enumerate(zip(noise.shape, output, strict=False))
            if before != after
        ]
        if noise.ndim == len(output) and not differing:
            return cls(0, noise.shape[0], None) if noise.ndim else cls(0, 0, None)
        if noise.ndim == len(output) and len(differing) == 1:
            axis = differing[0]
            before, after = noise.shape[axis], output[axis]
            if after == 2 * before:
                return cls(axis, before, None)
            if after < before:
                return cls(axis, after, _part(noise, axis, after, before))
        raise UserError(
            f"the model returns shape {list(output)} for a latent of shape {list(noise.shape)}, "
            "which no sampler can step; record its trajectories in .npz files instead"
        )

    def own(self, noise: Float32Array) -> Float32Array:
        """The latent's channels of a full input."""
        return _part(noise, self.axis, 0, self.channels)

    def prediction(self, output: Float32Array) -> Float32Array:
        """The latent's channels of a model output."""
        return _part(output, self.axis, 0, self.channels)

    def join(self, latent: Float32Array) -> Float32Array:
        """The full input: latent, then conditioning."""
        if self.conditioning is None:
            return latent
        return np.concatenate([latent, self.conditioning], axis=self.axis)


def _part(array: Float32Array, axis: int, start: int, stop: int) -> Float32Array:
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]
