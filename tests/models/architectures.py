"""Small random-weight video denoisers, one of each family the project supports.

Every builder returns a `Denoiser`: a torch module whose forward takes the diffusers argument names
and returns one tensor, the inputs to export it with, further inputs to check it at, and the axes
that stay dynamic. The inner dimensions are 32 or more, so that INT8 kernels would apply, and norm
scales and biases are drawn at random, so that no two initializers are equal by accident.

Needs torch and diffusers: import this module only in tests that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import (
    LatteTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from benchmarks.real_size.denoiser_modules import AnimateDiffDenoiser, DitDenoiser


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A module ready for `qvd_trt.export.from_torch.export_denoiser`.

    `example_inputs` name the arguments of `module.forward` in order; `verify_inputs` hold batch 1
    and batch 2 at other shapes; `dynamic_dims` maps an input's name to {axis: symbol}.
    """

    name: str
    module: nn.Module
    example_inputs: dict[str, Tensor]
    verify_inputs: tuple[dict[str, Tensor], ...]
    dynamic_dims: Mapping[str, Mapping[int, str]]
    output_names: tuple[str, ...] = ("out",)


class _SvdDenoiser(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
    ) -> Tensor:
        out = self.model(sample, timestep, encoder_hidden_states, added_time_ids, return_dict=False)
        return cast(Tensor, out[0])


def wan(seed: int = 0) -> Denoiser:
    """Wan-like DiT: 2 layers, 2 heads x 32, patch (1, 2, 2), rotary positions.

    hidden_states float32 [b, 16, f, h, w] (h, w even), timestep int64 [b],
    encoder_hidden_states float32 [b, s, 48]; out float32 [b, 16, f, h, w].
    """

    def build() -> nn.Module:
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=16,
            out_channels=16,
            text_dim=48,
            freq_dim=64,
            ffn_dim=128,
            num_layers=2,
            rope_max_seq_len=32,
        )
        return DitDenoiser(model)

    def inputs(b: int, f: int, h: int, w: int, s: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {
            "hidden_states": torch.randn(b, 16, f, h, w, generator=rng),
            "timestep": torch.randint(0, 1000, (b,), generator=rng),
            "encoder_hidden_states": torch.randn(b, s, 48, generator=rng),
        }

    rng = torch.Generator().manual_seed(seed + 1)
    return Denoiser(
        name="wan",
        module=seeded(build, seed),
        example_inputs=inputs(2, 3, 8, 12, 7, rng),
        verify_inputs=(inputs(1, 2, 4, 6, 5, rng), inputs(2, 4, 12, 8, 11, rng)),
        dynamic_dims={
            "hidden_states": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "tokens"},
        },
    )


def svd(seed: int = 0) -> Denoiser:
    """Stable-Video-Diffusion-like UNet: channels (32, 64), spatio-temporal blocks.

    Attention in the first down block and the mid block only, which halves the export time.
    sample float32 [b, f, 8, h, w] (h, w even), timestep float32 [], encoder_hidden_states float32
    [b, 1, 32], added_time_ids float32 [b, 3]; out float32 [b, f, 4, h, w].
    """

    def build() -> nn.Module:
        model = UNetSpatioTemporalConditionModel(
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
            block_out_channels=(32, 64),
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            layers_per_block=1,
            cross_attention_dim=32,
            num_attention_heads=(2, 2),
            num_frames=4,
        )
        return _SvdDenoiser(model)

    def inputs(b: int, f: int, h: int, w: int, rng: torch.Generator) -> dict[str, Tensor]:
        ids = torch.tensor([6.0, 127.0, 0.02]) * torch.rand(b, 3, generator=rng)
        return {
            "sample": torch.randn(b, f, 8, h, w, generator=rng),
            "timestep": torch.randn((), generator=rng),  # 0.25 * log(sigma)
            "encoder_hidden_states": torch.randn(b, 1, 32, generator=rng),
            "added_time_ids": ids,
        }

    rng = torch.Generator().manual_seed(seed + 1)
    return Denoiser(
        name="svd",
        module=seeded(build, seed),
        example_inputs=inputs(2, 3, 8, 12, rng),
        verify_inputs=(inputs(1, 4, 4, 8, rng), inputs(2, 5, 12, 8, rng)),
        dynamic_dims={
            "sample": {0: "batch", 1: "frames", 3: "height", 4: "width"},
            "encoder_hidden_states": {0: "batch"},
            "added_time_ids": {0: "batch"},
        },
    )


def latte(seed: int = 0) -> Denoiser:
    """Latte-like DiT: 2 + 2 layers, 2 heads x 32, patch 2; frames and size are fixed.

    Its position tables are baked for 4 frames of 8 x 8, so only batch and tokens are dynamic.
    hidden_states float32 [b, 4, 4, 8, 8], timestep int64 [b], encoder_hidden_states float32
    [b, s, 48]; out float32 [b, 4, 4, 8, 8].
    """

    def build() -> nn.Module:
        model = LatteTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=64,
            attention_bias=True,
            sample_size=8,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=48,
            video_length=4,
        )
        return DitDenoiser(model)

    def inputs(b: int, s: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {
            "hidden_states": torch.randn(b, 4, 4, 8, 8, generator=rng),
            "timestep": torch.randint(0, 1000, (b,), generator=rng),
            "encoder_hidden_states": torch.randn(b, s, 48, generator=rng),
        }

    rng = torch.Generator().manual_seed(seed + 1)
    return Denoiser(
        name="latte",
        module=seeded(build, seed),
        example_inputs=inputs(2, 7, rng),
        verify_inputs=(inputs(1, 5, rng), inputs(2, 11, rng), inputs(3, 3, rng)),
        dynamic_dims={
            "hidden_states": {0: "batch"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "tokens"},
        },
    )


def animatediff(seed: int = 0) -> Denoiser:
    """AnimateDiff-like UNet: channels (32, 64), 8 groups, 4 heads, motion in the mid block.

    sample float32 [b, 4, f, h, w] (h, w even, f <= 16), timestep int64 [], encoder_hidden_states
    float32 [b, s, 32]; out float32 [b, 4, f, h, w].
    """

    def build() -> nn.Module:
        model = UNetMotionModel(
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            num_attention_heads=4,
            motion_max_seq_length=16,
            motion_num_attention_heads=4,
            use_motion_mid_block=True,
        )
        return AnimateDiffDenoiser(model)

    def inputs(b: int, f: int, h: int, w: int, s: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {
            "sample": torch.randn(b, 4, f, h, w, generator=rng),
            "timestep": torch.randint(0, 1000, (), generator=rng),
            "encoder_hidden_states": torch.randn(b, s, 32, generator=rng),
        }

    rng = torch.Generator().manual_seed(seed + 1)
    return Denoiser(
        name="animatediff",
        module=seeded(build, seed),
        example_inputs=inputs(2, 3, 8, 12, 7, rng),
        verify_inputs=(inputs(1, 4, 4, 8, 5, rng), inputs(2, 5, 12, 8, 11, rng)),
        dynamic_dims={
            "sample": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "encoder_hidden_states": {0: "batch", 1: "tokens"},
        },
    )


ARCHITECTURES: dict[str, Callable[[], Denoiser]] = {
    "wan": wan,
    "svd": svd,
    "latte": latte,
    "animatediff": animatediff,
}


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build in eval mode from `seed`, the global generator untouched; randomise norm parameters.

    Parameters that start at zero are drawn too: a gate of zero would hide what lies behind it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval().requires_grad_(False)
        for module in model.modules():
            if "Norm" in type(module).__name__:
                for name, parameter in module.named_parameters(recurse=False):
                    parameter.add_(
                        torch.randn_like(parameter), alpha=0.2 if name == "weight" else 0.1
                    )
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model
