"""Tiny diffusers models with random weights, and inputs drawn from a line per input.

Needs torch and diffusers: import this module only in tests that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.models.architectures import Denoiser, seeded

# One letter for each kind of axis, and the symbol that it has in the exported file.
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
    """Ones, but for the last token of each even item and the last two of each odd one."""
    mask = torch.ones(shape, dtype=torch.int64)
    for item in range(shape[0]):
        mask[item, shape[1] - 1 - item % 2 :] = 0
    return mask


def tiny_denoiser(
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


def bare(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(diffusers, name)(**config)


def inside(wrapper: type[nn.Module], build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: wrapper(build())


LATENT = ("b", 4, "f", "h", "w")
STEP = ("step", ("b",))
TEXT = ("float", ("b", "s", 32))
HEADS = {"num_attention_heads": 2, "attention_head_dim": 32}
