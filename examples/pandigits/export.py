"""Builds the shipped ONNX files from trained weights.

    python -m examples.pandigits.export --weights build/pandigits --out examples/pandigits_unet

``--weights`` omitted exports a randomly initialised denoiser (the same graph).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from examples.pandigits.classifier import ClipClassifier
from examples.pandigits.denoiser import (
    CONDITION_NAMES,
    TRAIN_TIMESTEPS,
    ConditionEmbedding,
    Denoiser,
)
from examples.pandigits.weights import load_weights

OPSET: Final = 20
KEPT_METADATA: Final = "pkg.torch.onnx.name_scopes"
TOLERANCE: Final = 2e-5

Inputs = dict[str, Tensor]


@contextlib.contextmanager
def batch_safe_repeat_interleave() -> Iterator[None]:
    """Replaces ``Tensor.repeat_interleave`` while exporting.

    With a symbolic repeat count the exporter emits an Expand that is right at batch 1 only.
    """
    original = torch.Tensor.repeat_interleave

    def replacement(
        self: Tensor, repeats: int, dim: int = 0, *, output_size: int | None = None
    ) -> Tensor:
        expanded = self.unsqueeze(dim + 1)
        sizes = [-1] * expanded.ndim
        sizes[dim + 1] = repeats
        return expanded.expand(sizes).flatten(dim, dim + 1)

    torch.Tensor.repeat_interleave = replacement  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.repeat_interleave = original  # type: ignore[method-assign]


def denoiser_inputs(batch: int, frames: int, height: int, width: int) -> Inputs:
    """Random inputs for the denoiser."""
    return {
        "sample": torch.randn(batch, 3, frames, height, width),
        "timestep": torch.randint(0, TRAIN_TIMESTEPS, (batch,)),
        "encoder_hidden_states": torch.randn(batch, 3, 64),
    }


def strip_metadata(model: onnx.ModelProto) -> None:
    """Drops all exporter metadata (stack traces hold absolute paths) but the scope names."""
    graph = model.graph
    for holder in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        kept = [entry for entry in holder.metadata_props if entry.key == KEPT_METADATA]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
        holder.doc_string = ""
    for owner in (model, graph):
        del owner.metadata_props[:]
        owner.doc_string = ""


def export_module(
    module: nn.Module,
    inputs: Inputs,
    output_names: Sequence[str],
    dynamic_shapes: dict[str, dict[int, Any]],
    path: Path,
) -> None:
    """Exports ``module`` to one ONNX file with inline weights and no machine-specific metadata."""
    with batch_safe_repeat_interleave(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(output_names),
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip_metadata(model)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def verify(module: nn.Module, path: Path, cases: Sequence[Inputs]) -> float:
    """Largest relative L2 error of ONNX Runtime against torch over ``cases``."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for inputs in cases:
        with torch.no_grad():
            expected = module.eval()(**inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        actual = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for want, got in zip(expected, actual, strict=True):
            reference = want.double().numpy()
            error = float(np.linalg.norm(got - reference) / np.linalg.norm(reference))
            worst = max(worst, error)
    if not worst < TOLERANCE:
        raise RuntimeError(f"{path} differs from torch: relative error {worst:.2e}")
    return worst


def export_denoiser(denoiser: Denoiser, path: Path) -> float:
    """Exports with dynamic batch, frames, height and width (multiples of 4); returns the error."""
    batch, frames = torch.export.Dim("batch", max=64), torch.export.Dim("frames", min=2, max=32)
    height = 4 * torch.export.Dim("height_4", min=2, max=64)
    width = 4 * torch.export.Dim("width_4", min=2, max=64)
    shapes = {
        "sample": {0: batch, 2: frames, 3: height, 4: width},
        "timestep": {0: batch},
        "encoder_hidden_states": {0: batch},
    }
    export_module(denoiser, denoiser_inputs(2, 16, 32, 32), ["out"], shapes, path)
    sizes = [(1, 16, 32, 32), (2, 16, 32, 32), (1, 8, 24, 40), (3, 5, 40, 24)]
    return verify(denoiser, path, [denoiser_inputs(*size) for size in sizes])


def export_classifier(classifier: ClipClassifier, path: Path) -> float:
    """Exports with a dynamic batch; clips stay 16 x 32 x 32. Returns the error."""
    batch = torch.export.Dim("batch", max=1024)
    export_module(
        classifier,
        {"clip": torch.randn(2, 3, 16, 32, 32)},
        [*CONDITION_NAMES, "features"],
        {"clip": {0: batch}},
        path,
    )
    return verify(classifier, path, [{"clip": torch.randn(b, 3, 16, 32, 32)} for b in (1, 2, 5)])


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
    print(f"denoiser: relative error {export_denoiser(denoiser, out / 'model.onnx'):.1e}")
    print(
        f"classifier: relative error {export_classifier(classifier, out / 'classifier.onnx'):.1e}"
    )
    tables = {
        name: parameter.detach().numpy()
        for name, parameter in zip(CONDITION_NAMES, embedding.parameters(), strict=True)
    }
    np.savez(out / "conditions.npz", allow_pickle=False, **tables)


if __name__ == "__main__":
    main()
