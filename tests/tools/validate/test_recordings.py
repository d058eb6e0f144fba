"""Files for Polygraphy and trtexec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import load_json

from tests.tools.validate.validated import OUTPUT, Validate, calls, run, write_trtexec


def test_polygraphy_reads_the_inputs(validate: Validate, tmp_path: Path) -> None:
    validate.report("--save-inputs", tmp_path / "inputs.json")
    loaded = load_json(str(tmp_path / "inputs.json"))
    assert len(loaded) == 3
    for feed, expected in zip(loaded, calls(), strict=True):
        assert list(feed) == list(expected)
        for name, array in expected.items():
            assert feed[name].dtype == array.dtype
            np.testing.assert_array_equal(feed[name], array)


def test_polygraphy_reads_the_outputs(validate: Validate, tmp_path: Path) -> None:
    expected = run(validate.models.qdq, calls())
    files = [
        write_trtexec(tmp_path / f"{index}.json", output) for index, output in enumerate(expected)
    ]
    saved = tmp_path / "outputs.json"
    before = validate.report("--save-outputs", saved, "--engine-outputs", *files)
    results = RunResults.load(str(saved))
    assert list(results.keys()) == ["float", "qdq", "engine"]
    for iteration, output in zip(results["qdq"], expected, strict=True):
        np.testing.assert_array_equal(iteration[OUTPUT], output)
    # The file holds several runners, of which the engine's is taken.
    after = validate.report("--engine-outputs", saved)
    assert after["summary"]["implementation"] == before["summary"]["implementation"]


def test_a_folder_is_read_by_number(validate: Validate, tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    for index, output in zip((2, 9, 10), run(validate.models.qdq, calls()), strict=True):
        write_trtexec(folder / f"out_{index}.json", output)
    summary = validate.report("--engine-outputs", folder)["summary"]
    assert summary["implementation"]["worst_relative_rms"] < 1e-5


def test_nothing_is_left_of_a_failed_run(validate: Validate, tmp_path: Path) -> None:
    outputs = run(validate.models.qdq, calls())
    outputs[2] = outputs[2][:, :, :4]
    files = [
        write_trtexec(tmp_path / f"{index}.json", output) for index, output in enumerate(outputs)
    ]
    saved = tmp_path / "saved" / "outputs.json"
    validate.refused("--save-outputs", saved, "--engine-outputs", *files)
    assert not saved.parent.exists() or not list(saved.parent.iterdir())


@pytest.mark.parametrize("narrow", [False, True])
def test_raw_arrays(validate: Validate, tmp_path: Path, narrow: bool) -> None:
    folder = tmp_path / "raw"
    validate.report("--save-raw", folder, *(["--raw-int32"] if narrow else []))
    lines = (folder / "load_inputs.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, feed in zip(lines, calls(), strict=True):
        load, shapes = line.split(" ")
        assert shapes == "--shapes=sample:1x16x8x8,timestep:1"
        files = dict(part.split(":") for part in load.removeprefix("--loadInputs=").split(","))
        assert list(files) == ["sample", "timestep"]
        np.testing.assert_array_equal(
            np.fromfile(files["sample"], np.float32), feed["sample"].ravel()
        )
        step = np.fromfile(files["timestep"], np.int32 if narrow else np.int64)
        np.testing.assert_array_equal(step, feed["timestep"])
