"""diffusers models as modules that take and return plain tensors, to be exported; needs torch."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class AnimateDiffDenoiser(nn.Module):
    """A ``UNetMotionModel``, called with one context per clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The prediction ``[b, c, f, h, w]``."""
        # The UNet takes one context per frame ([b * f, s, c]), as its pipeline passes it.
        context = encoder_hidden_states.repeat_interleave(sample.shape[2], dim=0)
        return cast(Tensor, self.model(sample, timestep, context, return_dict=False)[0])


class DitDenoiser(nn.Module):
    """A diffusion transformer such as ``WanTransformer3DModel``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        """The prediction, of the latent's shape."""
        out = self.model(hidden_states, timestep, encoder_hidden_states, return_dict=False)
        return cast(Tensor, out[0])
