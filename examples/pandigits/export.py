"""Builds the shipped ONNX files from trained weights.

    python -m examples.pandigits.export --weights build/pandigits --out examples/pandigits_unet

``--weights`` omitted exports a randomly initialised denoiser (the same graph).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.pandigits.classifier import ClipClassifier
from examples.pandigits.denoiser import (
    CONDITION_NAMES,
    TRAIN_TIMESTEPS,
    ConditionEmbedding,
    Denoiser,
)
from examples.pandigits.weights import load_weights
from qvd_trt.export.from_torch import ExportReport, export_denoiser

TOLERANCE = 2e-5

Inputs = dict[str, Tensor]


def denoiser_inputs(batch: int, frames: int, height: int, width: int) -> Inputs:
    """Random inputs for the denoiser; height and width are multiples of 4."""
    return {
        "sample": torch.randn(batch, 3, frames, height, width),
        "timestep": torch.randint(0, TRAIN_TIMESTEPS, (batch,)),
        "encoder_hidden_states": torch.randn(batch, 3, 64),
    }


def write_denoiser(denoiser: Denoiser, path: Path) -> ExportReport:
    """Export with dynamic batch, frames, height and width, checked at four shapes."""
    sizes = [(1, 16, 32, 32), (1, 8, 24, 40), (3, 5, 40, 24)]
    return export_denoiser(
        denoiser,
        denoiser_inputs(2, 16, 32, 32),
        {
            "sample": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch"},
        },
        path,
        verify_inputs=[denoiser_inputs(*size) for size in sizes],
        tolerance=TOLERANCE,
    )


def write_classifier(classifier: ClipClassifier, path: Path) -> ExportReport:
    """Export with a dynamic batch; clips stay 16 x 32 x 32."""
    return export_denoiser(
        classifier,
        {"clip": torch.randn(2, 3, 16, 32, 32)},
        {"clip": {0: "batch"}},
        path,
        output_names=(*CONDITION_NAMES, "features"),
        verify_inputs=[{"clip": torch.randn(batch, 3, 16, 32, 32)} for batch in (1, 5)],
        tolerance=TOLERANCE,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="folder written by examples.pandigits.train")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    denoiser, embedding, classifier = Denoiser(), ConditionEmbedding(), ClipClassifier()
    if arguments.weights:
        load_weights(denoiser, arguments.weights, "denoiser")
        load_weights(embedding, arguments.weights, "embedding")
        load_weights(classifier, arguments.weights, "classifier")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for report in (
        write_denoiser(denoiser, out / "model.onnx"),
        write_classifier(classifier, out / "classifier.onnx"),
    ):
        print(f"{report.path}: relative error {report.max_relative_error:.1e}")
    state = embedding.state_dict()
    tables = {name: state[f"tables.{i}.weight"].numpy() for i, name in enumerate(CONDITION_NAMES)}
    np.savez(out / "conditions.npz", allow_pickle=False, **tables)


if __name__ == "__main__":
    main()
