"""Samples PanDigits clips with an ONNX denoiser: the reference trajectory of every comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.pandigits.onnx_sampling import (
    CLIP_SHAPE,
    CONDITIONS,
    load_tokens,
    pandigits_sampler,
)
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.ort_session import open_session

EXAMPLE = Path(__file__).parent.parent / "examples" / "pandigits_unet"
DATA_RANGE = 2.0

Predict = Callable[[Mapping[str, AnyArray]], Float32Array]
"""One call of a denoiser: inputs by graph name to the prediction, float32."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What to sample.

    Attributes:
        labels: ``[N, 3]`` digit, direction, background.
        steps: DDIM steps.
        guidance: Classifier-free guidance scale; 1 for none.
        seed: Of the initial noise.
        batch: Clips per denoiser call.
    """

    labels: AnyArray
    steps: int = 25
    guidance: float = 2.0
    seed: int = 0
    batch: int = 4


def clip_labels(count: int) -> AnyArray:
    """Digits in turn, with directions and backgrounds that vary against them, ``[N, 3]``."""
    index = np.arange(count)
    return np.stack([index % 10, (3 * index + index // 10) % 8, (5 * index + 1) % 8], axis=1)


def onnx_predict(model: Path) -> Predict:
    """The denoiser in ONNX Runtime, its Q/DQ nodes executed as written."""
    session = open_session(model, faithful_qdq=True)

    def predict(feed: Mapping[str, AnyArray]) -> Float32Array:
        prediction: Float32Array = session.run(None, dict(feed))[0]
        return prediction

    return predict


def sample_clips(predict: Predict, request: ClipRequest) -> Float32Array:
    """Denoise every clip with the deterministic DDIM sampler of the example.

    Returns:
        ``[N, 3, 16, 32, 32]`` float32, clipped to [-1, 1].
    """
    conditional, unconditional = load_tokens(EXAMPLE, request.labels)
    generator = np.random.default_rng(request.seed)
    shape = (len(request.labels), *CLIP_SHAPE)
    noise = generator.standard_normal(shape).astype(np.float32)
    clips = [
        _denoise(predict, noise[at], conditional[at], unconditional[at], request)
        for at in np.array_split(
            np.arange(len(noise)), max(1, int(np.ceil(len(noise) / request.batch)))
        )
    ]
    return np.clip(np.concatenate(clips), -1, 1)


def paired_psnr(reference: Float32Array, clips: Float32Array) -> Float32Array:
    """``10 log10(range^2 / mse)`` of each clip, ``[N]`` dB."""
    error = np.square(clips - reference, dtype=np.float64).mean(axis=(1, 2, 3, 4))
    psnr: Float32Array = 10 * np.log10(DATA_RANGE**2 / np.maximum(error, 1e-12))
    return psnr


def confidence_interval(psnr: Float32Array) -> float:
    """Half width of the 95 % confidence interval of the mean, dB."""
    return float(1.96 * psnr.std(ddof=1) / np.sqrt(len(psnr)))


def classifier_accuracy(clips: Float32Array, labels: AnyArray) -> dict[str, float]:
    """Share of clips that the shipped classifier recognises, by attribute."""
    session = open_session(EXAMPLE / "classifier.onnx")
    outputs = session.run(list(CONDITIONS), {"clip": clips})
    return {
        name: float(np.mean(logits.argmax(axis=1) == labels[:, index]))
        for index, (name, logits) in enumerate(zip(CONDITIONS, outputs, strict=True))
    }


def _denoise(
    predict: Predict,
    state: Float32Array,
    conditional: Float32Array,
    unconditional: Float32Array,
    request: ClipRequest,
) -> Float32Array:
    sampler = pandigits_sampler(request.steps)
    guided = request.guidance != 1.0
    tokens = np.concatenate([conditional, unconditional]) if guided else conditional
    for index, timestep in enumerate(sampler.timesteps):
        sample = sampler.scale_input(state, index)
        if guided:
            sample = np.concatenate([sample, sample])
        feed: dict[str, AnyArray] = {
            "sample": sample,
            "timestep": np.full(len(sample), timestep, np.int64),
            "encoder_hidden_states": tokens,
        }
        prediction = predict(feed)
        if guided:
            with_condition, without = np.split(prediction, 2)
            prediction = without + np.float32(request.guidance) * (with_condition - without)
        state = sampler.step(prediction, index, state)
    return state
