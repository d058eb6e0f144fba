"""The reference denoiser: a small diffusers ``UNetMotionModel``, and its condition embedding.

The condition embedding plays the part of a text encoder: it lives outside the denoiser, which only
sees three tokens of width 64.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from torch import Tensor, nn

CLASS_COUNTS: Final = (10, 8, 8)
"""Digit, direction and background classes, in the order of the tokens."""

CONDITION_NAMES: Final = ("digit", "direction", "background")

TOKEN_WIDTH: Final = 64
TRAIN_TIMESTEPS: Final = 1000
SAMPLING_STEPS: Final = 25
CHANNELS: Final = (32, 64, 128)


def make_unet(channels: tuple[int, int, int] = CHANNELS) -> UNetMotionModel:
    """Three resolutions, one layer a block; spatial attention at the two coarser resolutions."""
    return UNetMotionModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=(
            "DownBlockMotion",
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
        ),
        up_block_types=("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion"),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TOKEN_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )


class Denoiser(nn.Module):
    """``UNetMotionModel`` with the call that samplers and exporters need.

    Every frame attends to the same three condition tokens, so they are repeated over the frames
    here and not by the caller.
    """

    def __init__(self, channels: tuple[int, int, int] = CHANNELS) -> None:
        super().__init__()
        self.unet = make_unet(channels)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Predict v.

        sample [b, 3, f, h, w]; timestep [b], integer in [0, 1000); encoder_hidden_states
        [b, 3, 64]; returns [b, 3, f, h, w].
        """
        batch, _, frames = sample.shape[:3]
        tokens = encoder_hidden_states.unsqueeze(1).expand(batch, frames, -1, -1).flatten(0, 1)
        prediction: Tensor = self.unet(sample, timestep, tokens, return_dict=False)[0]
        return prediction


class ConditionEmbedding(nn.Module):
    """One learned token per condition; the last row of each table is the null token."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n + 1, TOKEN_WIDTH) for n in CLASS_COUNTS)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels [b, 3] integers -> tokens [b, 3, 64]."""
        return torch.stack([table(labels[:, i]) for i, table in enumerate(self.tables)], dim=1)


def null_labels(batch: int, device: torch.device | str = "cpu") -> Tensor:
    """Labels [batch, 3] of the unconditional call."""
    return torch.tensor(CLASS_COUNTS, device=device).expand(batch, 3)


def make_scheduler() -> DDIMScheduler:
    """The DDIM scheduler that training and sampling share."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=False,
    )
