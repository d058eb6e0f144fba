"""The models of the latency benchmark: real dimensions, random weights.

`unet` has the dimensions of AnimateDiff v1.5-2 on Stable Diffusion 1.5 (a motion module in every
block), `wan` those of Wan 2.1 1.3B. Neither is trained: latency does not depend on the values.

Needs torch and diffusers. `make_models.py` is the command that uses this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import UNetMotionModel, WanTransformer3DModel
from torch import Tensor, nn

from benchmarks.real_size.denoiser_modules import AnimateDiffDenoiser, DitDenoiser

Shapes = Mapping[str, tuple[int, ...]]

WAN_LAYERS = 30
UNET_LAYERS = 2


@dataclass(frozen=True, slots=True)
class RealSizeModel:
    """What one model is exported, calibrated and timed with.

    Attributes:
        name: Short name, also of its files.
        build: Makes the module, with random weights.
        dtypes: Inputs in the order of `forward`, and their types.
        dynamic_dims: {input: {axis: symbol}} of the exported file.
        export_shapes: Small shapes to trace with; no two symbols have the same extent.
        verify_shapes: Other small shapes at which the file is checked against torch.
        calibration_shapes: Small shapes to calibrate with, on a CPU.
        narrow: The model that ModelOpt quantizes in place of this one (widen.py), or None.
        real_shapes: The shapes that are timed.
        sampling: Options of the self-sampled calibration.
    """

    name: str
    build: Callable[[], nn.Module]
    dtypes: Mapping[str, torch.dtype]
    dynamic_dims: Mapping[str, Mapping[int, str]]
    export_shapes: Shapes
    verify_shapes: Shapes
    calibration_shapes: Shapes
    narrow: Callable[[], RealSizeModel] | None
    real_shapes: Shapes
    sampling: Mapping[str, str | float]

    def inputs(self, shapes: Shapes, seed: int) -> dict[str, Tensor]:
        """Random inputs of these shapes: normal floats, timesteps 0 to 999."""
        rng = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shapes[name], generator=rng)
            if dtype.is_floating_point
            else torch.randint(0, 1000, shapes[name], generator=rng, dtype=dtype)
            for name, dtype in self.dtypes.items()
        }


def unet(layers: int = UNET_LAYERS, narrowing: int = 1) -> RealSizeModel:
    """AnimateDiff v1.5-2 on Stable Diffusion 1.5: 1.3 G parameters, 16 frames of 384 x 448.

    Args:
        layers: 1 for half of the resnets, attentions and motion modules in every block.
        narrowing: 2 for half the channels and half the heads, see widen.py.

    The batch of 2 is classifier-free guidance. The timestep is a vector and not a scalar, because
    ModelOpt's calibration fails on a scalar. TensorRT 8.6 cannot build latents of 64 x 64: the
    attention weights, 32 frames x 8 heads x 4096 x 4096, are more than 2^31 - 1 numbers.
    """

    def build() -> nn.Module:
        return AnimateDiffDenoiser(
            UNetMotionModel(
                layers_per_block=layers,
                block_out_channels=tuple(c // narrowing for c in (320, 640, 1280, 1280)),
                cross_attention_dim=768,
                num_attention_heads=8 // narrowing,
                motion_num_attention_heads=8 // narrowing,
                motion_max_seq_length=32,
                use_motion_mid_block=True,
            )
        )

    def shapes(b: int, f: int, h: int, w: int, s: int) -> Shapes:
        return {"sample": (b, 4, f, h, w), "timestep": (b,), "encoder_hidden_states": (b, s, 768)}

    return RealSizeModel(
        name="unet" if layers == UNET_LAYERS else f"unet{layers}",
        build=build,
        dtypes={
            "sample": torch.float32,
            "timestep": torch.int64,
            "encoder_hidden_states": torch.float32,
        },
        dynamic_dims={
            "sample": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "tokens"},
        },
        export_shapes=shapes(2, 3, 16, 24, 7),
        verify_shapes=shapes(1, 2, 16, 8, 5),
        calibration_shapes=shapes(2, 2, 48, 48, 77),
        narrow=(lambda: unet(layers, 2)) if narrowing == 1 else None,
        real_shapes=shapes(2, 16, 48, 56, 77),
        sampling={"sampler": "ddim"},
    )


def wan(layers: int = WAN_LAYERS) -> RealSizeModel:
    """Wan 2.1 1.3B: 12 heads x 128, feed-forward 8960; 17 frames of 480 x 832 (7800 tokens).

    Args:
        layers: Fewer than 30 for a smaller file; all layers are alike.
    """

    def build() -> nn.Module:
        return DitDenoiser(
            WanTransformer3DModel(
                num_attention_heads=12,
                attention_head_dim=128,
                ffn_dim=8960,
                num_layers=layers,
            )
        )

    def shapes(b: int, f: int, h: int, w: int, s: int) -> Shapes:
        return {
            "hidden_states": (b, 16, f, h, w),
            "timestep": (b,),
            "encoder_hidden_states": (b, s, 4096),
        }

    return RealSizeModel(
        name="wan",
        build=build,
        dtypes={
            "hidden_states": torch.float32,
            "timestep": torch.int64,
            "encoder_hidden_states": torch.float32,
        },
        dynamic_dims={
            "hidden_states": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "tokens"},
        },
        export_shapes=shapes(2, 3, 8, 12, 7),
        verify_shapes=shapes(1, 2, 4, 6, 5),
        calibration_shapes=shapes(1, 3, 28, 28, 512),
        narrow=None,
        real_shapes=shapes(1, 5, 60, 104, 512),
        sampling={"sampler": "flow", "shift": 5.0},
    )


MODELS: Mapping[str, Callable[..., RealSizeModel]] = {"unet": unet, "wan": wan}
