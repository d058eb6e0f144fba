"""The video denoisers of diffusers, tiny and with random weights, as `export_denoiser` takes them.

`VIDEO_CLASSES` maps a name of docs/exporting.md to a builder. Where a model takes only tensors, it
is the bare diffusers model; else one of `tests.models.video_wrappers` stands around it.

Needs torch and diffusers: import this module only in tests that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.real_size.denoiser_modules import AnimateDiffDenoiser
from tests.models import video_wrappers
from tests.models.architectures import Denoiser, seeded

# What an input is, by one letter per axis: a size below for a capital, a symbol for a small letter.
_SYMBOLS = {"b": "batch", "f": "frames", "h": "height", "w": "width", "s": "tokens", "a": "audio"}
# Batch, frames, height, width, text tokens and audio tokens: to trace at, and to check at.
_EXAMPLE = {"b": 2, "f": 3, "h": 8, "w": 12, "s": 7, "a": 5}
_CHECKS = (
    {"b": 1, "f": 2, "h": 4, "w": 6, "s": 5, "a": 9},
    {"b": 3, "f": 5, "h": 12, "w": 8, "s": 11, "a": 6},
)
_MAKERS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "float": lambda shape, rng: torch.randn(shape, generator=rng),
    "step": lambda shape, rng: torch.randint(0, 1000, shape, generator=rng),
    "mask": lambda shape, rng: _mask(shape),
}


def _mask(shape: tuple[int, ...]) -> Tensor:
    """Ones, but for the last two tokens of the last item and one less in each before it."""
    mask = torch.ones(shape, dtype=torch.int64)
    for item in range(shape[0]):
        mask[item, shape[1] - 1 - item % 2 :] = 0
    return mask


def _denoiser(
    name: str,
    build: Callable[[], nn.Module],
    inputs: Mapping[str, tuple[str, tuple[str | int, ...]]],
    fixed: Mapping[str, int] | None = None,
    outputs: int = 1,
) -> Denoiser:
    """A `Denoiser` of `inputs`: name to (maker, axes); `fixed` has letters that stay the same."""
    fixed = fixed or {}
    rng = torch.Generator().manual_seed(1)

    def draw(sizes: Mapping[str, int]) -> dict[str, Tensor]:
        sizes = {**sizes, **fixed}
        return {
            key: _MAKERS[kind](
                tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes), rng
            )
            for key, (kind, axes) in inputs.items()
        }

    return Denoiser(
        name=name,
        module=seeded(build, 0),
        example_inputs=draw(_EXAMPLE),
        verify_inputs=tuple(draw(sizes) for sizes in _CHECKS),
        dynamic_dims={
            key: {
                number: _SYMBOLS[axis]
                for number, axis in enumerate(axes)
                if isinstance(axis, str) and axis not in fixed
            }
            for key, (_, axes) in inputs.items()
        },
        output_names=("out", "audio_out")[:outputs],
    )


def _bare(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(diffusers, name)(**config)


def _in(wrapper: type[nn.Module], build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: wrapper(build())


_LATENT = ("b", 4, "f", "h", "w")
_STEP = ("step", ("b",))
_TEXT = ("float", ("b", "s", 32))
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 32}


def animatediff() -> Denoiser:
    model = _bare(
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
    return _denoiser(
        "UNetMotionModel",
        _in(AnimateDiffDenoiser, model),
        {"sample": ("float", _LATENT), "timestep": ("step", ()), "encoder_hidden_states": _TEXT},
    )


def modelscope() -> Denoiser:
    model = _bare(
        "UNet3DConditionModel",
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
    )
    return _denoiser(
        "UNet3DConditionModel",
        model,
        {"sample": ("float", _LATENT), "timestep": _STEP, "encoder_hidden_states": _TEXT},
    )


def svd() -> Denoiser:
    model = _bare(
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
    return _denoiser(
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
    model = _bare(
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
    return _denoiser(
        "I2VGenXLUNet",
        model,
        {
            "sample": ("float", _LATENT),
            "timestep": _STEP,
            "fps": _STEP,
            "image_latents": ("float", _LATENT),
            "image_embeddings": ("float", ("b", 32)),
            "encoder_hidden_states": _TEXT,
        },
    )


def latte() -> Denoiser:
    model = _bare(
        "LatteTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=64,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=32,
        video_length=4,
    )
    return _denoiser(
        "LatteTransformer3DModel",
        model,
        {
            "hidden_states": ("float", _LATENT),
            "timestep": _STEP,
            "encoder_hidden_states": _TEXT,
        },
        fixed={"f": 4},
    )


def _cogvideox(name: str, rotary: bool) -> Denoiser:
    model = _bare(
        "CogVideoXTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=32,
        num_layers=1,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=7,
        use_rotary_positional_embeddings=rotary,
    )
    return _denoiser(
        name,
        _in(video_wrappers.CogVideoXRotary, model) if rotary else model,
        {
            "hidden_states": ("float", ("b", "f", 4, "h", "w")),
            "encoder_hidden_states": _TEXT,
            "timestep": _STEP,
        },
        fixed={} if rotary else {"s": 7},
    )


def cogvideox_2b() -> Denoiser:
    return _cogvideox("CogVideoXTransformer3DModel (2b)", rotary=False)


def cogvideox_5b() -> Denoiser:
    return _cogvideox("CogVideoXTransformer3DModel (5b)", rotary=True)


_WAN: dict[str, Any] = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "rope_max_seq_len": 32,
}
_DIT_INPUTS = {
    "hidden_states": ("float", _LATENT),
    "timestep": _STEP,
    "encoder_hidden_states": _TEXT,
}


def wan() -> Denoiser:
    model = _bare("WanTransformer3DModel", **_WAN, num_layers=1)
    return _denoiser("WanTransformer3DModel", model, _DIT_INPUTS)


def wan_vace() -> Denoiser:
    model = _bare(
        "WanVACETransformer3DModel", **_WAN, num_layers=2, vace_layers=[0], vace_in_channels=8
    )
    control = ("float", ("b", 8, "f", "h", "w"))
    return _denoiser(
        "WanVACETransformer3DModel", model, {**_DIT_INPUTS, "control_hidden_states": control}
    )


def ltx() -> Denoiser:
    model = _bare(
        "LTXVideoTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=64,
        num_layers=1,
        caption_channels=32,
    )
    return _denoiser(
        "LTXVideoTransformer3DModel",
        _in(video_wrappers.Ltx, model),
        {**_DIT_INPUTS, "encoder_attention_mask": ("mask", ("b", "s"))},
    )


def ltx2() -> Denoiser:
    model = _bare(
        "LTX2VideoTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=64,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    return _denoiser(
        "LTX2VideoTransformer3DModel",
        _in(video_wrappers.Ltx2, model),
        {
            "hidden_states": ("float", _LATENT),
            "audio_hidden_states": ("float", ("b", "a", 4)),
            "encoder_hidden_states": _TEXT,
            "audio_encoder_hidden_states": _TEXT,
            "timestep": _STEP,
            "encoder_attention_mask": ("mask", ("b", "s")),
        },
        outputs=2,
    )


_POOLED = ("float", ("b", 32))
_TEXT_MASK = ("mask", ("b", "s"))


def hunyuan() -> Denoiser:
    model = _bare(
        "HunyuanVideoTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    return _denoiser(
        "HunyuanVideoTransformer3DModel",
        model,
        {
            **_DIT_INPUTS,
            "encoder_attention_mask": _TEXT_MASK,
            "pooled_projections": _POOLED,
            "guidance": ("float", ("b",)),
        },
    )


def hunyuan15() -> Denoiser:
    model = _bare(
        "HunyuanVideo15Transformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        image_embed_dim=32,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
    )
    return _denoiser(
        "HunyuanVideo15Transformer3DModel",
        model,
        {
            **_DIT_INPUTS,
            "timestep": ("float", ("b",)),
            "encoder_attention_mask": _TEXT_MASK,
            "encoder_hidden_states_2": ("float", ("b", "a", 32)),
            "encoder_attention_mask_2": ("mask", ("b", "a")),
            "image_embeds": ("float", ("b", 3, 32)),
        },
    )


def mochi() -> Denoiser:
    model = _bare(
        "MochiTransformer3DModel",
        **_HEADS,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=16,
    )
    return _denoiser(
        "MochiTransformer3DModel",
        model,
        {**_DIT_INPUTS, "encoder_attention_mask": _TEXT_MASK},
        fixed={"b": 2},
    )


def allegro() -> Denoiser:
    model = _bare(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=48,
        sample_height=8,
        sample_width=12,
        sample_frames=3,
        caption_channels=32,
    )
    return _denoiser(
        "AllegroTransformer3DModel",
        _in(video_wrappers.Allegro, model),
        {**_DIT_INPUTS, "encoder_attention_mask": _TEXT_MASK},
    )


def sana() -> Denoiser:
    model = _bare(
        "SanaVideoTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return _denoiser(
        "SanaVideoTransformer3DModel",
        model,
        {**_DIT_INPUTS, "encoder_attention_mask": _TEXT_MASK},
    )


def cosmos() -> Denoiser:
    model = _bare(
        "CosmosTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=32,
        adaln_lora_dim=8,
        max_size=(8, 16, 16),
        concat_padding_mask=False,
    )
    return _denoiser("CosmosTransformer3DModel", model, _DIT_INPUTS)


def kandinsky5() -> Denoiser:
    model = _bare(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        model_dim=64,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(8, 12, 12),
    )
    return _denoiser(
        "Kandinsky5Transformer3DModel",
        _in(video_wrappers.Kandinsky5, model),
        {
            **_DIT_INPUTS,
            "hidden_states": ("float", ("b", "f", "h", "w", 4)),
            "timestep": ("float", ("b",)),
            "pooled_projections": _POOLED,
        },
    )


def easyanimate() -> Denoiser:
    model = _bare(
        "EasyAnimateTransformer3DModel",
        **_HEADS,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=16,
        text_embed_dim=32,
    )
    return _denoiser("EasyAnimateTransformer3DModel", model, _DIT_INPUTS, fixed={"h": 8, "w": 12})


def anyflow() -> Denoiser:
    model = _bare("AnyFlowTransformer3DModel", **_WAN, num_layers=1)
    return _denoiser(
        "AnyFlowTransformer3DModel",
        model,
        {
            "hidden_states": ("float", ("b", "f", 4, "h", "w")),
            "timestep": ("step", ("b", "f")),
            "r_timestep": ("step", ("b", "f")),
            "encoder_hidden_states": _TEXT,
        },
    )


VIDEO_CLASSES: dict[str, Callable[[], Denoiser]] = {
    build.__name__: build
    for build in (
        *(animatediff, modelscope, svd, i2vgen, latte, cogvideox_2b, cogvideox_5b, wan, wan_vace),
        *(ltx, ltx2, hunyuan, hunyuan15, mochi, allegro, sana, cosmos, kandinsky5, easyanimate),
        anyflow,
    )
}

# Why an axis is a number in the exported file, for docs/exporting.md.
NOT_DYNAMIC = {
    "svd": "one image token",
    "latte": "frames: its table of temporal positions has `video_length` of them",
    "cogvideox_2b": "tokens: text and video share one table, split at `max_text_seq_length`",
    "mochi": "batch: its attention loops over the items to drop each one's padding",
    "easyanimate": "height, width: its rotary grid is a crop rounded by Python",
}
