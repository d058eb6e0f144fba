"""The video transformers of diffusers, tiny; see `tests.models.video_classes`."""

from __future__ import annotations

from typing import Any

from tests.models import video_wrappers
from tests.models.architectures import Denoiser
from tests.models.tiny_denoiser import HEADS, LATENT, STEP, TEXT, bare, inside, tiny_denoiser


def latte() -> Denoiser:
    model = bare(
        "LatteTransformer3DModel",
        **HEADS,
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
    return tiny_denoiser(
        "LatteTransformer3DModel",
        model,
        {
            "hidden_states": ("float", LATENT),
            "timestep": STEP,
            "encoder_hidden_states": TEXT,
        },
        fixed={"f": 4},
    )


def _cogvideox(name: str, rotary: bool) -> Denoiser:
    model = bare(
        "CogVideoXTransformer3DModel",
        **HEADS,
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
    return tiny_denoiser(
        name,
        inside(video_wrappers.CogVideoXRotary, model) if rotary else model,
        {
            "hidden_states": ("float", ("b", "f", 4, "h", "w")),
            "encoder_hidden_states": TEXT,
            "timestep": STEP,
        },
        fixed={} if rotary else {"s": 7},
    )


def cogvideox_2b() -> Denoiser:
    return _cogvideox("CogVideoXTransformer3DModel (2b)", rotary=False)


def cogvideox_5b() -> Denoiser:
    return _cogvideox("CogVideoXTransformer3DModel (5b)", rotary=True)


_WAN: dict[str, Any] = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "rope_max_seq_len": 32,
}
_DIT_INPUTS = {
    "hidden_states": ("float", LATENT),
    "timestep": STEP,
    "encoder_hidden_states": TEXT,
}


def wan() -> Denoiser:
    model = bare("WanTransformer3DModel", **_WAN, num_layers=1)
    return tiny_denoiser("WanTransformer3DModel", model, _DIT_INPUTS)


def wan_vace() -> Denoiser:
    model = bare(
        "WanVACETransformer3DModel", **_WAN, num_layers=2, vace_layers=[0], vace_in_channels=8
    )
    control = ("float", ("b", 8, "f", "h", "w"))
    return tiny_denoiser(
        "WanVACETransformer3DModel", model, {**_DIT_INPUTS, "control_hidden_states": control}
    )


def ltx() -> Denoiser:
    model = bare(
        "LTXVideoTransformer3DModel",
        **HEADS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=64,
        num_layers=1,
        caption_channels=32,
    )
    return tiny_denoiser(
        "LTXVideoTransformer3DModel",
        inside(video_wrappers.Ltx, model),
        {**_DIT_INPUTS, "encoder_attention_mask": ("mask", ("b", "s"))},
    )


def ltx2() -> Denoiser:
    model = bare(
        "LTX2VideoTransformer3DModel",
        **HEADS,
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
    return tiny_denoiser(
        "LTX2VideoTransformer3DModel",
        inside(video_wrappers.Ltx2, model),
        {
            "hidden_states": ("float", LATENT),
            "audio_hidden_states": ("float", ("b", "a", 4)),
            "encoder_hidden_states": TEXT,
            "audio_encoder_hidden_states": TEXT,
            "timestep": STEP,
            "encoder_attention_mask": ("mask", ("b", "s")),
        },
        outputs=2,
    )


_POOLED = ("float", ("b", 32))
TEXT_MASK = ("mask", ("b", "s"))


def hunyuan() -> Denoiser:
    model = bare(
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
    return tiny_denoiser(
        "HunyuanVideoTransformer3DModel",
        model,
        {
            **_DIT_INPUTS,
            "encoder_attention_mask": TEXT_MASK,
            "pooled_projections": _POOLED,
            "guidance": ("float", ("b",)),
        },
    )


def hunyuan15() -> Denoiser:
    model = bare(
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
    return tiny_denoiser(
        "HunyuanVideo15Transformer3DModel",
        model,
        {
            **_DIT_INPUTS,
            "timestep": ("float", ("b",)),
            "encoder_attention_mask": TEXT_MASK,
            "encoder_hidden_states_2": ("float", ("b", "a", 32)),
            "encoder_attention_mask_2": ("mask", ("b", "a")),
            "image_embeds": ("float", ("b", 3, 32)),
        },
    )


def mochi() -> Denoiser:
    model = bare(
        "MochiTransformer3DModel",
        **HEADS,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=16,
    )
    return tiny_denoiser(
        "MochiTransformer3DModel",
        model,
        {**_DIT_INPUTS, "encoder_attention_mask": TEXT_MASK},
        fixed={"b": 2},
    )


def allegro() -> Denoiser:
    model = bare(
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
    return tiny_denoiser(
        "AllegroTransformer3DModel",
        inside(video_wrappers.Allegro, model),
        {**_DIT_INPUTS, "encoder_attention_mask": TEXT_MASK},
    )


def sana() -> Denoiser:
    model = bare(
        "SanaVideoTransformer3DModel",
        **HEADS,
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
    return tiny_denoiser(
        "SanaVideoTransformer3DModel",
        model,
        {**_DIT_INPUTS, "encoder_attention_mask": TEXT_MASK},
    )


def cosmos() -> Denoiser:
    model = bare(
        "CosmosTransformer3DModel",
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=32,
        adaln_lora_dim=8,
        max_size=(8, 16, 16),
        concat_padding_mask=False,
    )
    return tiny_denoiser("CosmosTransformer3DModel", model, _DIT_INPUTS)


def kandinsky5() -> Denoiser:
    model = bare(
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
    return tiny_denoiser(
        "Kandinsky5Transformer3DModel",
        inside(video_wrappers.Kandinsky5, model),
        {
            **_DIT_INPUTS,
            "hidden_states": ("float", ("b", "f", "h", "w", 4)),
            "timestep": ("float", ("b",)),
            "pooled_projections": _POOLED,
        },
    )


def easyanimate() -> Denoiser:
    model = bare(
        "EasyAnimateTransformer3DModel",
        **HEADS,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=16,
        text_embed_dim=32,
    )
    return tiny_denoiser(
        "EasyAnimateTransformer3DModel", model, _DIT_INPUTS, fixed={"h": 8, "w": 12}
    )


def anyflow() -> Denoiser:
    model = bare("AnyFlowTransformer3DModel", **_WAN, num_layers=1)
    return tiny_denoiser(
        "AnyFlowTransformer3DModel",
        model,
        {
            "hidden_states": ("float", ("b", "f", 4, "h", "w")),
            "timestep": ("step", ("b", "f")),
            "r_timestep": ("step", ("b", "f")),
            "encoder_hidden_states": TEXT,
        },
    )
