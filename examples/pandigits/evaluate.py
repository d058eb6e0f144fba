"""Accuracy of clips sampled from an ONNX denoiser, judged by the shipped classifier.

    python -m examples.pandigits.evaluate --model examples/pandigits_unet/model.onnx --clips 40

Prints, and with ``--out`` writes, the accuracy of each condition. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from examples.pandigits.onnx_sampling import (
    CONDITIONS,
    GUIDANCE,
    ClipSampler,
    balanced_labels,
)
from qvd_trt.export.ort_session import open_session


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("examples/pandigits_unet"))
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for accuracy.json and clips.npz")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    sampler = ClipSampler(arguments.model, folder / "conditions.npz", arguments.guidance)
    classifier = open_session(folder / "classifier.onnx")
    labels = balanced_labels(arguments.clips)
    clips = np.stack(
        [sampler.draw(label, arguments.seed + i).clip for i, label in enumerate(labels)]
    )
    logits = classifier.run(list(CONDITIONS), {"clip": clips})
    right = np.stack([head.argmax(1) for head in logits], axis=1) == np.array(labels)
    result: dict[str, Any] = {"clips": len(clips), "guidance": arguments.guidance}
    for name, share in zip(CONDITIONS, right.mean(0).tolist(), strict=True):
        result[name] = share
        result[f"{name} standard error"] = math.sqrt(share * (1 - share) / len(clips))
    print(json.dumps(result))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
        pixels = ((clips + 1) * 127.5).round().astype(np.uint8)
        np.savez_compressed(arguments.out / "clips.npz", clips=pixels, labels=np.array(labels))


if __name__ == "__main__":
    main()
