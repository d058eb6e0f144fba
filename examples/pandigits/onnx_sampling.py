"""Sampling PanDigits clips from the ONNX denoiser in ONNX Runtime; needs no torch.

Reuses the project's own DDIM, which agrees with diffusers' ``DDIMScheduler``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.sources.samplers import Sampler, SamplerOptions, build_sampler
from qvd_trt.export.ort_session import open_session

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

CLIP_SHAPE: Final = (3, 16, 32, 32)
STEPS: Final = 25
GUIDANCE: Final = 2.0
CONDITIONS: Final = ("digit", "direction", "background")
Labels = tuple[int, int, int]
"""Digit, direction, background."""


@dataclass(frozen=True)
class Trajectory:
    """One clip on its way from noise.

    Attributes:
        states: ``[25, 1, 3, 16, 32, 32]``, what the denoiser was given at each step.
        timesteps: ``[25, 1]``.
        tokens: ``[1, 3, 64]``, the conditional call's.
        clip: ``[3, 16, 32, 32]`` in [-1, 1], the result.
    """

    states: Float32Array
    timesteps: Int64Array
    tokens: Float32Array
    clip: Float32Array


def pandigits_sampler(steps: int = STEPS) -> Sampler:
    """The sampler the model was trained for."""
    options = SamplerOptions(
        steps=steps,
        prediction="v_prediction",
        schedule="squaredcos_cap_v2",
        spacing="trailing",
    )
    return build_sampler("ddim", options)


def load_tokens(folder: Path, labels: npt.ArrayLike) -> tuple[Float32Array, Float32Array]:
    """Conditional tokens of labels ``[n, 3]`` and the null tokens, each ``[n, 3, 64]`` float32."""
    columns = np.asarray(labels).T
    with np.load(folder / "conditions.npz") as tables:
        rows = [tables[name][column] for name, column in zip(CONDITIONS, columns, strict=True)]
        null = np.stack([tables[name][-1] for name in CONDITIONS])
    conditional = np.stack(rows, axis=1).astype(np.float32)
    return conditional, np.repeat(null[None].astype(np.float32), len(conditional), axis=0)


class ClipSampler:
    """Draws clips from one denoiser file, one at a time, with classifier-free guidance."""

    def __init__(
        self, model: Path, conditions: Path, guidance: float = GUIDANCE, steps: int = STEPS
    ) -> None:
        self._session = open_session(model)
        with np.load(conditions) as tables:
            self._tables = [tables[name] for name in CONDITIONS]
        self._guidance = guidance
        self._sampler = pandigits_sampler(steps)

    def tokens(self, labels: Labels | None) -> Float32Array:
        """Condition tokens [1, 3, 64]; the null tokens for None."""
        rows = labels or (-1, -1, -1)
        chosen: Float32Array = np.stack(
            [table[row] for table, row in zip(self._tables, rows, strict=True)]
        )[None]
        return chosen

    def draw(self, labels: Labels, seed: int) -> Trajectory:
        """One clip; the noise depends on ``seed`` only."""
        conditional, unconditional = self.tokens(labels), self.tokens(None)
        generator = np.random.default_rng(seed)
        state = generator.standard_normal((1, *CLIP_SHAPE), np.float32)
        states = []
        timesteps = self._sampler.timesteps.astype(np.int64)[:, None]
        for index, timestep in enumerate(timesteps):
            states.append(state)
            prediction = self._predict(state, timestep, conditional)
            if self._guidance != 1:
                free = self._predict(state, timestep, unconditional)
                prediction = free + np.float32(self._guidance) * (prediction - free)
            state = self._sampler.step(prediction, index, state)
        return Trajectory(np.stack(states), timesteps, conditional, state[0].clip(-1, 1))

    def _predict(
        self, state: Float32Array, timestep: Int64Array, tokens: Float32Array
    ) -> Float32Array:
        inputs = {"sample": state, "timestep": timestep, "encoder_hidden_states": tokens}
        prediction: Float32Array = self._session.run(None, inputs)[0]
        return prediction


def balanced_labels(count: int) -> list[Labels]:
    """Labels that run evenly through digits, directions and backgrounds."""
    return [(i % 10, (3 * i) % 8, (i // 8 + i) % 8) for i in range(count)]
