"""Draws the loss curve and the contact sheet of a training run.

    python -m examples.pandigits.report build/pandigits

Several folders of ``examples.pandigits.train`` are taken as one training run, each resumed from the
one before; the clips are the last one's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from PIL import Image

from examples.pandigits.clips import draw_clips, load_source

PixelArray = npt.NDArray[np.uint8]

SHEET_CLIPS: Final = tuple(i + 10 * (i % 4) for i in range(10))
"""Every digit once, in four directions."""

SHEET_FRAMES: Final = (0, 3, 6, 9, 12, 15)
ZOOM: Final = 2
SMOOTHING: Final = 50
"""Steps of the moving average."""


def draw_loss(runs: list[list[float]], path: Path) -> None:
    """Loss of every step, its moving average, and where one run resumed another."""
    losses = [loss for run in runs for loss in run]
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(6, 3.2), dpi=100)
    axes.plot(losses, color="0.8", linewidth=0.6, label="each step")
    smooth = np.convolve(losses, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
    axes.plot(np.arange(len(smooth)) + SMOOTHING / 2, smooth, label=f"mean of {SMOOTHING}")
    for end in np.cumsum([len(run) for run in runs])[:-1]:
        axes.axvline(float(end), color="0.5", linestyle=":", linewidth=1, label="resumed")
    axes.set(xlabel="step", ylabel="mean squared error of v", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def clip_rows(clips: PixelArray) -> PixelArray:
    """A row of frames per clip: [n, 3, 16, 32, 32] -> [n * 33, frames * 33, 3] with white lines."""
    chosen = clips[:, :, list(SHEET_FRAMES)].transpose(0, 2, 3, 4, 1)
    framed = np.pad(chosen, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    rows, frames, height, width, channels = framed.shape
    sheet: PixelArray = framed.transpose(0, 2, 1, 3, 4).reshape(
        rows * height, frames * width, channels
    )
    return sheet


def draw_sheet(sampled: PixelArray, path: Path) -> None:
    """Sampled clips on the left, real clips of the training set on the right."""
    import torch

    real, _ = draw_clips(
        load_source(held_out=False), len(SHEET_CLIPS), torch.Generator().manual_seed(0)
    )
    pixels = ((real + 1) * 127.5).round().byte().numpy()
    left, right = clip_rows(sampled), clip_rows(pixels)
    gap = np.full((len(left), 12, 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([left, gap, right], axis=1))
    size = (image.width * ZOOM, image.height * ZOOM)
    image.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders, in order of training")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    docs: Path = arguments.docs
    losses = [json.loads((run / "loss.json").read_text()) for run in arguments.runs]
    draw_loss(losses, docs / "workload_loss.png")
    with np.load(arguments.runs[-1] / "samples.npz") as data:
        draw_sheet(data["guidance_2"][list(SHEET_CLIPS)], docs / "workload_samples.png")


if __name__ == "__main__":
    main()
