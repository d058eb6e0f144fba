"""The video UNets of diffusers, tiny; see `tests.models.video_classes`."""

from __future__ import annotations

from benchmarks.real_size.denoiser_modules import AnimateDiffDenoiser
from tests.models.architectures import Denoiser
from tests.models.tiny_denoiser import LATENT, STEP, TEXT, bare, inside, tiny_denoiser


def animatediff() -> Denoiser:
    model = bare(
        "UNetMotionModel",
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
    )
    return tiny_denoiser(
        "UNetMotionModel",
        inside(AnimateDiffDenoiser, model),
        {"sample": ("float", LATENT), "timestep": ("step", ()), "encoder_hidden_states": TEXT},
    )


def modelscope() -> Denoiser:
    model = bare(
        "UNet3DConditionModel",
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
    )
    return tiny_denoiser(
        "UNet3DConditionModel",
        model,
        {"sample": ("float", LATENT), "timestep": STEP, "encoder_hidden_states": TEXT},
    )


def svd() -> Denoiser:
    model = bare(
        "UNetSpatioTemporalConditionModel",
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=32,
        num_attention_heads=(2, 2),
    )
    return tiny_denoiser(
        "UNetSpatioTemporalConditionModel",
        model,
        {
            "sample": ("float", ("b", "f", 8, "h", "w")),
            "timestep": ("float", ()),
            "encoder_hidden_states": ("float", ("b", 1, 32)),
            "added_time_ids": ("float", ("b", 3)),
        },
    )


def i2vgen() -> Denoiser:
    model = bare(
        "I2VGenXLUNet",
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        num_attention_heads=None,
    )
    return tiny_denoiser(
        "I2VGenXLUNet",
        model,
        {
            "sample": ("float", LATENT),
            "timestep": STEP,
            "fps": STEP,
            "image_latents": ("float", LATENT),
            "image_embeddings": ("float", ("b", 32)),
            "encoder_hidden_states": TEXT,
        },
    )
