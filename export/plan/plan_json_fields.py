"""The fields of a plan's JSON and their types, and what is said of a file that has others."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from typing import Any, NoReturn

import msgspec

from qvd_trt.export.errors import UserError

PLAN_FORMAT = 1

NOT_FINITE = ("inf", "-inf", "nan")
TEXT = "must be a non-empty string"
WIDTH = "must be an integer from 2 to 8"
CHANNEL_AXIS = "must be 1 (convolutions) or -1 (linear layers)"
POSITIVE = "must be a positive number"
MEASUREMENT = 'must be a number, "inf", "-inf" or "nan"'
VECTOR = "must be an array of numbers"
_ARRAY, _OBJECT = "must be an array", "must be an object"
_SHOWN = 60


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that has exactly the fields of its class."""


class Activation(_Object, frozen=True):
    """``ActivationQuant``."""

    bits: int
    scale: float
    shift: list[float] | None
    smooth: list[float] | None


class Weight(_Object, frozen=True):
    """``WeightQuant``."""

    bits: int
    scales: list[float]


class Layer(_Object, frozen=True):
    """``LayerQuant``."""

    name: str
    weight: Weight | None
    bias_correction: list[float] | None
    sqnr: float | str | None


class Dense(_Object, frozen=True):
    """``DensePlan``."""

    tensor: str
    channel_axis: int
    activation: Activation | None
    layers: list[Layer]


class Table(_Object, frozen=True):
    """``Codebook``."""

    levels: list[float]
    thresholds: list[float]


class Temporal(_Object, frozen=True):
    """``TemporalPlan``."""

    tensor: str
    quantizer: str
    td_score_before: float | str
    td_score_after: float | str
    codebook: Table
    layers: list[Layer]


class Kept(_Object, frozen=True):
    """``KeptLayer``."""

    name: str
    op: str
    reason: str


class PlanFile(_Object, frozen=True):
    """``QuantPlan``."""

    format: int
    model_hash: str
    bits: str
    algorithm: str
    dense: list[Dense]
    temporal: list[Temporal]
    kept: list[Kept]
    float32: list[str] | msgspec.UnsetType = msgspec.UNSET


class _Head(msgspec.Struct, frozen=True):
    format: Any = None


_MUST = {
    **dict.fromkeys(("dense", "temporal", "kept", "layers", "float32"), _ARRAY),
    **dict.fromkeys(("activation", "weight", "codebook"), _OBJECT),
    **dict.fromkeys(("shift", "smooth", "scales", "bias_correction"), VECTOR),
    **dict.fromkeys(("levels", "thresholds"), VECTOR),
    **dict.fromkeys(("sqnr", "td_score_before", "td_score_after"), MEASUREMENT),
    "bits": WIDTH,
    "scale": POSITIVE,
    "channel_axis": CHANNEL_AXIS,
}
"""By a field's name; all others are strings."""

_KINDS: tuple[type[_Object], ...] = (
    PlanFile,
    Dense,
    Activation,
    Layer,
    Weight,
    Temporal,
    Table,
    Kept,
)
_NAMES = {name for kind in _KINDS for name in kind.__struct_fields__}
_KEY = re.compile(rf'"({"|".join(sorted(_NAMES))})"\s*:'.encode())


def decode(content: bytes, file: str) -> PlanFile:
    """The fields of a file.

    Raises:
        UserError: it is no JSON, is no plan of this version, or a field is missing, unknown, of
            the wrong type or there twice; names ``file`` and the field.
    """
    try:
        head = msgspec.json.decode(content, type=_Head)
        plan = msgspec.json.decode(content, type=PlanFile)
    except (msgspec.DecodeError, RecursionError) as error:
        _explain(content, file, error)
    if type(head.format) is not int or head.format != PLAN_FORMAT:
        raise _other_format(file, head.format)
    # msgspec takes the last of two fields of one name without a word.
    if Counter(name.decode() for name in _KEY.findall(content)) != _field_counts(plan):
        _explain(content, file, None)
    return plan


def wrong(file: str, path: str, must: str, found: object) -> UserError:
    """The error that the value at a path ``must`` be something else."""
    text = json.dumps(found)
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return UserError(f"{file}: {path or 'the file'} {must}, found {shown}")


def _explain(content: bytes, file: str, error: Exception | None) -> NoReturn:
    """Find what is wrong, slowly: with the standard library's decoder, which tells lines."""
    try:
        raw = json.loads(content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        raise UserError(
            f"{file}: line {fault.lineno}, column {fault.colno}: not valid JSON ({fault.msg})"
        ) from fault
    except (RecursionError, ValueError) as fault:
        raise UserError(f"{file}: {fault}") from fault
    number = raw.get("format") if isinstance(raw, dict) else None
    if type(number) is not int or number != PLAN_FORMAT:
        raise _other_format(file, number) from error
    if error is None:
        raise UserError(f"{file}: a field's name has escapes; write it in plain letters")
    said, _, at = str(error).partition(" - at `$")
    path = at.rstrip("`").removeprefix(".")
    where = f"{file}: {path or 'the file'}"
    if found := re.match(r"Object contains unknown field `(.*)`$", said):
        known = _fields_at(path)
        close = difflib.get_close_matches(found[1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"{where} has no field {found[1]!r}; {hint}") from error
    if found := re.match(r"Object missing required field `(.*)`$", said):
        raise UserError(f"{where} lacks the field {found[1]!r}; add it") from error
    raise wrong(file, path, _must(path), _value_at(raw, path)) from error


def _other_format(file: str, found: object) -> UserError:
    return UserError(
        f"{file}: format must be {PLAN_FORMAT}, found {found!r}; it is no plan of this "
        "version, solve it again without --plan"
    )


def _must(path: str) -> str:
    """What the value at a path must be."""
    name = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
    if path == "bits":
        return TEXT
    if not path or (path.endswith("]") and name != "float32" and _MUST.get(name) == _ARRAY):
        return _OBJECT
    if path.endswith("]"):
        return TEXT if name == "float32" else "must be a number"
    return _MUST.get(name, TEXT)


def _fields_at(path: str) -> tuple[str, ...]:
    """The fields of the object at a path."""
    name = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
    kinds = {"": PlanFile, "dense": Dense, "activation": Activation, "layers": Layer}
    kinds |= {"weight": Weight, "temporal": Temporal, "codebook": Table, "kept": Kept}
    return kinds[name].__struct_fields__


def _value_at(raw: Any, path: str) -> Any:
    for name, index in re.findall(r"([a-z_]\w*)|\[(\d+)\]", path):
        raw = raw[name] if name else raw[int(index)]
    return raw


def _field_counts(plan: PlanFile) -> Counter[str]:
    """How often each field's name stands in a file without repetitions."""
    layers = [layer for site in plan.dense for layer in site.layers]
    layers += [layer for site in plan.temporal for layer in site.layers]
    numbers: dict[type[_Object], int] = {
        PlanFile: 1,
        Dense: len(plan.dense),
        Activation: sum(site.activation is not None for site in plan.dense),
        Layer: len(layers),
        Weight: sum(layer.weight is not None for layer in layers),
        Temporal: len(plan.temporal),
        Table: len(plan.temporal),
        Kept: len(plan.kept),
    }
    counts = Counter(
        name
        for kind, number in numbers.items()
        for name in kind.__struct_fields__
        for _ in range(number)
    )
    if plan.float32 is msgspec.UNSET:
        del counts["float32"]
    return counts


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object; keep one")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; write a finite one")
