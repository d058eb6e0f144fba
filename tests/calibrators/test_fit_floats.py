"""Floats of 16 and 32 bits serve each other's inputs; equal numbers draw equal rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.fit_floats import fit_float, fit_floats
from qvd_trt.calibrators.sources.self_sampling import SelfSampling, SelfSamplingOptions
from qvd_trt.calibrators.statistics.collector import _draw_rows
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

VALUES = [0.0, -1.5, 65504.0, 2.0**-20, np.inf, -np.inf]


@pytest.mark.parametrize("given", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", ["float16", "float32"])
def test_floats_are_fitted(given: Any, wanted: str) -> None:
    array = np.array(VALUES, given)
    fitted = fit_float(array, wanted)
    assert fitted.dtype == np.dtype(wanted)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(fitted, array.astype(np.float32).astype(wanted))
    scalar = fit_float(np.array(1.5, given), wanted)
    assert (scalar.shape, float(scalar)) == ((), 1.5)


def test_bfloat16_comes_back_from_a_file(tmp_path: Path) -> None:
    array = np.array(VALUES, ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", array=array)
    loaded = np.load(tmp_path / "a.npz")["array"]
    assert loaded.dtype != array.dtype  # numpy forgets what the bytes are
    np.testing.assert_array_equal(fit_float(loaded, "float32"), array.astype(np.float32))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(np.float64, "float32"), (np.int64, "float16"), (np.float16, "int64"), (np.bool_, "float32")],
)
def test_everything_else_stays_as_it_is(given: Any, wanted: str) -> None:
    array = np.zeros(3, given)
    assert fit_float(array, wanted) is array


def signature(dtype: str) -> ModelSignature:
    latent = TensorSpec("sample", dtype, (1, 4, 8, 8))
    text = TensorSpec("text", dtype, (1, 5, 6))
    return ModelSignature(
        (latent, TensorSpec("timestep", "int64", (1,)), text), latent, "timestep", "sample"
    )


def test_unknown_names_stay_for_the_check() -> None:
    extra = np.zeros(3, np.float16)
    assert fit_floats({"extra": extra}, signature("float32"))["extra"] is extra


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_given_inputs_and_unconditional_ones(dtype: str) -> None:
    arrays: dict[str, AnyArray] = {
        "text": np.full((1, 5, 6), 0.1, np.float32),
        "uncond_text": np.full((1, 5, 6), 0.2, np.float16),
    }
    options = SelfSamplingOptions(
        sampler="flow", steps=2, samples=1, guidance=2.0, extra_inputs=arrays
    )
    seen = []

    def denoise(call: DenoiserCall) -> Any:
        seen.append(call.inputs["text"])
        return np.zeros((1, 4, 8, 8), np.float32)

    SelfSampling(options, signature(dtype)).drive(denoise)
    assert {array.dtype for array in seen} == {np.dtype(dtype)}
    assert [float(array.flat[0]) for array in seen[:2]] == pytest.approx([0.1, 0.2], abs=1e-3)


def test_equal_numbers_draw_equal_rows() -> None:
    low = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float16)
    calls = [
        DenoiserCall({"sample": array}, 0, 0)
        for array in (low, low.astype(np.float32), 2 * low.astype(np.float32))
    ]
    drawn = [_draw_rows(call, 8)[0].tolist() for call in calls]
    assert drawn[0] == drawn[1] != drawn[2]
