"""Weights as a few safetensors shards, each small enough to copy around."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHARD_BYTES: Final = 15 * 2**20


def save_weights(module: nn.Module, folder: Path, name: str) -> None:
    """Writes ``name-0.safetensors``, ``name-1.safetensors``, ... of at most ~15 MiB each."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for key, value in module.state_dict().items():
        size = value.numel() * value.element_size()
        if used and used + size > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][key] = value.detach().contiguous().cpu()
        used += size
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"{name}-{i}.safetensors")


def load_weights(module: nn.Module, folder: Path, name: str) -> None:
    """Loads what ``save_weights`` wrote; every key must match."""
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        state |= load_file(path)
    module.load_state_dict(state)
