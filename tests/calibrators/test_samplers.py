from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qvd_trt.calibrators.sources.samplers import (
    SAMPLERS,
    Sampler,
    SamplerOptions,
    build_sampler,
)
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 4, 5)


def toy_denoiser(x: Float32Array, timestep: float) -> Float32Array:
    """Nonlinear in x, different at every timestep, bounded."""
    result: Float32Array = np.tanh(0.7 * x + np.float32(0.001 * timestep)).astype(np.float32)
    return result


def ours(sampler: Sampler, noise: Float32Array) -> list[Float32Array]:
    state = noise * np.float32(sampler.noise_scale)
    states = []
    for index, timestep in enumerate(sampler.timesteps):
        model_input = sampler.scale_input(state, index)
        state = sampler.step(toy_denoiser(model_input, timestep), index, state)
        states.append(state)
    return states


def theirs(scheduler: Any, steps: int, noise: Float32Array) -> tuple[Any, list[Float32Array]]:
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    states = []
    for timestep in scheduler.timesteps:
        model_input = state
        if hasattr(scheduler, "scale_model_input"):
            model_input = scheduler.scale_model_input(state, timestep)
        prediction = torch.from_numpy(toy_denoiser(model_input.numpy(), float(timestep)))
        state = scheduler.step(prediction, timestep, state).prev_sample
        states.append(state.numpy().copy())
    return scheduler.timesteps.numpy(), states


def compare(sampler: Sampler, scheduler: Any, steps: int) -> None:
    noise = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    timesteps, expected = theirs(scheduler, steps, noise)
    np.testing.assert_allclose(sampler.timesteps, timesteps, rtol=1e-5, atol=1e-4)
    before = np.abs(noise).max() * sampler.noise_scale
    for found, wanted in zip(ours(sampler, noise), expected, strict=True):
        # diffusers steps x + dx in float32: from a state of 700 that alone rounds by 1e-4.
        rounding = 2 * np.finfo(np.float32).eps * before
        assert np.abs(found - wanted).max() <= 3e-5 * np.abs(wanted).max() + rounding
        before = np.abs(wanted).max()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        ("linear", {"beta_schedule": "linear"}),
        (
            "linear:0.00085,0.012",
            {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (
            "scaled_linear",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        ("squaredcos_cap_v2", {"beta_schedule": "squaredcos_cap_v2"}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_ddim_is_diffusers_ddim(
    schedule: str, config: dict[str, Any], prediction: str, spacing: str, steps: int
) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, timestep_spacing=spacing, clip_sample=False, **config
    )
    options = SamplerOptions(steps=steps, prediction=prediction, schedule=schedule, spacing=spacing)
    compare(build_sampler("ddim", options), scheduler, steps)


@pytest.mark.parametrize("shift", [None, 1.0, 3.0, 0.5, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_flow_is_diffusers_flow_match_euler(shift: float | None, steps: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift or 1.0)
    compare(build_sampler("flow", SamplerOptions(steps=steps, shift=shift)), scheduler, steps)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_edm_is_diffusers_euler_of_stable_video_diffusion(steps: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    compare(build_sampler("edm", SamplerOptions(steps=steps)), scheduler, steps)


def test_the_comparison_notices_a_wrong_prediction_type() -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type="epsilon", timestep_spacing="trailing", clip_sample=False
    )
    sampler = build_sampler("ddim", SamplerOptions(steps=7, prediction="v_prediction"))
    with pytest.raises(AssertionError):
        compare(sampler, scheduler, 7)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_first_model_input_is_unit_noise(name: str) -> None:
    sampler = build_sampler(name, SamplerOptions(steps=9))
    assert sampler.noise_scale * sampler.input_weight[0] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps_descend_from_the_noisiest(name: str) -> None:
    timesteps = build_sampler(name, SamplerOptions(steps=30)).timesteps
    assert len(timesteps) == 30
    assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("steps", range(1, 120))
def test_trailing_timesteps_are_as_many_as_asked_for(steps: int) -> None:
    sampler = build_sampler("ddim", SamplerOptions(steps=steps))
    assert len(sampler.timesteps) == steps
    assert sampler.timesteps[0] == 999
    assert sampler.timesteps[-1] >= 0


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_a_perfect_model_is_denoised_exactly(steps: int) -> None:
    """With the true velocity of a straight path, Euler lands on the clean sample."""
    random = np.random.default_rng(0)
    clean = random.standard_normal(SHAPE).astype(np.float32)
    noise = random.standard_normal(SHAPE).astype(np.float32)
    sampler = build_sampler("flow", SamplerOptions(steps=steps, shift=3.0))
    state = noise
    for index in range(steps):
        state = sampler.step(noise - clean, index, state)
    np.testing.assert_allclose(state, clean, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", SamplerOptions(), r"--sampler: 'euler' is unknown; use ddim, flow, edm"),
        ("ddim", SamplerOptions(steps=0), "--steps: 0 is not supported"),
        ("ddim", SamplerOptions(steps=1001), "--steps: 1001 is not supported"),
        ("ddim", SamplerOptions(prediction="velocity"), "--prediction: 'velocity' is unknown"),
        ("ddim", SamplerOptions(schedule="quadratic"), "--schedule: 'quadratic' is unknown"),
        ("ddim", SamplerOptions(schedule="linear:0.5"), "--schedule: 'linear:0.5' is not under"),
        ("ddim", SamplerOptions(schedule="linear:2,3"), "--schedule: 'linear:2,3' is not under"),
        ("ddim", SamplerOptions(schedule="cosine:0,1"), "--schedule: 'cosine:0,1' is unknown"),
        ("ddim", SamplerOptions(spacing="random"), "--spacing: 'random' is unknown"),
        ("ddim", SamplerOptions(shift=3.0), "--shift does not apply to --sampler ddim"),
        ("flow", SamplerOptions(prediction="epsilon"), "flow takes velocity, not epsilon"),
        ("flow", SamplerOptions(schedule="linear"), "--schedule does not apply to --sampler flow"),
        ("flow", SamplerOptions(shift=0.0), "--shift: 0.0 is not supported"),
        ("edm", SamplerOptions(prediction="epsilon"), "edm takes v_prediction, not epsilon"),
        ("edm", SamplerOptions(spacing="leading"), "--spacing does not apply to --sampler edm"),
    ],
)
def test_wrong_options_are_refused(name: str, options: SamplerOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_sampler(name, options)
