from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.calibrators.sources.polygraphy_json import PolygraphyJson
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

polygraphy_json = pytest.importorskip("polygraphy.json")

SIGNATURE = ModelSignature(
    inputs=(TensorSpec("sample", "float32", ("b", 3)), TensorSpec("timestep", "int64", ("b",))),
    output=TensorSpec("out", "float32", ("b", 3)),
    timestep="timestep",
    latent="sample",
)


def feed(step: int) -> dict[str, AnyArray]:
    return {
        "sample": np.full((1, 3), step / 7, np.float32),
        "timestep": np.array([1000 - step], np.int64),
    }


def collect(source: CalibrationSource) -> list[DenoiserCall]:
    calls: list[DenoiserCall] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        calls.append(call)
        return call.inputs["sample"]

    source.drive(denoise)
    return calls


def test_each_feed_dict_is_one_call(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    polygraphy_json.save_json([feed(step) for step in range(4)], str(path))
    source = open_source([path], SIGNATURE)
    calls = collect(source)
    assert (source.trajectories(), source.calls()) == (None, 4)
    assert [(call.trajectory, call.step) for call in calls] == [(0, step) for step in range(4)]
    for step, call in enumerate(calls):
        assert np.array_equal(call.inputs["sample"], feed(step)["sample"])
        assert call.inputs["timestep"].dtype == np.int64


def written_texts(path: Path, texts: Sequence[float]) -> CalibrationSource:
    """Calls with a text of their own each, in this order, in two files of one content."""
    signature = replace(
        SIGNATURE, inputs=(*SIGNATURE.inputs, TensorSpec("text", "float32", ("b", 2)))
    )
    polygraphy_json.save_json(
        [{**feed(i), "text": np.full((1, 2), text, np.float32)} for i, text in enumerate(texts)],
        str(path),
    )
    return open_source([path, path], signature)


def test_trajectories_are_told_apart_by_their_conditions(tmp_path: Path) -> None:
    """Neither latent nor timestep tells them apart, and a condition may come back."""
    calls = collect(written_texts(tmp_path / "inputs.json", (0.0, 0.0, 5.0, 0.0)))
    assert [call.trajectory for call in calls] == [0, 0, 1, 0, 2, 2, 3, 2]
    assert [call.step for call in calls] == [0, 1, 0, 2, 0, 1, 0, 2]


def test_an_input_that_varies_along_a_trajectory_is_no_condition(tmp_path: Path) -> None:
    calls = collect(written_texts(tmp_path / "inputs.json", (0.0, 1.0, 2.0, 2.0, 3.0)))
    assert [call.trajectory for call in calls] == [0] * 5 + [1] * 5
    assert [call.step for call in calls] == [*range(5), *range(5)]


def test_a_folder_of_files_with_one_call_each(tmp_path: Path) -> None:
    for step in (1, 0, 2):
        polygraphy_json.save_json(feed(step), str(tmp_path / f"{step:010}.json"))
    calls = collect(open_source([tmp_path], SIGNATURE))
    assert [int(call.inputs["timestep"][0]) for call in calls] == [1000, 999, 998]
    assert [call.step for call in calls] == [0, 1, 2]


def test_wrong_dtype_names_file_and_call(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    bad = {**feed(1), "timestep": np.array([1.5], np.float32)}
    polygraphy_json.save_json([feed(0), bad], str(path))
    message = r"inputs\.json, call 1: 'timestep' is float32, the model takes int64"
    with pytest.raises(UserError, match=message):
        PolygraphyJson(path, SIGNATURE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "empty list"),
        ("{", "not a Polygraphy JSON file"),
        ("3", "expected a list of feed dicts"),
        ("[3]", "call 0: found int, expected a dict"),
        (json.dumps([{"sample": {"polygraphy_class": "ndarray", "array": "??"}}]), "not a Poly"),
        (json.dumps([{"sample": {"polygraphy_class": "Nonsense"}}]), "not a Polygraphy JSON"),
        (json.dumps([{"sample": {"a": 1}, "timestep": 3}]), "expected a numeric numpy array"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        PolygraphyJson(path, SIGNATURE)
    assert "\n" not in str(caught.value)


def test_saved_outputs_are_refused(tmp_path: Path) -> None:
    comparator = pytest.importorskip("polygraphy.comparator")
    results = comparator.RunResults()
    results.add([{"out": np.ones(3, np.float32)}], runner_name="r", runtime=0.1)
    results.save(str(tmp_path / "outputs.json"))
    with pytest.raises(UserError, match=r"holds RunResults.*--save-inputs"):
        PolygraphyJson(tmp_path / "outputs.json", SIGNATURE)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        PolygraphyJson(tmp_path / "missing.json", SIGNATURE)
    with pytest.raises(UserError, match=r"holds no \.json"):
        PolygraphyJson(tmp_path, SIGNATURE)
