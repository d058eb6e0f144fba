"""Records calibration trajectories from the float ONNX denoiser.

    python -m examples.pandigits.record --folder examples/pandigits_unet

Each file is one clip's conditional calls at guidance 2: ``sample`` [S, 1, 3, 16, 32, 32],
``timestep`` [S, 1] and the constant ``encoder_hidden_states`` [1, 3, 64]. Samples are rounded to
float16 precision so that the files compress.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from examples.pandigits.onnx_sampling import ClipSampler, Labels, Trajectory

STRIDE: Final = 5
"""Trajectory i keeps steps i % 5, i % 5 + 5, ...: together they cover every step of the sampler."""

CALIBRATION: Final[tuple[Labels, ...]] = tuple((i, (3 * i) % 8, (5 * i + 2) % 8) for i in range(10))
"""Every digit, direction and background occurs: a condition never seen would be clipped."""

HELD_OUT: Final[tuple[Labels, ...]] = ((7, 2, 0),)
FIRST_SEED: Final = 1000


def save_trajectory(trajectory: Trajectory, first: int, path: Path) -> None:
    """Writes every fifth step of ``trajectory``, from ``first`` on."""
    kept = slice(first, None, STRIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        sample=trajectory.states[kept].astype(np.float16).astype(np.float32),
        timestep=trajectory.timesteps[kept],
        encoder_hidden_states=trajectory.tokens,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="holds model.onnx")
    folder: Path = parser.parse_args().folder
    sampler = ClipSampler(folder / "model.onnx", folder / "conditions.npz")
    jobs = [("calibration", i, labels) for i, labels in enumerate(CALIBRATION)]
    jobs += [("heldout", i, labels) for i, labels in enumerate(HELD_OUT)]
    for seed, (kind, number, labels) in enumerate(jobs, start=FIRST_SEED):
        path = folder / kind / f"trajectory_{number:02d}.npz"
        save_trajectory(sampler.draw(labels, seed), number % STRIDE, path)
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB", flush=True)


if __name__ == "__main__":
    main()
