from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from qvd_trt.tools.cli.export import main as export
from tests.models.small_unet import write_small_unet
from tests.tools.validate.validated import Models, Validate, calls

SAMPLING = ["--sampler", "flow", "--steps", "3", "--samples", "2", "--shapes", "sample:1x16x8x8"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    models = Models(tmp_path_factory.mktemp("validated"))
    write_small_unet(models.float_model)
    for name, target in (("qdq.onnx", "ort"), ("qdq16.onnx", "trt"), ("qdq8.onnx", "trt8")):
        written = ["-o", str(models.folder / name), "--target", target]
        with contextlib.redirect_stdout(io.StringIO()):
            assert export([str(models.float_model), *SAMPLING, *written]) == 0
    recorded = calls()
    np.savez(
        models.folder / "calls.npz",
        sample=np.stack([call["sample"] for call in recorded]),
        timestep=np.stack([call["timestep"] for call in recorded]),
    )
    return models


@pytest.fixture
def validate(models: Models, capsys: pytest.CaptureFixture[str]) -> Validate:
    return Validate(models, capsys)
