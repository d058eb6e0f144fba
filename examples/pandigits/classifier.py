"""A small R(2+1)D clip classifier with a head per condition, and its training."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.pandigits.clips import ClipSource, draw_clips
from examples.pandigits.denoiser import CLASS_COUNTS, CONDITION_NAMES

FEATURE_WIDTH = 64
LEARNING_RATE = 2e-3
BATCH = 128


def spatial_then_temporal(
    inputs: int, outputs: int, *, space_stride: int, time_stride: int
) -> nn.Sequential:
    """A 3x3 spatial convolution, then a temporal one of length 3, each with norm and ReLU."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, (1, 3, 3), (1, space_stride, space_stride), (0, 1, 1)),
        nn.BatchNorm3d(outputs),
        nn.ReLU(),
        nn.Conv3d(outputs, outputs, (3, 1, 1), (time_stride, 1, 1), (1, 0, 0)),
        nn.BatchNorm3d(outputs),
        nn.ReLU(),
    )


class ClipClassifier(nn.Module):
    """Clips [b, 3, 16, 32, 32] in [-1, 1] -> logits [b, 10], [b, 8], [b, 8], features [b, 64]."""

    def __init__(self, width: int = 28) -> None:
        super().__init__()
        self.features = nn.Sequential(
            spatial_then_temporal(3, width, space_stride=1, time_stride=1),
            spatial_then_temporal(width, 2 * width, space_stride=2, time_stride=1),
            spatial_then_temporal(2 * width, 3 * width, space_stride=2, time_stride=2),
            spatial_then_temporal(3 * width, 4 * width, space_stride=2, time_stride=2),
        )
        grid = 4 * 4 * 4  # frames x height x width left after the strides
        self.neck = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * width * grid, FEATURE_WIDTH), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(FEATURE_WIDTH, count) for count in CLASS_COUNTS)

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Digit, direction and background logits, and the features they are read from."""
        features = self.neck(self.features(clip))
        digit, direction, background = (head(features) for head in self.heads)
        return digit, direction, background, features


def train_classifier(
    classifier: ClipClassifier,
    source: ClipSource,
    generator: torch.Generator,
    *,
    seconds: float,
    max_steps: int,
) -> int:
    """Trains until ``max_steps`` or out of time, and returns the number of steps.

    The learning rate falls to zero over whichever of the two ends first. Clips get a little noise,
    so that features do not hang on the exact pixels of the generator.
    """
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    start, step = time.monotonic(), 0
    while True:
        progress = max((time.monotonic() - start) / seconds, step / max_steps)
        if progress >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / 100, 1 - progress)
        clips, labels = draw_clips(source, BATCH, generator)
        noise = torch.randn(clips.shape, generator=generator, device=clips.device)
        with torch.autocast(clips.device.type, torch.bfloat16):
            logits = classifier(clips + 0.05 * noise)[:3]
        loss = torch.stack(
            [functional.cross_entropy(head.float(), labels[:, i]) for i, head in enumerate(logits)]
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1


@torch.no_grad()
def classify(classifier: ClipClassifier, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted labels [n, 3] and features [n, 64] of clips [n, 3, 16, 32, 32]."""
    classifier.eval()
    outputs = [classifier(batch) for batch in torch.split(clips, BATCH)]
    predicted = [torch.stack([head.argmax(1) for head in out[:3]], dim=1) for out in outputs]
    return torch.cat(predicted), torch.cat([out[3] for out in outputs])


def accuracies(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of matching labels per condition, and of clips with all three right; both [n, 3]."""
    right = predicted == labels
    shares = right.float().mean(0).tolist()
    return dict(zip(CONDITION_NAMES, shares, strict=True)) | {
        "all": right.all(1).float().mean().item()
    }
