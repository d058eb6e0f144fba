"""Modules around diffusers models whose forward takes more than tensors of the latent's shape.

Each takes a latent video and makes of it what the model's pipeline makes before it calls the model:
packed tokens, rotary tables, positions. So the exported file takes the latent, at any size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class CogVideoXRotary(_Wrapper):
    """CogVideoX 5b: the rotary tables of its first version, for the model's own sample size.

    The pipeline's crop of the grid is a rounded ratio, which no graph can hold for every size; at
    the model's own aspect ratio it is the whole base grid.
    """

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> Tensor:
        """The prediction ``[b, f, c, h, w]``."""
        _, frames, _, height, width = hidden_states.shape
        config: Any = self.model.config
        p = config.patch_size
        rotary = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=((0, 0), (config.sample_height // p, config.sample_width // p)),
            grid_size=(height // p, width // p),
            temporal_size=frames,
        )
        out = self.model(
            hidden_states,
            encoder_hidden_states,
            timestep,
            image_rotary_emb=rotary,
            return_dict=False,
        )
        return cast(Tensor, out[0])


class Allegro(_Wrapper):
    """Allegro with the rotary tables and positions of its pipeline."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """The prediction ``[b, c, f, h, w]``."""
        _, _, frames, height, width = hidden_states.shape
        config: Any = self.model.config
        size = (height // config.patch_size, width // config.patch_size)
        tables = get_3d_rotary_pos_embed_allegro(
            embed_dim=config.attention_head_dim,
            crops_coords=((0, 0), size),
            grid_size=size,
            temporal_size=frames,
            interpolation_scale=(
                config.interpolation_scale_t,
                config.interpolation_scale_h,
                config.interpolation_scale_w,
            ),
            device=hidden_states.device,
        )
        positions = torch.cartesian_prod(*(grid.to(torch.long) for grid in tables[3:]))
        grids = positions.reshape(-1, 3).transpose(0, 1).reshape(3, 1, -1).contiguous()
        out = self.model(
            hidden_states,
            encoder_hidden_states,
            timestep,
            encoder_attention_mask=encoder_attention_mask,
            image_rotary_emb=(tables[:3], tuple(grids)),
            return_dict=False,
        )
        return cast(Tensor, out[0])


class Ltx(_Wrapper):
    """LTX-Video on the latent video; its tokens are packed and unpacked here (patch size 1)."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """The prediction ``[b, c, f, h, w]``."""
        frames, height, width = hidden_states.shape[2:]
        out = self.model(
            hidden_states.flatten(2).transpose(1, 2),
            encoder_hidden_states,
            timestep,
            encoder_attention_mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(1 / 25 * 8, 32, 32),
            return_dict=False,
        )
        return cast(Tensor, out[0].transpose(1, 2).unflatten(2, (frames, height, width)))


class Ltx2(_Wrapper):
    """LTX-2 on the latent video and the latent audio ``[b, tokens, c]``."""

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        audio_encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The predictions: video ``[b, c, f, h, w]``, audio ``[b, tokens, c]``."""
        frames, height, width = hidden_states.shape[2:]
        video, audio = self.model(
            hidden_states.flatten(2).transpose(1, 2),
            audio_hidden_states,
            encoder_hidden_states,
            audio_encoder_hidden_states,
            timestep,
            encoder_attention_mask=encoder_attention_mask,
            audio_encoder_attention_mask=encoder_attention_mask,
            num_frames=frames,
            height=height,
            width=width,
            audio_num_frames=audio_hidden_states.shape[1],
            return_dict=False,
        )
        return video.transpose(1, 2).unflatten(2, (frames, height, width)), audio


class Kandinsky5(_Wrapper):
    """Kandinsky 5 with the positions of its pipeline; the latent is ``[b, f, h, w, c]``."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        pooled_projections: Tensor,
    ) -> Tensor:
        """The prediction ``[b, f, h, w, c]``."""
        _, frames, height, width, _ = hidden_states.shape
        positions = [torch.arange(size) for size in (frames, height // 2, width // 2)]
        return cast(
            Tensor,
            self.model(
                hidden_states,
                encoder_hidden_states,
                timestep,
                pooled_projections,
                positions,
                torch.arange(encoder_hidden_states.shape[1]),
                return_dict=False,
            ),
        )
