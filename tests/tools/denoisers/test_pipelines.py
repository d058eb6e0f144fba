"""`OrtDenoiser` in the real diffusers pipelines, against the torch model in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models.cache import exported

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from qvd_trt.tools.denoisers.ort_denoiser import OrtDenoiser  # noqa: E402


@pytest.fixture(scope="module")
def wan_transformer() -> Any:
    """The module that `exported("wan")` was made from."""
    from tests.models.architectures import ARCHITECTURES

    return ARCHITECTURES["wan"]().module.model


def wan_latents(transformer: Any, scheduler: Any, batch: int) -> Any:
    """What `WanPipeline` samples; it has no text encoder and no VAE, and needs neither."""
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=None,
        transformer_2=None,
        scheduler=scheduler,
    )
    pipeline.transformer = transformer
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(3)
    prompts = torch.randn(2, batch, 7, 48, generator=random)
    return pipeline(
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1],
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).frames


def flow_scheduler() -> Any:
    """That of the published Wan models; its timesteps are whole numbers."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_wan_pipeline(wan_transformer: Any, pytestconfig: pytest.Config, batch: int) -> None:
    path = exported("wan", pytestconfig.cache.mkdir("models"))
    denoiser = OrtDenoiser(path, config=wan_transformer.config)
    expected = wan_latents(wan_transformer, flow_scheduler(), batch)
    latents = wan_latents(denoiser, flow_scheduler(), batch)
    assert latents.shape == (batch, 16, 3, 4, 6)
    np.testing.assert_allclose(latents.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert latents.std() > 0.1


def test_cache_context_takes_what_pipelines_pass(pytestconfig: pytest.Config) -> None:
    denoiser = OrtDenoiser(exported("wan", pytestconfig.cache.mkdir("models")))
    with denoiser.cache_context("cond"):
        pass
    with denoiser.cache_context("cond", step_index=3, sigma=0.5, num_inference_steps=4, more=None):
        pass
