"""A small denoiser in all types of all targets, from the oldest and newest opset, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.targets import TARGETS, FloatType
from tests.export.files_people_have import denoiser, feeds
from tests.export.test_one_door import calibrated, written
from tests.rtx.builder import RtxBuildError, build, int8_layers
from tests.tools.test_opsets import attend

FORMS = [(target.name, dtype) for target in TARGETS.values() for dtype in target.float_types]
PROFILES = {"sample": ([1, 16, 16], [1, 16, 24], [2, 16, 32]), "timestep": ([1], [1], [2])}


@pytest.fixture(scope="module", params=[13, 25])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FloatModel, Any]:
    """The model, from opset 25 with Attention, and its plan."""
    graph = denoiser(request.param, attend if request.param == 25 else None)
    model = open_model(written(graph, tmp_path_factory.mktemp("source")))
    _, _, plan = calibrated(model, [feeds(seed) for seed in range(6)])
    return model, plan


@pytest.mark.parametrize(("target", "dtype"), FORMS, ids=lambda value: str(value))
def test_builds_with_its_layers_in_int8(
    source: tuple[FloatModel, Any], target: str, dtype: FloatType, tmp_path: Path
) -> None:
    model, plan = source
    path = tmp_path / "model.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS[target], dtype)), path)
    if target == "ort":
        with pytest.raises(RtxBuildError, match="unsupported input type of UINT8"):
            build(path, ("8.9",), PROFILES)
        return
    planned = {quant.name for site in plan.dense for quant in site.layers}
    assert len(planned) >= 2
    assert int8_layers(build(path, ("8.9",), PROFILES)) == planned
