"""Reads and validates the JSON of a quantization plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.calibrators.bits import Bits
from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.json_fields import JsonField
from qvd_trt.calibrators.plan import (
    ActivationQuant,
    Codebook,
    DensePlan,
    LayerQuant,
    QuantPlan,
    TemporalPlan,
    WeightQuant,
)
from qvd_trt.calibrators.sites import KeptLayer

PLAN_FORMAT = 1


def read_plan(top: JsonField) -> QuantPlan:
    """The plan in a decoded file.

    Raises:
        UserError: naming the field that is missing, unknown, of the wrong type, out of range, or
            that names a tensor or layer a second time.
    """
    _check_format(top)
    fields = top.object("format", "model_hash", "bits", "algorithm", "dense", "temporal", "kept")
    seen = _Names()
    return QuantPlan(
        model_hash=fields["model_hash"].text(),
        bits=_read_bits(fields["bits"]),
        algorithm=fields["algorithm"].text(),
        dense=tuple(_read_dense(item, seen) for item in fields["dense"].items()),
        temporal=tuple(_read_temporal(item, seen) for item in fields["temporal"].items()),
        kept=tuple(_read_kept(item, seen) for item in fields["kept"].items()),
    )


class _Names:
    """The tensors and layers met so far, to refuse the second of a name."""

    def __init__(self) -> None:
        self._tensors: dict[str, str] = {}
        self._layers: dict[str, str] = {}

    def tensor(self, field: JsonField) -> str:
        return self._add(self._tensors, field)

    def layer(self, field: JsonField) -> str:
        return self._add(self._layers, field)

    def _add(self, seen: dict[str, str], field: JsonField) -> str:
        name = field.text()
        first = seen.setdefault(name, field.path)
        if first != field.path:
            raise UserError(f"{field.file}: {field.path} repeats {first} ({name!r}); keep one")
        return name


def _check_format(top: JsonField) -> None:
    found = top.value.get("format") if isinstance(top.value, dict) else None
    if type(found) is not int or found != PLAN_FORMAT:
        raise UserError(
            f"{top.file}: format must be {PLAN_FORMAT}, found {found!r}; it is no plan of this "
            "version, solve it again without --plan"
        )


def _read_bits(field: JsonField) -> Bits:
    try:
        return Bits.parse(field.text())
    except UserError as error:
        raise UserError(f"{field.file}: {field.path}: {error}") from error


def _read_dense(field: JsonField, seen: _Names) -> DensePlan:
    fields = field.object("tensor", "channel_axis", "activation", "layers")
    axis = fields["channel_axis"]
    if type(axis.value) is not int or axis.value not in (1, -1):
        raise axis.error("must be 1 (convolutions) or -1 (linear layers)")
    activation = fields["activation"]
    return DensePlan(
        tensor=seen.tensor(fields["tensor"]),
        channel_axis=axis.value,
        activation=None if activation.is_null else _read_activation(activation),
        layers=_read_layers(fields["layers"], seen),
    )


def _read_activation(field: JsonField) -> ActivationQuant:
    fields = field.object("bits", "scale", "shift", "smooth")
    shift = None if fields["shift"].is_null else fields["shift"].vector()
    channels = None if shift is None else len(shift)
    smooth = fields["smooth"]
    return ActivationQuant(
        bits=fields["bits"].integer(2, 8),
        scale=fields["scale"].positive(),
        shift=shift,
        smooth=None if smooth.is_null else smooth.positive_vector(channels),
    )


def _read_layers(field: JsonField, seen: _Names) -> tuple[LayerQuant, ...]:
    return tuple(_read_layer(item, seen) for item in field.items())


def _read_layer(field: JsonField, seen: _Names) -> LayerQuant:
    fields = field.object("name", "weight", "bias_correction", "sqnr")
    weight = None if fields["weight"].is_null else _read_weight(fields["weight"])
    bias, sqnr = fields["bias_correction"], fields["sqnr"]
    outputs = None if weight is None else len(weight.scales)
    return LayerQuant(
        name=seen.layer(fields["name"]),
        weight=weight,
        bias_correction=None if bias.is_null else bias.vector(outputs),
        sqnr=None if sqnr.is_null else sqnr.measurement(),
    )


def _read_weight(field: JsonField) -> WeightQuant:
    fields = field.object("bits", "scales")
    return WeightQuant(bits=fields["bits"].integer(2, 8), scales=fields["scales"].positive_vector())


def _read_temporal(field: JsonField, seen: _Names) -> TemporalPlan:
    fields = field.object(
        "tensor", "quantizer", "td_score_before", "td_score_after", "codebook", "layers"
    )
    return TemporalPlan(
        tensor=seen.tensor(fields["tensor"]),
        quantizer=fields["quantizer"].text(),
        codebook=_read_codebook(fields["codebook"]),
        layers=_read_layers(fields["layers"], seen),
        td_score_before=fields["td_score_before"].measurement(),
        td_score_after=fields["td_score_after"].measurement(),
    )


def _read_codebook(field: JsonField) -> Codebook:
    fields = field.object("levels", "thresholds")
    levels = fields["levels"].vector()
    if not 2 <= len(levels) <= 256:
        raise UserError(
            f"{field.file}: {field.path}.levels must have 2 to 256 numbers, found {len(levels)}"
        )
    thresholds = fields["thresholds"].vector(len(levels) - 1)
    fields["levels"].refuse(_not_above(levels, strictly=True), "must be above the one before it")
    fields["thresholds"].refuse(
        _not_above(thresholds, strictly=False), "must not be below the one before it"
    )
    return Codebook(levels=levels, thresholds=thresholds)


def _not_above(values: Float32Array, *, strictly: bool) -> npt.NDArray[np.bool_]:
    """Marks the elements that break the ascending order."""
    marks = np.zeros(len(values), np.bool_)
    before, after = values[:-1], values[1:]
    marks[1:] = after <= before if strictly else after < before
    return marks


def _read_kept(field: JsonField, seen: _Names) -> KeptLayer:
    fields = field.object("name", "op", "reason")
    return KeptLayer(
        name=seen.layer(fields["name"]),
        op=fields["op"].text(),
        reason=fields["reason"].text(),
    )
