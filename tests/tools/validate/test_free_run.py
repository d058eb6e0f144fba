"""Free-running trajectories, against a loop written here."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from qvd_trt.calibrators.sources.samplers import SamplerOptions, build_sampler
from qvd_trt.tools.cli.export import main as export
from qvd_trt.tools.cli.validate import main
from tests.models.small_unet import write_small_unet
from tests.tools.validate.validated import Float32Array, Models, Validate, relative_rms

STEPS, SAMPLES, GUIDANCE = 4, 2, 3.0
SAMPLING = ["--steps", str(STEPS), "--samples", str(SAMPLES), "--prediction", "v_prediction"]


def trajectory(
    model: Path, noise: Float32Array, inputs: list[dict[str, Any]], guidance: float | None
) -> list[Float32Array]:
    """States after every step; `inputs` are the conditional and the unconditional call's."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    sampler = build_sampler("ddim", SamplerOptions(steps=STEPS, prediction="v_prediction"))
    states, state = [], noise
    for index, timestep in enumerate(sampler.timesteps):
        step = np.full(1, timestep, np.int64)
        outputs = [
            session.run(None, {"sample": state, "timestep": step, **extra})[0] for extra in inputs
        ]
        prediction = outputs[0]
        if guidance is not None:
            prediction = outputs[1] + np.float32(guidance) * (outputs[0] - outputs[1])
        state = sampler.step(prediction, index, state)
        states.append(state)
    return states


def noise_of(sample: int) -> Float32Array:
    sequence = np.random.SeedSequence(0, spawn_key=(sample, 0))
    return np.random.default_rng(sequence).standard_normal((1, 16, 8, 8), np.float32)


def check(report: dict[str, Any], references: list[Any], outputs: list[Any]) -> None:
    free = report["free_run"]
    assert [(s["trajectory"], s["step"]) for s in free["states"]] == [
        (sample, step) for sample in range(SAMPLES) for step in range(STEPS)
    ]
    measured = [state["errors"]["quantization"]["relative_rms"] for state in free["states"]]
    pairs = [
        pair for a, b in zip(references, outputs, strict=True) for pair in zip(a, b, strict=True)
    ]
    assert measured == pytest.approx([relative_rms(*pair) for pair in pairs], rel=1e-3)
    for sample in range(SAMPLES):
        error = np.square(outputs[sample][-1] - references[sample][-1], dtype=np.float64).mean()
        span = float(references[sample][-1].max() - references[sample][-1].min())
        assert span > 2.5  # a latent's values lie far outside of [-1, 1]
        expected = 10 * np.log10(span**2 / error)
        assert free["finals"][sample]["psnr"]["quantization"] == pytest.approx(expected, abs=0.01)


def test_states_and_final_latent(validate: Validate) -> None:
    report = validate.report("--free-run", *SAMPLING, "--shapes", "sample:1x16x8x8", calib=False)
    assert report["calibration"] is None
    assert report["calls"] == []
    trajectories = [
        [trajectory(model, noise_of(sample), [{}], None) for sample in range(SAMPLES)]
        for model in (validate.models.float_model, validate.models.qdq)
    ]
    check(report, *trajectories)
    assert set(report["free_run"]["summary"]) == {"quantization", "rounding_floor"}


def test_guided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = Models(tmp_path)
    write_small_unet(models.float_model, context=True)
    random = np.random.default_rng(1)
    context, null = random.standard_normal((2, 1, 5, 32)).astype(np.float32)
    np.savez("prompts.npz", encoder_hidden_states=context, uncond_encoder_hidden_states=null)
    sampling = [*SAMPLING, "--guidance", str(GUIDANCE), "--inputs", "prompts.npz"]
    sampling += ["--shapes", "sample:1x16x8x8"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert export(["model.onnx", *sampling, "-o", "qdq.onnx", "--target", "ort"]) == 0
    assert main(["model.onnx", "qdq.onnx", "--free-run", *sampling]) == 0
    table = capsys.readouterr().out
    assert "data range: that of the reference" in table
    assert main(["model.onnx", "qdq.onnx", "--free-run", *sampling, "--json"]) == 0
    report = capsys.readouterr()
    assert report.err == ""  # nothing was drawn, so nothing is warned of
    inputs = [{"encoder_hidden_states": context}, {"encoder_hidden_states": null}]
    trajectories = [
        [trajectory(model, noise_of(sample), inputs, GUIDANCE) for sample in range(SAMPLES)]
        for model in (models.float_model, models.qdq)
    ]
    import json

    check(json.loads(report.out), *trajectories)


def test_recorded_outputs_cannot_be_sampled_with(validate: Validate, tmp_path: Path) -> None:
    saved = tmp_path / "outputs.json"
    validate.report("--save-outputs", saved)
    # Taken for an engine: the file of one runner.
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    only = RunResults()
    only.append(("engine", RunResults.load(str(saved))["qdq"]))
    save_json(only, str(saved))
    sampling = ["--free-run", *SAMPLING, "--shapes", "sample:1x16x8x8"]
    result = validate("--engine-outputs", saved, *sampling, "--json")
    assert result.code == 0
    assert "leaves the engine out" in result.err
    report = result.json()
    assert report["summary"]["implementation"]["worst_relative_rms"] == 0
    assert "implementation" not in report["free_run"]["summary"]
