"""Trains the PanDigits denoiser and classifier, samples clips and scores them.

    python -m examples.pandigits.train --out build/pandigits

Writes EMA weights, ``loss.json``, ``metrics.json`` and ``samples.npz`` (a few sampled clips).
``--smoke`` runs everything at toy size on the CPU. ``--resume DIR`` starts from the weights of an
earlier run, with a fresh optimizer.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from examples.pandigits.classifier import ClipClassifier, accuracies, classify, train_classifier
from examples.pandigits.clips import ClipSource, draw_clips, load_source, prototypes
from examples.pandigits.denoiser import (
    SAMPLING_STEPS,
    TRAIN_TIMESTEPS,
    ConditionEmbedding,
    Denoiser,
    make_scheduler,
    null_labels,
)
from examples.pandigits.frechet import frechet_distance
from examples.pandigits.sampling import balanced_labels, sample_clips
from examples.pandigits.weights import load_weights, save_weights

WARM_UP: Final = 200
EMA_DECAY: Final = 0.999
CONDITION_DROP: Final = 0.1
GUIDANCES: Final = (1.0, 2.0)
SHEET_CLIPS: Final = 40


@dataclass(frozen=True)
class Recipe:
    """The numbers of one run."""

    minutes: float = 6.5
    classifier_minutes: float = 0.6
    max_steps: int = 100_000
    classifier_steps: int = 3_000
    batch: int = 64
    learning_rate: float = 4e-4
    sampled: int = 320
    """Clips sampled and scored at each guidance."""
    sample_batch: int = 40
    sampling_steps: int = SAMPLING_STEPS
    compile: bool = False
    seed: int = 0


SMOKE: Final = Recipe(
    max_steps=3, classifier_steps=3, batch=2, sampled=4, sample_batch=2, sampling_steps=2
)


def use_plain_attention() -> None:
    """Makes attention plain matrix products on CUDA.

    Temporal attention is 65536 sequences of 16 frames: cuDNN's backward fails on so many, the
    other fused kernels are limited to 65535 and pad every sequence to a whole tile, which costs
    more than all else together.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


@torch.no_grad()
def update_ema(ema: nn.Module, live: nn.Module, step: int) -> None:
    """Moves ``ema`` towards ``live``; the decay rises from 0 to 0.999 over the first steps."""
    weight = 1 - min(EMA_DECAY, step / (step + 10))
    torch._foreach_lerp_(list(ema.parameters()), list(live.parameters()), weight)


def velocity(clean: Tensor, noise: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy state and v target for clips and noise [b, 3, f, h, w] at cumulative alphas [b]."""
    signal = alphas.sqrt()[:, None, None, None, None]
    spread = (1 - alphas).sqrt()[:, None, None, None, None]
    return signal * clean + spread * noise, signal * noise - spread * clean


def train_denoiser(
    models: nn.ModuleList, ema: nn.ModuleList, source: ClipSource, recipe: Recipe, seed: int
) -> list[float]:
    """Trains [denoiser, embedding] and their EMA copies in place; returns the loss of each step.

    Loss is the mean squared error of v, about 1 for an untrained model. After the warm-up the
    learning rate falls linearly to 2 % at the end of the time (or of ``max_steps``).
    """
    denoiser, embedding = models
    device = source.photographs.device
    generator = torch.Generator(device).manual_seed(seed)
    alphas = make_scheduler().alphas_cumprod.to(device)
    parameters = list(models.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0,
        fused=device.type == "cuda",
    )  # fmt: skip
    start, seconds = time.monotonic(), recipe.minutes * 60
    call = compiled(denoiser, source, embedding) if recipe.compile else denoiser
    losses: list[Tensor] = []
    while True:
        step = len(losses)
        progress = max((time.monotonic() - start) / seconds, step / recipe.max_steps)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            rate = min((step + 1) / WARM_UP, max(1 - progress, 0.02))
            group["lr"] = recipe.learning_rate * rate
        clips, labels = draw_clips(source, recipe.batch, generator)
        dropped = torch.rand(labels.shape[0], generator=generator, device=device) < CONDITION_DROP
        labels = torch.where(dropped[:, None], null_labels(labels.shape[0], device), labels)
        timestep = torch.randint(
            TRAIN_TIMESTEPS, (labels.shape[0],), generator=generator, device=device
        )
        noise = torch.randn(clips.shape, generator=generator, device=device)
        noisy, target = velocity(clips, noise, alphas[timestep])
        with torch.autocast(device.type, torch.bfloat16):
            prediction = call(noisy, timestep, embedding(labels))
        loss = (prediction.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        update_ema(ema, models, step)
        losses.append(loss.detach())
        if step % 200 == 0:
            took = time.monotonic() - start
            print(f"step {step}: loss {loss.item():.4f} after {took:.0f} s", flush=True)
    return torch.stack(losses).tolist() if losses else []


def compiled(denoiser: nn.Module, source: ClipSource, embedding: nn.Module) -> nn.Module:
    """The compiled denoiser where this machine's compiler takes it, else the denoiser itself."""
    device = source.photographs.device
    call = torch.compile(denoiser)
    batch = Recipe.batch
    try:
        with torch.autocast(device.type, torch.bfloat16):
            prediction = call(
                torch.randn(batch, 3, 16, 32, 32, device=device),
                torch.zeros(batch, dtype=torch.long, device=device),
                embedding(null_labels(batch, device)),
            )
        prediction.float().square().mean().backward()
    except Exception as error:  # the compiler's own errors have no common base
        print(f"not compiled: {str(error).splitlines()[0]}", flush=True)
        return denoiser
    return call  # type: ignore[return-value]


def score(
    classifier: ClipClassifier, clips: Tensor, labels: Tensor, reference: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Condition accuracies of ``clips`` and their Frechet distance to reference features."""
    predicted, features = classify(classifier, clips)
    distance = frechet_distance(features.double().cpu().numpy(), reference)
    return accuracies(predicted, labels) | {"frechet": distance}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--sampled", type=int, default=Recipe.sampled)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    recipe = Recipe(
        minutes=arguments.minutes,
        compile=arguments.compile,
        seed=arguments.seed,
        sampled=arguments.sampled,
    )
    run(SMOKE if arguments.smoke else recipe, arguments.out, arguments.resume)


def run(recipe: Recipe, out: Path, resume: Path | None) -> None:
    """Everything, from the data to the written files."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    use_plain_attention()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_source = load_source(held_out=False, device=device)
    test_source = load_source(held_out=True, device=device)
    generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    classifier = ClipClassifier().to(device)
    models = nn.ModuleList([Denoiser(), ConditionEmbedding()]).to(device)
    if resume:
        for module, name in zip(models, ("denoiser", "embedding"), strict=True):
            load_weights(module, resume, name)
        load_weights(classifier, resume, "classifier")
        classifier_steps = 0
    else:
        classifier_steps = train_classifier(
            classifier, train_source, generator,
            seconds=recipe.classifier_minutes * 60, max_steps=recipe.classifier_steps,
        )  # fmt: skip
    save_weights(classifier, out, "classifier")
    clips, labels = draw_clips(test_source, max(recipe.sampled, 8), generator)
    predicted, features = classify(classifier, clips)
    reference = features.double().cpu().numpy()
    metrics: dict[str, Any] = {
        "recipe": asdict(recipe),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "classifier_steps": classifier_steps,
        "classifier_s": time.monotonic() - start,
        "real held out": accuracies(predicted, labels),
    }
    clips, labels = draw_clips(train_source, max(recipe.sampled, 8), generator)
    metrics["real train"] = score(classifier, clips, labels, reference)
    print(json.dumps(metrics), flush=True)

    begun = time.monotonic()
    ema = copy.deepcopy(models)
    losses = train_denoiser(
        models, ema, prototypes(train_source), recipe, recipe.seed + 2 + bool(resume)
    )
    metrics |= {"denoiser_steps": len(losses), "denoiser_s": time.monotonic() - begun}
    (out / "loss.json").write_text(json.dumps([round(loss, 5) for loss in losses]))
    save_weights(ema[0], out, "denoiser")
    save_weights(ema[1], out, "embedding")

    sheet: dict[str, np.ndarray[Any, Any]] = {}
    denoiser, embedding = ema.eval()
    labels = balanced_labels(recipe.sampled, device)
    for guidance in GUIDANCES:
        sampled = torch.cat(
            [
                sample_clips(
                    denoiser, embedding, part, generator,  # type: ignore[arg-type]
                    guidance=guidance, steps=recipe.sampling_steps,
                )
                for part in torch.split(labels, recipe.sample_batch)
            ]
        )  # fmt: skip
        metrics[f"guidance {guidance:g}"] = score(classifier, sampled, labels, reference)
        sheet[f"guidance_{guidance:g}"] = (
            ((sampled[:SHEET_CLIPS] + 1) * 127.5).round().byte().cpu().numpy()
        )
    metrics["total_s"] = time.monotonic() - start
    print(json.dumps(metrics), flush=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    sheet["labels"] = labels[:SHEET_CLIPS].cpu().numpy()
    np.savez_compressed(out / "samples.npz", allow_pickle=False, **sheet)


if __name__ == "__main__":
    main()
