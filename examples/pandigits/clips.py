"""The PanDigits data set: a digit bouncing over a panned photograph.

Clips are 16 frames of 32 x 32 RGB in [-1, 1], generated on the device from two small tables: the
digit sprites of ``sklearn.datasets.load_digits`` and eight photographs inside the scikit-image
wheel. A clip has three labels: the digit, the direction in which the digit starts to move, and the
photograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FRAMES: Final = 16
SIZE: Final = 32
SPRITE: Final = 16
"""Side of the upscaled digit, in pixels; sprites are 8 x 8 in the source."""

PHOTOGRAPH: Final = 56
"""Side of the shrunk photographs over which the 32 x 32 window pans."""

BACKGROUNDS: Final = (
    "astronaut", "cat", "coffee", "colorwheel", "hubble_deep_field", "immunohistochemistry",
    "retina", "grass",
)  # fmt: skip
HELD_OUT_EVERY: Final = 5
"""Every fifth sprite of the source is held out."""

STRAIGHT_STEPS: Final = 7
"""Frame steps before the first bounce can happen, so that the starting direction is visible."""

SPEED: Final = (0.9, 1.3)
"""Digit speed along each moving axis, pixels a frame."""


@dataclass(frozen=True, slots=True)
class ClipSource:
    """The tables clips are drawn from, all on one device."""

    sprites: Tensor
    """[n, 1, 16, 16] coverage in [0, 1]."""
    sprite_digits: Tensor
    """[n] integers in [0, 10)."""
    photographs: Tensor
    """[8, 3, 56, 56] in [-1, 1], darkened so that digits stand out."""


def load_source(*, held_out: bool, device: torch.device | str = "cpu") -> ClipSource:
    """Builds the tables; train and held-out sources share photographs but no sprite."""
    from skimage import data as photographs
    from sklearn.datasets import load_digits

    digits = load_digits()
    index = np.arange(len(digits.target))
    chosen = (index % HELD_OUT_EVERY == 0) == held_out
    raw = torch.from_numpy(digits.images[chosen]).float()[:, None] / 16
    smooth = functional.interpolate(raw, size=(SPRITE, SPRITE), mode="bicubic", align_corners=False)
    sprites = ((smooth - 0.25) * 2.2).clamp(0, 1)
    images = []
    for name in BACKGROUNDS:
        image = torch.from_numpy(np.ascontiguousarray(getattr(photographs, name)()))
        if image.ndim == 2:
            image = image[..., None].expand(-1, -1, 3)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[top : top + side, left : left + side, :3].permute(2, 0, 1)[None].float()
        images.append(
            functional.interpolate(square, size=(PHOTOGRAPH, PHOTOGRAPH), mode="area")[0] / 255
        )
    return ClipSource(
        sprites=sprites.to(device),
        sprite_digits=torch.from_numpy(digits.target[chosen]).to(device),
        photographs=(torch.stack(images) * 1.1 - 1).to(device),
    )


def prototypes(source: ClipSource) -> ClipSource:
    """One sprite a digit, the one nearest to its digit's mean: what the denoiser learns to draw."""
    nearest = []
    for digit in range(10):
        members = torch.nonzero(source.sprite_digits == digit)[:, 0]
        sprites = source.sprites[members]
        distance = (sprites - sprites.mean(dim=0)).square().sum(dim=(1, 2, 3))
        nearest.append(members[distance.argmin()])
    chosen = torch.stack(nearest)
    return replace(
        source, sprites=source.sprites[chosen], sprite_digits=source.sprite_digits[chosen]
    )


def bounce(position: Tensor, span: float) -> Tensor:
    """Folds an unbounded coordinate into [0, span] by reflection at both ends."""
    return span - (position.remainder(2 * span) - span).abs()


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high) on the generator's device."""
    numbers = torch.rand(shape, generator=generator, device=generator.device)
    return numbers * (high - low) + low


def digit_path(direction: Tensor, generator: torch.Generator) -> Tensor:
    """Top-left corners [b, 16, 2] (x, y) in pixels of digits starting towards ``direction`` [b].

    Direction k points at k * 45 degrees (0 right, 2 down); both axes move at the same speed on
    diagonals.
    """
    batch = direction.shape[0]
    span = float(SIZE - SPRITE)
    angle = direction * (math.pi / 4)
    heading = torch.stack([angle.cos(), angle.sin()], dim=-1).round()  # [b, 2] of -1, 0, 1
    velocity = heading * uniform((batch, 1), *SPEED, generator)
    reach = velocity * STRAIGHT_STEPS
    low, high = (-reach).clamp(min=0), span - reach.clamp(min=0)
    start = low + (high - low) * uniform((batch, 2), 0, 1, generator)
    time = torch.arange(FRAMES, device=direction.device, dtype=torch.float32)
    return bounce(start[:, None] + velocity[:, None] * time[:, None], span)


def window_path(batch: int, generator: torch.Generator) -> Tensor:
    """Top-left corners [b, 16, 2] of the window panned over the photograph, at constant speed."""
    span = float(PHOTOGRAPH - SIZE)
    ends = uniform((2, batch, 1, 2), 0, span, generator)
    start, end = ends[0], ends[1]
    time = torch.linspace(0, 1, FRAMES, device=generator.device)[:, None]
    return start + (end - start) * 0.6 * time


def crop(images: Tensor, corners: Tensor) -> Tensor:
    """Bilinear 32 x 32 windows of images [b, c, s, s] at corners [b, f, 2] -> [b, c, f, 32, 32].

    What lies outside an image is zero.
    """
    batch, channels, side, _ = images.shape
    frames = corners.shape[1]
    pixel = torch.arange(SIZE, device=images.device) + 0.5
    x = (corners[..., 0, None] + pixel) * (2 / side) - 1  # [b, f, 32]
    y = (corners[..., 1, None] + pixel) * (2 / side) - 1
    grid = torch.stack(
        [
            x[:, :, None, :].expand(-1, -1, SIZE, -1),
            y[:, :, :, None].expand(-1, -1, -1, SIZE),
        ],
        dim=-1,
    ).reshape(batch, frames * SIZE, SIZE, 2)
    windows = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return windows.reshape(batch, channels, frames, SIZE, SIZE)


def digit_colour(batch: int, generator: torch.Generator) -> Tensor:
    """Bright colours [b, 3] in [-1, 1]: one channel at most is lowered, the others near white."""
    colour = uniform((batch, 3), 0.85, 1.0, generator)
    lowered = uniform((batch, 1), 0, 3, generator).long()
    amount = uniform((batch, 1), 0.0, 0.9, generator)
    return colour.scatter_add(1, lowered, -amount)


def draw_clips(source: ClipSource, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips [b, 3, 16, 32, 32] in [-1, 1] and labels [b, 3] (digit, direction, background)."""
    device = generator.device
    sprite = torch.randint(len(source.sprite_digits), (batch,), generator=generator, device=device)
    direction = torch.randint(8, (batch,), generator=generator, device=device)
    background = torch.randint(len(BACKGROUNDS), (batch,), generator=generator, device=device)
    coverage = crop(source.sprites[sprite], -digit_path(direction, generator))
    scene = crop(source.photographs[background], window_path(batch, generator))
    colour = digit_colour(batch, generator)[:, :, None, None, None]
    clips = scene + coverage * (colour - scene)
    labels = torch.stack([source.sprite_digits[sprite], direction, background], dim=1)
    return clips.clamp(-1, 1), labels
