from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qvd_trt.calibrators.sources.calls import CalibrationSource, DenoiserCall
from qvd_trt.calibrators.sources.loader_script import LoaderScript
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

SIGNATURE = ModelSignature(
    inputs=(TensorSpec("sample", "float32", ("b", 3)), TensorSpec("timestep", "int64", ())),
    output=TensorSpec("out", "float32", ("b", 3)),
    timestep="timestep",
    latent="sample",
)
HEAD = """\
import numpy as np

def feed(step):
    return {"sample": np.full((1, 3), step, np.float32), "timestep": np.array(step)}

"""


def write(folder: Path, body: str) -> Path:
    path = folder / "loader.py"
    path.write_text(HEAD + body)
    return path


def collect(source: CalibrationSource) -> list[tuple[int, int, float]]:
    calls: list[tuple[int, int, float]] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        calls.append((call.trajectory, call.step, float(call.inputs["sample"][0, 0])))
        return call.inputs["sample"]

    source.drive(denoise)
    return calls


@pytest.mark.parametrize(
    "body",
    [
        "def load_data():\n    for step in range(3):\n        yield feed(step)\n",
        "def load_data():\n    return [feed(step) for step in range(3)]\n",
    ],
)
def test_feed_dicts_are_one_trajectory(tmp_path: Path, body: str) -> None:
    source = open_source([write(tmp_path, body)], SIGNATURE)
    assert source.calls() is None
    assert collect(source) == [(0, 0, 0.0), (0, 1, 1.0), (0, 2, 2.0)]


def test_each_list_is_a_trajectory(tmp_path: Path) -> None:
    body = "def load_data():\n    yield [feed(5), feed(6)]\n    yield [feed(7)]\n"
    calls = collect(LoaderScript(write(tmp_path, body), SIGNATURE))
    assert calls == [(0, 0, 5.0), (0, 1, 6.0), (1, 0, 7.0)]


def test_generators_are_taken_lazily(tmp_path: Path) -> None:
    body = "taken = []\ndef load_data():\n    for step in range(3):\n        taken.append(step)\n"
    path = write(tmp_path, body + "        yield feed(len(taken))\n")
    assert [value for *_, value in collect(LoaderScript(path, SIGNATURE))] == [1.0, 2.0, 3.0]


def test_chained_trajectories_are_numbered_through(tmp_path: Path) -> None:
    path = write(tmp_path, "def load_data():\n    yield [feed(0)]\n    yield [feed(1)]\n")
    source = open_source([path, path], SIGNATURE)
    assert [trajectory for trajectory, *_ in collect(source)] == [0, 1, 2, 3]
    assert source.calls() is None


def test_the_script_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_loader.py").write_text("VALUE = 4\n")
    body = "def load_data():\n    from neighbour_of_loader import VALUE\n    yield feed(VALUE)\n"
    before = list(sys.path)
    try:
        assert collect(LoaderScript(write(tmp_path, body), SIGNATURE)) == [(0, 0, 4.0)]
        assert sys.path == before
    finally:
        sys.modules.pop("neighbour_of_loader", None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def load_data():\n    yield feed(0)\n    raise ValueError('boom')\n", "8: ValueError: b"),
        ("def load_data():\n    return feed(1 / 0)\n", "7: ZeroDivisionError: division by zero"),
        ("def load_data():\n    yield np.nonsense(1)\n", "7: AttributeError: "),
        (
            "def load_data():\n    return [deeper()]\ndef deeper():\n    raise KeyError('k')\n",
            "9: KeyError: 'k'",
        ),
        ("import sys\nsys.exit(3)\n", "7: SystemExit: 3"),
        ("import no_such_module_here\n", "6: ModuleNotFoundError: No module"),
        ("def load_data(:\n", "6: SyntaxError: "),
    ],
)
def test_exceptions_are_reported_by_line(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(UserError, match=rf"loader\.py, line {message}") as caught:
        collect(LoaderScript(path, SIGNATURE))
    assert "\n" not in str(caught.value)


def test_a_relative_path_is_reported_by_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "def load_data():\n    yield feed(1 / 0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"loader\.py, line 7: ZeroDivisionError"):
        collect(LoaderScript(Path("loader.py"), SIGNATURE))


def test_errors_of_the_model_are_not_blamed_on_the_script(tmp_path: Path) -> None:
    path = write(tmp_path, "def load_data():\n    yield feed(0)\n")

    def denoise(call: DenoiserCall) -> AnyArray:
        raise RuntimeError("the session failed")

    with pytest.raises(RuntimeError, match="the session failed"):
        LoaderScript(path, SIGNATURE).drive(denoise)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def load():\n    return []\n", r"has no function load_data\(\)"),
        ("load_data = 3\n", r"has no function load_data\(\)"),
        ("def load_data():\n    return []\n", "gave no feed dict"),
        ("def load_data():\n    return feed(1)\n", "returned dict; return a list"),
        ("def load_data():\n    pass\n", "returned NoneType"),
        ("def load_data():\n    yield 3\n", "item 0: found int, expected a dict"),
        (
            "def load_data():\n    yield feed(0)\n    yield [feed(1)]\n",
            "mixes feed dicts and lists",
        ),
        (
            "def load_data():\n    yield [feed(0), {**feed(1), 'timestep': np.array(1.5)}]\n",
            "trajectory 0, step 1: 'timestep' is float64, the model takes int64",
        ),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(UserError, match=message):
        collect(LoaderScript(path, SIGNATURE))


def test_missing_script(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LoaderScript(tmp_path / "missing.py", SIGNATURE)


def test_tensors_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    body = "import torch\ndef load_data():\n    yield {'sample': torch.ones(1, 3),"
    path = write(tmp_path, body + " 'timestep': torch.tensor(3)}\n")
    assert collect(LoaderScript(path, SIGNATURE)) == [(0, 0, float(np.float32(1)))]
