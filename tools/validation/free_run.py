"""Free-running trajectories: every model denoises the same noise with its own predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.sources.calls import Denoise, DenoiserCall
from qvd_trt.calibrators.sources.channel_split import ChannelSplit
from qvd_trt.calibrators.sources.samplers import Sampler
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.export.metrics import psnr
from qvd_trt.export.progress import Progress
from qvd_trt.tools.validation.report import (
    CallErrors,
    Comparison,
    ErrorMeasure,
    FinalLatent,
    FreeRunReport,
    as_float32,
    measure_error,
)

OnState = Callable[[int, int, Float32Array], None]
"""Takes sample, step, and the state after that step."""


def run_free(
    models: Mapping[str, Denoise],
    comparisons: Sequence[Comparison],
    signature: ModelSignature,
    options: SelfSamplingOptions,
    progress: Progress,
) -> tuple[FreeRunReport, tuple[str, ...]]:
    """Sample with each model in turn and compare the states after every step.

    The states of the reference models are kept on disk, so that memory does not grow with the
    number of steps and samples.

    Args:
        models: By name.
        comparisons: Pairs of them.
        signature: The float model's interface.
        options: How to sample.
        progress: Shown one unit per call.

    Returns:
        The report, and warnings for the user.

    Raises:
        UserError: an option does not fit, or a model's trajectory becomes NaN or Inf.
    """
    source = SelfSampling(options, signature)
    references = {comparison.reference for comparison in comparisons}
    # References first: the others are compared with them while they run.
    order = sorted(models, key=lambda name: (name not in references, _depth(name, comparisons)))
    results = _Results()
    warnings: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvd-")))
        advance = stack.enter_context(progress.step("free run", source.calls() * len(models)))
        for name in order:
            candidates = [entry for entry in comparisons if entry.candidate == name]

            def on_state(
                sample: int,
                step: int,
                state: Float32Array,
                name: str = name,
                candidates: Sequence[Comparison] = candidates,
            ) -> None:
                if name in references:
                    np.save(_state_file(folder, name, sample, step), state)
                for comparison in candidates:
                    reference = np.load(_state_file(folder, comparison.reference, sample, step))
                    results.add(comparison, sample, step, reference, state)

            observed = _ObservedModel(models[name], signature, source.sampler, options, on_state)

            def denoise(call: DenoiserCall, observed: Denoise = observed) -> AnyArray:
                prediction = observed(call)
                advance()
                return prediction

            try:
                source.drive(denoise)
            except UserError as error:
                raise UserError(f"free run of {name}: {error}") from error
            if (diverged := source.divergence()) is not None:
                warnings.append(f"free run of {name}: {diverged}")
    return results.report(source.describe(), source.sampler), tuple(warnings)


class _ObservedModel:
    """A model that tells the sampler's state after each step.

    The sampler gives the state to the model at the next step, but the last one to nobody, so that
    one is computed here.
    """

    def __init__(
        self,
        model: Denoise,
        signature: ModelSignature,
        sampler: Sampler,
        options: SelfSamplingOptions,
        on_state: OnState,
    ) -> None:
        self._model = model
        self._latent = signature.latent
        self._sampler = sampler
        self._guidance = options.guidance if options.guided else None
        self._steps = options.steps
        self._on_state = on_state
        self._split: ChannelSplit | None = None
        self._conditional: Float32Array | None = None

    def __call__(self, call: DenoiserCall) -> AnyArray:
        """Run the model; calls come in the order of ``SelfSampling``."""
        prediction = as_float32(self._model(call))
        latent = as_float32(call.inputs[self._latent])
        calls_per_step = 1 if self._guidance is None else 2
        index, position = divmod(call.step, calls_per_step)
        if call.step == 0:
            self._split = ChannelSplit.between(latent, prediction.shape)
        assert self._split is not None
        state = self._split.own(latent) / np.float32(self._sampler.input_weight[index])
        if position == 0:
            self._conditional = prediction
            if index > 0:
                self._on_state(call.trajectory, index - 1, state)
        if index == self._steps - 1 and position == calls_per_step - 1:
            guided = self._split.prediction(self._guided(prediction))
            self._on_state(call.trajectory, index, self._sampler.step(guided, index, state))
        return prediction

    def _guided(self, prediction: Float32Array) -> Float32Array:
        if self._guidance is None or self._conditional is None:
            return prediction
        scale = np.float32(self._guidance)
        guided: Float32Array = prediction + scale * (self._conditional - prediction)
        return guided


@dataclass(slots=True)
class _Results:
    """What was measured so far, by (sample, step) and comparison."""

    states: dict[tuple[int, int], dict[str, ErrorMeasure]] = field(default_factory=dict)
    latest_psnr: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(
        self,
        comparison: Comparison,
        sample: int,
        step: int,
        reference: Float32Array,
        state: Float32Array,
    ) -> None:
        errors = self.states.setdefault((sample, step), {})
        errors[comparison.name] = measure_error(reference, state, comparison)
        # Steps come in order, so that the last step's stays.
        self.latest_psnr.setdefault(sample, {})[comparison.name] = psnr(
            reference, state, float(np.ptp(reference))
        )

    def report(self, sampling: str, sampler: Sampler) -> FreeRunReport:
        states = tuple(
            CallErrors(sample, step, float(sampler.timesteps[step]), errors)
            for (sample, step), errors in sorted(self.states.items())
        )
        finals = tuple(FinalLatent(*entry) for entry in sorted(self.latest_psnr.items()))
        return FreeRunReport(sampling, states, finals)


def _depth(name: str, comparisons: Sequence[Comparison]) -> int:
    """How many references a model's comparisons stand on: 0 for the float model."""
    before = [c.reference for c in comparisons if c.candidate == name]
    return 1 + max(_depth(other, comparisons) for other in before) if before else 0


def _state_file(folder: Path, model: str, sample: int, step: int) -> Path:
    return folder / f"{model}-{sample}-{step}.npy"
