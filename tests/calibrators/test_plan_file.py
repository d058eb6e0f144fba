from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.plan_json import load_plan, save_plan
from qvd_trt.export.plan.quant_plan import (
    ActivationQuant,
    Bits,
    Codebook,
    DensePlan,
    LayerQuant,
    QuantPlan,
    TemporalPlan,
    WeightQuant,
)
from qvd_trt.export.plan.site_types import KeptLayer

BIGGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def example() -> QuantPlan:
    conv = LayerQuant("conv", WeightQuant(8, vector(0.1, 0.25)), vector(-0.5, 1e-9), 34.5)
    dense = (
        DensePlan("x", 1, ActivationQuant(8, 0.0123), (conv, LayerQuant("cut", None))),
        DensePlan(
            'h/Add \u2192 "quoted"',
            -1,
            ActivationQuant(6, 1 / 3, vector(0.1, -2.5, 0), vector(1, 2, 1 / 3)),
            (LayerQuant("fc", None, vector(1, 2), float("inf")),),
        ),
        DensePlan("w_only", -1, None, (LayerQuant("fc2", WeightQuant(4, vector(3))),)),
    )
    codebook = Codebook(vector(-1, 0, 0.1, 2), vector(-0.5, 0.05, 1))
    temporal = (
        TemporalPlan("emb", "hidi", codebook, (LayerQuant("time", None),), float("nan"), 0.95),
    )
    kept = (KeptLayer("conv_in", "Conv", "first layer"),)
    return QuantPlan("0" * 64, Bits(8, 8), "scri", dense, temporal, kept)


def equal(left: Any, right: Any) -> bool:
    """Deep equality of plans; arrays by dtype and bits, NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())
    if is_dataclass(left):
        return all(equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right or (left != left and right != right))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "plan.json"
    save_plan(example(), path)
    assert equal(load_plan(path), example())
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


def test_equality_of_this_test_sees_one_bit() -> None:
    plan = example()
    other = copy.deepcopy(plan)
    scales = other.dense[0].layers[0].weight
    assert scales is not None
    scales.scales[1] = np.nextafter(scales.scales[1], np.float32(1))
    assert equal(plan, copy.deepcopy(plan))
    assert not equal(plan, other)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=SMALLEST, max_value=BIGGEST, width=32)


def vectors(elements: st.SearchStrategy[float], size: int) -> Any:
    return hnp.arrays(np.float32, size, elements=elements)


@st.composite
def plans(draw: st.DrawFn) -> QuantPlan:
    channels, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    weight = WeightQuant(draw(st.integers(2, 8)), draw(vectors(POSITIVE, outputs)))
    layer = LayerQuant(
        draw(st.text(min_size=1)),
        draw(st.sampled_from([None, weight])),
        draw(st.none() | vectors(FINITE, outputs)),
        draw(st.none() | st.floats()),
    )
    activation = ActivationQuant(
        draw(st.integers(2, 8)),
        draw(POSITIVE),
        draw(st.none() | vectors(FINITE, channels)),
        draw(st.none() | vectors(POSITIVE, channels)),
    )
    # 0 and -0 are one level.
    levels = np.unique(draw(st.lists(FINITE, min_size=2, max_size=20, unique_by=lambda x: x + 0)))
    codebook = Codebook(
        levels.astype(np.float32),
        np.sort(draw(vectors(FINITE, len(levels) - 1))),
    )
    dense = DensePlan("dense", draw(st.sampled_from([1, -1])), activation, (layer,))
    temporal = TemporalPlan("t", "q", codebook, (), draw(st.floats()), draw(st.floats()))
    kept = KeptLayer(layer.name + "kept", "Conv", draw(st.text(min_size=1)))
    bits = Bits(draw(st.integers(2, 8)), draw(st.sampled_from([4, 8, 16])))
    large = tuple(draw(st.lists(st.text(min_size=1), unique=True, max_size=3)))
    return QuantPlan(draw(st.text(min_size=1)), bits, "scri", (dense,), (temporal,), (kept,), large)


@settings(max_examples=200, deadline=None)
@given(plans())
def test_every_plan_round_trips_exactly(plan: QuantPlan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        save_plan(plan, path)
        assert equal(load_plan(path), plan)


def test_a_vector_is_one_line_of_short_numbers(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(example(), path)
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert '"scales": [0.1, 0.25]' in lines
    assert '"smooth": [1.0, 2.0, 0.33333334]' in lines
    assert '"levels": [-1.0, 0.0, 0.1, 2.0],' in lines
    assert '"bits": "w8a8",' in lines
    assert '"scale": 0.0123,' in lines


def test_float32_is_written_only_when_there_is_something_to_say(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(example(), path)
    assert "float32" not in path.read_text()
    save_plan(replace(example(), float32=("stream", "scores")), path)
    text = path.read_text()
    assert load_plan(path).float32 == ("stream", "scores")
    for wrong, message in (
        ('["stream", 3]', r"float32\[1\] must be a non-empty string, found 3"),
        ('["stream", ""]', r'float32\[1\] must be a non-empty string, found ""'),
        ('["stream", "stream"]', r"float32\[1\] repeats float32\[0\]"),
        ('"stream"', r'float32 must be an array, found "stream"'),
        ('["stream"], "float32": []', r"the field 'float32' stands twice"),
    ):
        listed = json.dumps(["stream", "scores"], indent=2).replace("\n", "\n  ")
        assert text.count(listed) == 1
        path.write_text(text.replace(listed, wrong))
        with pytest.raises(UserError, match=message):
            load_plan(path)


def test_an_edit_by_hand_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(example(), path)
    text = path.read_text()
    assert text.count('"scale": 0.0123,') == 1
    path.write_text(text.replace('"scale": 0.0123,', '"scale":0.5 ,'))
    activation = load_plan(path).dense[0].activation
    assert activation is not None
    assert activation.scale == 0.5


def edit(*path: str | int, to: Any) -> Callable[[Any], None]:
    def apply(plan: Any) -> None:
        for key in path[:-1]:
            plan = plan[key]
        plan[path[-1]] = to

    return apply


def remove(*path: str | int) -> Callable[[Any], None]:
    def apply(plan: Any) -> None:
        for key in path[:-1]:
            plan = plan[key]
        del plan[path[-1]]

    return apply


ACT = ("dense", 1, "activation")
CODE = ("temporal", 0, "codebook")
LAYER = ("dense", 0, "layers", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edit(*ACT, "scale", to=-1),
            "dense[1].activation.scale must be a positive number, found -1",
        ),
        (edit(*ACT, "scale", to=0), "dense[1].activation.scale must be a positive number, found 0"),
        (
            edit(*ACT, "scale", to=True),
            "dense[1].activation.scale must be a positive number, found t",
        ),
        (
            edit(*ACT, "scale", to="1"),
            'dense[1].activation.scale must be a positive number, found "1"',
        ),
        (
            edit(*ACT, "scale", to=1e-60),
            "dense[1].activation.scale must be a positive number within",
        ),
        (edit(*ACT, "scale", to=10**400), "dense[1].activation.scale must be a positive number"),
        (
            edit(*ACT, "bits", to=9),
            "dense[1].activation.bits must be an integer from 2 to 8, found 9",
        ),
        (edit(*ACT, "bits", to=8.0), "dense[1].activation.bits must be an integer from 2 to 8"),
        (edit(*ACT, "smooth", 1, to=0), "dense[1].activation.smooth[1] must be a positive number"),
        (
            edit(*ACT, "smooth", 1, to=1e-50),
            "dense[1].activation.smooth[1] must be a positive number",
        ),
        (
            edit(*ACT, "smooth", to=[1, 2]),
            "dense[1].activation.smooth must have 3 numbers, found 2",
        ),
        (
            edit(*ACT, "smooth", to=3),
            "dense[1].activation.smooth must be an array of numbers, found 3",
        ),
        (
            edit(*ACT, "shift", to=[]),
            "dense[1].activation.shift must be an array of numbers, found []",
        ),
        (
            edit(*ACT, "shift", 2, to=None),
            "dense[1].activation.shift[2] must be a number, found null",
        ),
        (
            edit(*ACT, "shift", 2, to=True),
            "dense[1].activation.shift[2] must be a number, found true",
        ),
        (edit(*ACT, "shift", 2, to=1e39), "dense[1].activation.shift[2] must be a finite number"),
        (
            edit(*ACT, "scal", to=1),
            "dense[1].activation has no field 'scal'; did you mean 'scale'?",
        ),
        (remove(*ACT, "scale"), "dense[1].activation lacks the field 'scale'; add it"),
        (edit(*ACT, to=[]), "dense[1].activation must be an object, found []"),
        (
            edit("dense", 0, "channel_axis", to=0),
            "dense[0].channel_axis must be 1 (convolutions) or -1",
        ),
        (edit("dense", 0, "tensor", to=""), 'dense[0].tensor must be a non-empty string, found ""'),
        (
            edit("dense", 2, "tensor", to='h/Add \u2192 "quoted"'),
            "dense[2].tensor repeats dense[1].tensor (",
        ),
        (edit("temporal", 0, "tensor", to="x"), "temporal[0].tensor repeats dense[0].tensor ('x')"),
        (
            edit("kept", 0, "name", to="conv"),
            "kept[0].name repeats dense[0].layers[0].name ('conv')",
        ),
        (edit("dense", to={}), "dense must be an array, found {}"),
        (
            edit(*LAYER, "weight", "scales", 0, to=-0.1),
            "layers[0].weight.scales[0] must be a positive",
        ),
        (
            edit(*LAYER, "weight", "bits", to=16),
            "layers[0].weight.bits must be an integer from 2 to 8",
        ),
        (
            edit(*LAYER, "bias_correction", to=[1]),
            "layers[0].bias_correction must have 2 numbers, found 1",
        ),
        (
            edit(*LAYER, "sqnr", to="high"),
            'layers[0].sqnr must be a number, "inf", "-inf" or "nan"',
        ),
        (
            edit(*CODE, "levels", 1, to=-1),
            "temporal[0].codebook.levels[1] must be above the one before",
        ),
        (
            edit(*CODE, "thresholds", 1, to=-9),
            "codebook.thresholds[1] must not be below the one before it",
        ),
        (edit(*CODE, "thresholds", to=[0, 1]), "codebook.thresholds must have 3 numbers, found 2"),
        (
            edit(*CODE, "levels", to=[1]),
            "temporal[0].codebook.levels must have 2 to 256 numbers, found 1",
        ),
        (
            edit(*CODE, "levels", to=list(range(257))),
            "temporal[0].codebook.levels must have 2 to 256 numbers, found 257",
        ),
        (edit("temporal", 0, "td_score_after", to=None), "td_score_after must be a number"),
        (edit("bits", to="w9a8"), "bits: --bits: weight width 9 is not supported"),
        (edit("format", to=2), "format must be 1, found 2"),
        (edit("format", to="1"), "format must be 1, found '1'"),
        (remove("format"), "format must be 1, found None"),
        (edit("note", to="mine"), "the file has no field 'note'; it has format, model_hash"),
        (remove("kept"), "the file lacks the field 'kept'; add it"),
    ],
)
def test_wrong_fields_are_named(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path = tmp_path / "plan.json"
    save_plan(example(), path)
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(UserError) as caught:
        load_plan(path)
    assert str(caught.value).startswith("plan.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1,\n "bits" "w8a8"}', "plan.json: line 2, column 9: not valid JSON"),
        ("", "plan.json: line 1, column 1: not valid JSON"),
        ("[1]", "plan.json: format must be 1"),
        ('{"format": NaN}', "plan.json: NaN is no JSON number"),
        ('{"format": 1, "format": 1}', "plan.json: the field 'format' stands twice"),
        ("[" * 100_000, "plan.json: "),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_plan(path)
    assert message in str(caught.value)


def test_two_sites_on_one_tensor_have_an_axis_each(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    shared = replace(example().dense[2], tensor="x")
    save_plan(replace(example(), dense=(example().dense[0], shared)), path)
    assert [(s.tensor, s.channel_axis) for s in load_plan(path).dense] == [("x", 1), ("x", -1)]


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        load_plan(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json cannot be read"):
        load_plan(tmp_path / "binary.json")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0])
def test_an_invalid_plan_is_never_written(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "plan.json"
    save_plan(example(), path)
    before = path.read_bytes()
    broken = DensePlan("y", 1, ActivationQuant(8, 1.0, smooth=vector(1, bad)), ())
    with pytest.raises(UserError, match=r"plan\.json: dense\[0\]\.activation\.smooth\[1\]"):
        save_plan(replace(example(), dense=(broken,)), path)
    assert path.read_bytes() == before
