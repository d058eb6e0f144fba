from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.sources.input_shapes import parse_shapes
from qvd_trt.calibrators.sources.samplers import SamplerOptions, build_sampler
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec, check_inputs

SAMPLE = TensorSpec("sample", "float32", ("batch", 4, "frames", 3))
TIMESTEP = TensorSpec("timestep", "int64", ("batch",))
TEXT = TensorSpec("text", "float32", ("batch", 5))
SHAPES = {"sample": (1, 4, 2, 3)}
OPTIONS = SelfSamplingOptions(steps=5, samples=3, shapes=SHAPES)


def signature(*inputs: TensorSpec, output: TensorSpec | None = None) -> ModelSignature:
    return ModelSignature(
        inputs=inputs or (SAMPLE, TIMESTEP, TEXT),
        output=output or TensorSpec("out", "float32", (inputs or (SAMPLE,))[0].shape),
        timestep="timestep",
        latent="sample",
    )


class Toy:
    """A denoiser that records its calls; ``channels`` output channels on axis 1."""

    def __init__(self, channels: int = 4, dtype: str = "float32") -> None:
        self.calls: list[DenoiserCall] = []
        self.channels = channels
        self.dtype = dtype

    def __call__(self, call: DenoiserCall) -> AnyArray:
        self.calls.append(call)
        sample = call.inputs["sample"].astype(np.float32)
        repeated = np.concatenate([sample, 10 + sample, sample], axis=1)[:, : self.channels]
        prediction: AnyArray = np.tanh(repeated).astype(self.dtype)
        return prediction

    def inputs(self, name: str, trajectory: int = 0) -> list[AnyArray]:
        return [call.inputs[name] for call in self.calls if call.trajectory == trajectory]


def run(
    options: SelfSamplingOptions, of: ModelSignature | None = None, toy: Toy | None = None
) -> tuple[SelfSampling, Toy]:
    source, toy = SelfSampling(options, of or signature()), toy or Toy()
    as_protocol: CalibrationSource = source
    as_protocol.drive(toy)
    return source, toy


def test_every_call_fits_the_model_and_is_counted() -> None:
    source, toy = run(OPTIONS)
    assert (source.trajectories(), source.calls()) == (3, 15)
    assert [(call.trajectory, call.step) for call in toy.calls] == [
        (trajectory, step) for trajectory in range(3) for step in range(5)
    ]
    for call in toy.calls:
        check_inputs(call.inputs, signature(), "test")
    assert "3 self-sampled trajectories of 5 ddim steps" in source.describe()


@pytest.mark.parametrize(
    ("sampler", "extra"),
    [("ddim", {"prediction": "v_prediction", "schedule": "cosine"}), ("flow", {"shift": 3.0})],
)
def test_the_calls_are_the_samplers_trajectory(sampler: str, extra: dict[str, Any]) -> None:
    options = replace(OPTIONS, sampler=sampler, **extra)
    _, toy = run(options)
    table = build_sampler(sampler, SamplerOptions(steps=5, **extra))
    states = toy.inputs("sample", trajectory=1)
    for index in range(4):
        wanted = table.step(np.tanh(states[index]), index, states[index])
        np.testing.assert_allclose(states[index + 1], wanted, rtol=1e-6, atol=1e-6)
    times = [int(time[0]) for time in toy.inputs("timestep")]
    assert times == [round(time) for time in table.timesteps]


def test_edm_scales_the_model_input() -> None:
    of = signature(SAMPLE, replace(TIMESTEP, dtype="float32"))
    _, toy = run(replace(OPTIONS, sampler="edm", steps=8), of)
    table = build_sampler("edm", SamplerOptions(steps=8))
    inputs = toy.inputs("sample")
    state = inputs[0] * np.float32(table.noise_scale)
    for index in range(8):
        np.testing.assert_allclose(
            inputs[index], table.scale_input(state, index), rtol=1e-5, atol=1e-6
        )
        state = table.step(np.tanh(inputs[index]), index, state)


def test_the_first_input_is_unit_noise() -> None:
    _, toy = run(replace(OPTIONS, samples=1, steps=1, shapes={"sample": (8, 4, 50, 3)}))
    noise = toy.inputs("sample")[0]
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05


def test_samples_are_distinct_and_depend_on_seed_and_index_only() -> None:
    _, three = run(OPTIONS)
    _, five = run(replace(OPTIONS, samples=5))
    _, other = run(replace(OPTIONS, seed=1))
    firsts = [five.inputs("sample", trajectory)[0] for trajectory in range(5)]
    assert len({first.tobytes() for first in firsts}) == 5
    for trajectory in range(3):
        assert np.array_equal(
            three.inputs("sample", trajectory)[-1], five.inputs("sample", trajectory)[-1]
        )
        assert not np.array_equal(firsts[trajectory], other.inputs("sample", trajectory)[0])


def test_given_conditioning_does_not_change_the_noise() -> None:
    _, drawn = run(OPTIONS)
    text = np.zeros((1, 5), np.float32)
    _, given = run(replace(OPTIONS, extra_inputs={"text": text}))
    assert np.array_equal(drawn.inputs("sample")[0], given.inputs("sample")[0])


def test_missing_inputs_are_drawn_and_named() -> None:
    of = signature(
        SAMPLE,
        TIMESTEP,
        TEXT,
        TensorSpec("attention_mask", "int64", ("batch", 5)),
        TensorSpec("float_mask", "float32", ("batch", 5)),
        TensorSpec("label", "int32", ("batch",)),
        TensorSpec("flag", "bool", ()),
    )
    source, toy = run(OPTIONS, of)
    names = ("text", "attention_mask", "float_mask", "label", "flag")
    assert source.drawn_inputs() == names
    inputs = toy.calls[0].inputs
    for name in ("attention_mask", "float_mask", "flag"):
        assert (inputs[name] == 1).all()
    assert (inputs["label"] == 0).all()
    assert np.unique(inputs["text"]).size == 5
    texts = [toy.inputs("text", trajectory) for trajectory in range(3)]
    assert all(np.array_equal(text, texts[0][0]) for text in texts[0])
    assert not np.array_equal(texts[0][0], texts[1][0])


def test_rows_are_cycled_over_the_samples() -> None:
    rows = np.arange(10, dtype=np.float32).reshape(2, 1, 5)
    source, toy = run(replace(OPTIONS, extra_inputs={"text": rows}))
    assert source.drawn_inputs() == ()
    for trajectory, row in ((0, 0), (1, 1), (2, 0)):
        assert all(np.array_equal(t, rows[row]) for t in toy.inputs("text", trajectory))


@pytest.mark.parametrize("name", ["text", "uncond_text"])
def test_rows_on_the_batch_axis_are_samples(name: str) -> None:
    """What people save: one row per prompt, as their text encoder gives them."""
    rows = np.arange(10, dtype=np.float32).reshape(2, 5)
    arrays = {"text": np.zeros((1, 5), np.float32), name: rows}
    _, toy = run(replace(OPTIONS, guidance=2.0, extra_inputs={**arrays, "uncond_text": rows}))
    for trajectory, row in ((0, 0), (1, 1), (2, 0)):
        texts = toy.inputs("text", trajectory)
        assert all(np.array_equal(text, rows[row : row + 1]) for text in texts[1::2])
        assert all(text.shape == (1, 5) for text in texts)
        if name == "text":
            assert all(np.array_equal(text, rows[row : row + 1]) for text in texts)


@pytest.mark.parametrize("batch", ["batch", 2])
def test_samples_have_as_many_rows_as_the_batch(batch: str | int) -> None:
    of = signature(
        replace(SAMPLE, shape=(batch, *SAMPLE.shape[1:])),
        replace(TIMESTEP, shape=(batch,)),
        replace(TEXT, shape=(batch, 5)),
    )
    rows = np.arange(20, dtype=np.float32).reshape(4, 5)
    options = replace(OPTIONS, shapes={"sample": (2, 4, 2, 3)}, extra_inputs={"text": rows})
    _, toy = run(options, of)
    for trajectory, row in ((0, 0), (1, 2), (2, 0)):
        assert np.array_equal(toy.inputs("text", trajectory)[0], rows[row : row + 2])
    three = replace(options, extra_inputs={"text": rows[:3]})
    with pytest.raises(UserError, match="'text' has 3 rows, which are no whole samples of batch 2"):
        SelfSampling(three, of)


def test_a_fixed_batch_of_one_takes_rows_too() -> None:
    of = signature(
        replace(SAMPLE, shape=(1, 4, 2, 3)),
        replace(TIMESTEP, shape=(1,)),
        replace(TEXT, shape=(1, 5)),
    )
    rows = np.arange(15, dtype=np.float32).reshape(3, 5)
    _, toy = run(replace(OPTIONS, shapes=None, extra_inputs={"text": rows}), of)
    assert [toy.inputs("text", i)[0][0, 0] for i in range(3)] == [0, 5, 10]


def test_an_input_without_a_batch_serves_all_samples() -> None:
    table = TensorSpec("table", "float32", ("rows", 5))
    rows = np.arange(15, dtype=np.float32).reshape(3, 5)
    _, toy = run(replace(OPTIONS, extra_inputs={"table": rows}), signature(SAMPLE, TIMESTEP, table))
    assert all(np.array_equal(toy.inputs("table", i)[0], rows) for i in range(3))


def test_symbols_are_learned_from_given_arrays() -> None:
    spec = TensorSpec("image", "float32", ("batch", "frames", 2))
    arrays = {"image": np.zeros((3, 2, 7, 2), np.float32)}
    options = replace(OPTIONS, shapes=None, extra_inputs=arrays)
    _, toy = run(options, signature(SAMPLE, TIMESTEP, TEXT, spec))
    assert toy.calls[0].inputs["sample"].shape == (2, 4, 7, 3)
    assert toy.calls[0].inputs["text"].shape == (2, 5)
    assert toy.calls[0].inputs["timestep"].shape == (2,)


@pytest.mark.parametrize("rows", [(), (6,)])
def test_the_latent_may_be_a_shape_template_of_any_dtype(rows: tuple[int, ...]) -> None:
    template = np.full((*rows, 2, 4, 6, 3), 77, np.float64)
    _, toy = run(replace(OPTIONS, shapes=None, extra_inputs={"sample": template}))
    assert toy.calls[0].inputs["sample"].shape == (2, 4, 6, 3)
    assert np.abs(toy.calls[0].inputs["sample"]).max() < 10


def test_the_batch_defaults_to_one() -> None:
    of = signature(replace(SAMPLE, shape=("batch", 4, 2, 3)), TIMESTEP, TEXT)
    _, toy = run(replace(OPTIONS, shapes=None), of)
    assert toy.calls[0].inputs["sample"].shape == (1, 4, 2, 3)


def test_an_unknown_extent_is_named() -> None:
    with pytest.raises(UserError, match=r"dimension 2 \('frames'\).*--shapes sample:1x4x1x3"):
        SelfSampling(replace(OPTIONS, shapes=None), signature())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "float32"),
        ((), "int64"),
        (("batch",), "float16"),
        (("batch", "tokens"), "float32"),
        (("batch", 1, "frames", 1, 1), "int32"),
    ],
)
def test_timesteps_take_the_inputs_shape_and_dtype(
    shape: tuple[int | str, ...], dtype: str
) -> None:
    of = signature(SAMPLE, TensorSpec("timestep", dtype, shape))
    extents = {"batch": 2, "frames": 2, "tokens": 9}
    wanted = tuple(extents.get(str(extent), 1) for extent in shape)
    _, toy = run(replace(OPTIONS, shapes={"sample": (2, 4, 2, 3), "timestep": wanted}), of)
    for time, value in zip(toy.inputs("timestep"), (999, 799, 599, 399, 199), strict=True):
        assert time.shape == wanted
        assert time.dtype == dtype
        assert np.allclose(time.astype(np.float64), value, rtol=1e-3)


def test_coinciding_integer_timesteps_are_refused() -> None:
    with pytest.raises(UserError, match=r"--sampler edm has timesteps that coincide as int64"):
        SelfSampling(replace(OPTIONS, sampler="edm"), signature())


def test_half_precision_models_get_half_precision_latents() -> None:
    of = signature(replace(SAMPLE, dtype="float16"), TIMESTEP)
    _, toy = run(OPTIONS, of, Toy(dtype="float16"))
    _, full = run(OPTIONS, signature(SAMPLE, TIMESTEP))
    last, wanted = toy.inputs("sample")[-1], full.inputs("sample")[-1]
    assert last.dtype == np.float16
    assert np.allclose(last.astype(np.float32), wanted, rtol=0.02, atol=0.02)


def test_learned_sigma_is_cut_off() -> None:
    _, plain = run(OPTIONS)
    _, doubled = run(OPTIONS, toy=Toy(channels=8))
    assert np.array_equal(plain.inputs("sample")[-1], doubled.inputs("sample")[-1])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_extra_input_channels_stay_as_drawn(channels: int) -> None:
    _, toy = run(OPTIONS, toy=Toy(channels=channels))
    for trajectory in range(3):
        states = toy.inputs("sample", trajectory)
        for state in states:
            assert state.shape == (1, 4, 2, 3)
            assert np.array_equal(state[:, channels:], states[0][:, channels:])
        assert not np.array_equal(states[-1][:, :channels], states[0][:, :channels])
    first, second = (toy.inputs("sample", trajectory)[0] for trajectory in (0, 1))
    assert not np.array_equal(first[:, channels:], second[:, channels:])


def test_conditioning_channels_are_not_scaled_by_edm() -> None:
    of = signature(SAMPLE, replace(TIMESTEP, dtype="float32"))
    _, toy = run(replace(OPTIONS, sampler="edm", samples=1), of, Toy(channels=2))
    states = toy.inputs("sample")
    assert all(np.array_equal(state[:, 2:], states[0][:, 2:]) for state in states)
    assert abs(float(states[0][:, 2:].std()) - 1) < 0.7


@pytest.mark.parametrize("channels", [6, 12])
def test_other_output_shapes_are_refused(channels: int) -> None:
    with pytest.raises(UserError, match=rf"returns shape \[1, {channels}, 2, 3\] for a latent"):
        run(OPTIONS, toy=Toy(channels=channels))


def test_guidance_makes_two_calls_and_combines_them() -> None:
    arrays = {
        "text": np.full((1, 5), 2, np.float32),
        "uncond_text": np.stack([np.full((1, 5), value, np.float32) for value in (-1, -3)]),
    }
    options = replace(OPTIONS, guidance=3.0, extra_inputs=arrays, sampler="flow")
    source = SelfSampling(options, signature())
    calls: list[DenoiserCall] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        calls.append(call)
        return np.full(call.inputs["sample"].shape, call.inputs["text"][0, 0], np.float32)

    source.drive(denoise)
    assert len(calls) == source.calls() == 30
    assert [call.step for call in calls[:10]] == list(range(10))
    assert [float(call.inputs["text"][0, 0]) for call in calls[10:14]] == [2, -3, 2, -3]
    # Guided velocity -1 + 3 (2 - -1) = 8 over the first interval of sigma.
    sigmas = build_sampler("flow", SamplerOptions(steps=5)).timesteps / 1000
    moved = calls[2].inputs["sample"] - calls[0].inputs["sample"]
    np.testing.assert_allclose(moved, 8 * (sigmas[1] - sigmas[0]), rtol=1e-4)
    assert np.array_equal(calls[0].inputs["sample"], calls[1].inputs["sample"])


def test_guidance_of_one_is_a_single_call() -> None:
    assert SelfSampling(replace(OPTIONS, guidance=1.0), signature()).calls() == 15


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_growth_without_bound_is_told(steps: int) -> None:
    """A model of clean predictions, read as if it predicted the noise."""
    options = replace(OPTIONS, steps=steps, schedule="cosine", spacing="trailing")
    source = SelfSampling(options, signature())
    assert source.divergence() is None
    source.drive(lambda call: np.zeros_like(call.inputs["sample"]))
    said = source.divergence() or ""
    assert "check that --sampler, --prediction and --schedule" in said
    assert f"step {steps - 1})" in said
    source.drive(lambda call: call.inputs["sample"])  # The noise itself: nothing is left of it.
    assert source.divergence() is None


@pytest.mark.parametrize("sampler", ["ddim", "flow", "edm"])
def test_bounded_trajectories_are_not_told(sampler: str) -> None:
    """Negative control: a model that predicts right for data of unit scale."""
    timestep = replace(TIMESTEP, dtype="float32")
    options = replace(OPTIONS, sampler=sampler, steps=20)
    source = SelfSampling(options, signature(SAMPLE, timestep, TEXT))
    # The best guess of normal noise, or of the velocity away from normal data, is a share of x.
    share = {"ddim": 0.9, "flow": 0.4, "edm": 0.0}[sampler]
    source.drive(lambda call: np.float32(share) * call.inputs["sample"])
    assert source.divergence() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverging_trajectory_is_reported_with_its_step(bad: float) -> None:
    source = SelfSampling(OPTIONS, signature())

    def denoise(call: DenoiserCall) -> AnyArray:
        prediction = np.zeros((1, 4, 2, 3), np.float32)
        prediction[0, 1, 0, 2] = bad if (call.trajectory, call.step) == (1, 2) else 0
        return prediction

    with pytest.raises(UserError, match=r"trajectory 1 .* after step 2 \(timestep 599\).*--pred"):
        source.drive(denoise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "--samples: 0"),
        ({"seed": -1}, "--seed: -1"),
        ({"guidance": float("nan")}, "--guidance: nan"),
        ({"guidance": 7.5}, "--guidance needs the unconditional call's inputs.*uncond_text"),
        ({"sampler": "euler"}, "--sampler: 'euler' is unknown"),
        ({"steps": 0}, "--steps: 0"),
        ({"shapes": {"latent": (1,)}}, "--shapes: 'latent' is no input of the model"),
        ({"shapes": {"sample": (1, 5, 2, 3)}}, r"--shapes: 'sample' has shape \[1, 5, 2, 3\]"),
        ({"shapes": {"sample": (1, 4, 2)}}, r"--shapes: 'sample' has shape \[1, 4, 2\]"),
        ({"shapes": {"sample": (0, 4, 2, 3)}}, r"--shapes: 'sample' has shape \[0, 4, 2, 3\]"),
        (
            {"shapes": {**SHAPES, "text": (2, 5)}},
            "dimension 'batch' is 1 in --shapes 'sample' but 2 in --shapes 'text'",
        ),
    ],
)
def test_wrong_options_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelfSampling(replace(OPTIONS, **options), signature())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"prompt": np.ones(1)}, "--inputs: 'prompt' is no input of the model"),
        ({"uncond_prompt": np.ones(1)}, "--inputs, uncond_prompt: 'prompt' is no input"),
        ({"text": np.ones((1, 5))}, "--inputs: 'text' is float64, the model takes float32"),
        ({"uncond_text": np.ones((1, 5))}, "--inputs: 'uncond_text' is float64"),
        ({"text": np.ones((0, 1, 5), np.float32)}, "'text' has no rows"),
        ({"text": np.ones(5, np.float32)}, r"--inputs: 'text' has shape \[5\]"),
        ({"text": np.ones((0, 5), np.float32)}, "'text' has no rows"),
        ({"text": np.ones((2, 6), np.float32)}, r"--inputs: 'text' has shape \[1, 6\]"),
        ({"text": np.full((1, 5), np.nan, np.float32)}, "'text' holds NaN or Inf"),
    ],
)
def test_wrong_arrays_are_refused(arrays: Mapping[str, AnyArray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelfSampling(replace(OPTIONS, extra_inputs=arrays), signature())


def test_shapes_of_the_command_line() -> None:
    assert parse_shapes(["sample:1x4x16x32x32", "t:", "in:0:7"]) == {
        "sample": (1, 4, 16, 32, 32),
        "t": (),
        "in:0": (7,),
    }


@pytest.mark.parametrize("text", ["sample", "sample:1x", "sample:1,2", ":1x2", "sample:axb"])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="write it as sample:1x4x16x32x32"):
        parse_shapes([text])


def test_a_shape_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'sample' is given twice"):
        parse_shapes(["sample:1", "sample:2"])
