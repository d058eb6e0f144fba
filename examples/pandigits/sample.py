"""Samples PanDigits clips with a drop-in denoiser and a diffusers scheduler.

    python -m examples.pandigits.sample --model examples/pandigits_unet/model.onnx -o out/clips.gif

``--model`` is an ONNX file, float or QDQ, or a TensorRT engine. The output is an animated ``.gif``
of all clips, or a ``.png`` contact sheet with a row of frames per clip.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from examples.pandigits.denoiser import make_scheduler
from examples.pandigits.onnx_sampling import (
    CLIP_SHAPE,
    GUIDANCE,
    STEPS,
    Labels,
    balanced_labels,
    load_tokens,
)
from qvd_trt.export.errors import UserError
from qvd_trt.export.ort_session import CPU, CUDA
from qvd_trt.tools.cli.common import run_command
from qvd_trt.tools.denoisers.graph_denoiser import GraphDenoiser
from qvd_trt.tools.denoisers.ort_denoiser import OrtDenoiser
from qvd_trt.tools.denoisers.trt_denoiser import TrtDenoiser

PixelArray = npt.NDArray[np.uint8]

FRAME_MILLISECONDS: Final = 80
SHEET_FRAMES: Final = (0, 3, 6, 9, 12, 15)
ZOOM: Final = 3


def condition_tokens(folder: Path, labels: Sequence[Labels]) -> tuple[Tensor, Tensor]:
    """Conditional tokens of the labels and the null tokens, each [n, 3, 64]."""
    conditional, null = load_tokens(folder, labels)
    return torch.from_numpy(conditional), torch.from_numpy(null)


def sample_clip(
    denoiser: GraphDenoiser,
    tokens: Tensor,
    null_tokens: Tensor,
    seed: int,
    *,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
) -> Tensor:
    """One clip [3, 16, 32, 32] in [-1, 1]; its noise is that of ``ClipSampler`` for the seed.

    Args:
        denoiser: Called as a pipeline calls its UNet, once a step with a batch of two under
            guidance.
        tokens: [1, 3, 64].
        null_tokens: [1, 3, 64].
        seed: Of the noise.
        guidance: 1 for none.
        steps: DDIM steps.
    """
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps, device=denoiser.device)
    noise = np.random.default_rng(seed).standard_normal((1, *CLIP_SHAPE), np.float32)
    state = torch.from_numpy(noise).to(denoiser.device)
    guided = guidance != 1
    context = torch.cat([null_tokens, tokens]) if guided else tokens
    context = context.to(denoiser.device)
    for timestep in scheduler.timesteps:
        latent = torch.cat([state, state]) if guided else state
        (prediction,) = denoiser(latent, timestep, encoder_hidden_states=context, return_dict=False)
        if guided:
            free, conditional = prediction.chunk(2)
            prediction = free + guidance * (conditional - free)
        state = scheduler.step(prediction, timestep, state).prev_sample
    return state[0].clamp(-1, 1).cpu()


def to_pixels(clips: Tensor) -> PixelArray:
    """[n, 3, f, h, w] in [-1, 1] -> [n, f, h, w, 3] bytes."""
    pixels: PixelArray = ((clips + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    return pixels


def write_sheet(pixels: PixelArray, path: Path) -> None:
    """A row of frames per clip, with white lines between them."""
    framed = np.pad(
        pixels[:, SHEET_FRAMES], ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255
    )
    rows, frames, height, width, channels = framed.shape
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, frames * width, channels)
    _zoomed(sheet).save(path)


def write_gif(pixels: PixelArray, path: Path) -> None:
    """All clips side by side, endlessly repeated."""
    first, *others = [
        _zoomed(np.concatenate(list(frame), axis=1)) for frame in pixels.swapaxes(0, 1)
    ]
    first.save(path, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


def _zoomed(pixels: PixelArray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)


WRITERS: Final[dict[str, Callable[[PixelArray, Path], None]]] = {
    ".gif": write_gif,
    ".png": write_sheet,
}


def open_denoiser(model: Path, provider: str, plugin: Path | None) -> GraphDenoiser:
    """An ONNX file by ONNX Runtime, anything else as an engine."""
    if model.suffix == ".onnx":
        return OrtDenoiser(model, CUDA if provider == "cuda" else CPU)
    return TrtDenoiser(model, plugin)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help=".onnx file or engine")
    parser.add_argument("--folder", type=Path, default=Path("examples/pandigits_unet"))
    parser.add_argument("-o", "--output", type=Path, required=True, help=".gif or .png")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plugin", type=Path, help="HTDQ plugin library, if the engine needs it")
    return run_command("sample", lambda: _sample(parser.parse_args()))


def _sample(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.suffix not in WRITERS:
        raise UserError(f"{output} must end in {' or '.join(WRITERS)}")
    for option, least in (("clips", 1), ("steps", 1), ("seed", 0)):
        if getattr(arguments, option) < least:
            raise UserError(f"--{option} must be {least} or more")
    denoiser = open_denoiser(arguments.model, arguments.provider, arguments.plugin)
    tokens, null_tokens = condition_tokens(arguments.folder, balanced_labels(arguments.clips))
    clips = [
        sample_clip(
            denoiser,
            tokens[i : i + 1],
            null_tokens[i : i + 1],
            arguments.seed + i,
            guidance=arguments.guidance,
            steps=arguments.steps,
        )
        for i in range(len(tokens))
    ]
    WRITERS[output.suffix](to_pixels(torch.stack(clips)), output)
    print(f"{output}: {len(clips)} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
