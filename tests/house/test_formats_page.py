"""docs/formats.md against the code: its examples are read, its tables name every field."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.export.graph.signature import ModelSignature, read_signature
from qvd_trt.export.model_file import load_model
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.tools.engine.build_engine import BuildReport
from qvd_trt.tools.quantize_report import QuantizationReport
from qvd_trt.tools.validation.report import COMPARISONS, ValidationReport

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text()
MODEL = ROOT / "examples" / "pandigits_unet" / "model.onnx"


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its rank or higher."""
    level, text = re.findall(rf"^(#+) {re.escape(title)}\n(.*)", PAGE, re.DOTALL | re.MULTILINE)[0]
    body: str = re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return body


def example(title: str, language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)
    return textwrap.dedent(code)


@pytest.fixture(scope="module")
def signature() -> ModelSignature:
    return read_signature(load_model(MODEL).graph)


def calls_of(path: Path, signature: ModelSignature) -> list[tuple[int, int, float]]:
    """Trajectory, step and timestep of every call."""
    seen: list[tuple[int, int, float]] = []

    def denoise(call: DenoiserCall) -> Any:
        seen.append((call.trajectory, call.step, float(call.inputs[signature.timestep][0])))
        return call.inputs[signature.latent]

    open_source([path], signature).drive(denoise)
    return seen


def test_recording_example_fits_the_example_model(
    signature: ModelSignature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example(".npz trajectories", "python"), "formats.md", "exec"), {})
    seen = calls_of(tmp_path / "recorded", signature)
    assert [call[:2] for call in seen] == [(i, step) for i in range(3) for step in range(5)]
    assert [call[2] for call in seen[:5]] == [999, 799, 599, 399, 199]


def test_loader_example_fits_the_example_model(signature: ModelSignature, tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(example("Loader script", "python"))
    seen = calls_of(script, signature)
    assert [call[:2] for call in seen] == [(i, step) for i in range(3) for step in range(3)]


def test_plan_example_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(example("Plan", "json"))
    plan = load_plan(path)
    assert [tensor for tensor, _ in plan.sites()] == ["hidden", "silu"]


def keys(value: object) -> set[str]:
    """The names of all fields of a JSON value."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Export report", {field.name for field in fields(QuantizationReport)}),
        ("Build report", {field.name for field in fields(BuildReport)}),
        ("Validation report", {field.name for field in fields(ValidationReport)}),
        ("Validation report", {comparison.name for comparison in COMPARISONS}),
        ("Plan", keys(json.loads(example("Plan", "json"))) - {"dense", "layers", "temporal"}),
    ],
)
def test_every_field_is_explained(title: str, names: set[str]) -> None:
    prose = re.sub(r"^```.*?^```", "", section(title), flags=re.DOTALL | re.MULTILINE)
    named = {word for code in re.findall(r"`([^`\n]+)`", prose) for word in re.split(r"\W+", code)}
    assert names - named == set()
