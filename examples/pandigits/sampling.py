"""Sampling clips with DDIM and classifier-free guidance, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.pandigits.clips import FRAMES, SIZE
from examples.pandigits.denoiser import (
    SAMPLING_STEPS,
    ConditionEmbedding,
    Denoiser,
    make_scheduler,
    null_labels,
)


@torch.no_grad()
def sample_clips(
    denoiser: Denoiser,
    embedding: ConditionEmbedding,
    labels: Tensor,
    generator: torch.Generator,
    *,
    guidance: float,
    steps: int = SAMPLING_STEPS,
) -> Tensor:
    """Clips [b, 3, 16, 32, 32] in [-1, 1] for labels [b, 3]; guidance 1 makes one call a step."""
    device = generator.device
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps, device=device)
    batch = labels.shape[0]
    tokens = embedding(labels)
    guided = guidance != 1
    if guided:
        tokens = torch.cat([embedding(null_labels(batch, device)), tokens])
    state = torch.randn((batch, 3, FRAMES, SIZE, SIZE), generator=generator, device=device)
    for timestep in scheduler.timesteps:
        inputs = torch.cat([state, state]) if guided else state
        prediction = denoiser(inputs, timestep.expand(inputs.shape[0]), tokens)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        state = scheduler.step(prediction, timestep, state).prev_sample
    return state.clamp(-1, 1)


def balanced_labels(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Labels [count, 3] that run evenly through digits, directions and backgrounds."""
    index = torch.arange(count, device=device)
    return torch.stack([index % 10, (index // 10) % 8, (index // 80 + index) % 8], dim=1)
