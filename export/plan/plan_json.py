"""The quantization plan as JSON that can be read and edited by hand (docs/formats.md).

Objects are indented; a vector of numbers stands on one line, each number in the fewest digits that
give back the same float32.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.atomic_files import not_a_file, write_atomically
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan import plan_json_fields as fields
from qvd_trt.export.plan.plan_json_fields import PLAN_FORMAT, PlanFile
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


def save_plan(plan: QuantPlan, path: Path) -> None:
    """Write the plan, atomically; :func:`load_plan` gives back equal numbers, bit by bit.

    Raises:
        UserError: the plan itself is invalid, in the words of :func:`load_plan`.
    """
    data = _plan(plan)
    _Reader(path.name).plan(msgspec.convert(_listed(data), PlanFile))
    text = "".join(_emit(data, "")) + "\n"
    write_atomically(path, text.encode())


def load_plan(path: Path) -> QuantPlan:
    """Read and validate what :func:`save_plan` or a person wrote.

    Raises:
        UserError: naming the field and what is wrong with it, for example ``plan.json:
            dense[3].activation.scale must be a positive number, found -1``.
    """
    if not path.is_file():
        raise UserError(f"--plan: {path} {not_a_file(path)}; give a plan's file")
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    return _Reader(path.name).plan(fields.decode(content, path.name))


class _Reader:
    """From the fields of a file to the plan, refusing values that a plan cannot have."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._tensors: dict[str, dict[int | None, str]] = {}
        self._layers: dict[str, str] = {}

    def plan(self, plan: PlanFile) -> QuantPlan:
        return QuantPlan(
            model_hash=self._text("model_hash", plan.model_hash),
            bits=self._bits(plan.bits),
            algorithm=self._text("algorithm", plan.algorithm),
            dense=tuple(self._dense(f"dense[{i}]", site) for i, site in enumerate(plan.dense)),
            temporal=tuple(
                self._temporal(f"temporal[{i}]", site) for i, site in enumerate(plan.temporal)
            ),
            kept=tuple(self._kept(f"kept[{i}]", layer) for i, layer in enumerate(plan.kept)),
            float32=self._float32(plan.float32),
        )

    def _float32(self, names: list[str] | msgspec.UnsetType) -> tuple[str, ...]:
        seen: dict[str, str] = {}
        listed = [] if isinstance(names, msgspec.UnsetType) else names
        return tuple(self._name(seen, f"float32[{i}]", name) for i, name in enumerate(listed))

    def _dense(self, at: str, site: fields.Dense) -> DensePlan:
        if site.channel_axis not in (1, -1):
            raise self._wrong(f"{at}.channel_axis", fields.CHANNEL_AXIS, site.channel_axis)
        return DensePlan(
            tensor=self._tensor(f"{at}.tensor", site.tensor, site.channel_axis),
            channel_axis=site.channel_axis,
            activation=(
                None
                if site.activation is None
                else self._activation(f"{at}.activation", site.activation)
            ),
            layers=self._layer_quants(f"{at}.layers", site.layers),
        )

    def _activation(self, at: str, quant: fields.Activation) -> ActivationQuant:
        shift = None if quant.shift is None else self._vector(f"{at}.shift", quant.shift)
        smooth = None
        if quant.smooth is not None:
            channels = None if shift is None else len(shift)
            smooth = self._positive(f"{at}.smooth", quant.smooth, channels)
        self._positive(f"{at}.scale", [quant.scale], scalar=True)
        return ActivationQuant(self._width(f"{at}.bits", quant.bits), quant.scale, shift, smooth)

    def _layer_quants(self, at: str, layers: list[fields.Layer]) -> tuple[LayerQuant, ...]:
        return tuple(self._layer(f"{at}[{i}]", layer) for i, layer in enumerate(layers))

    def _layer(self, at: str, layer: fields.Layer) -> LayerQuant:
        weight = None
        if (given := layer.weight) is not None:
            width = self._width(f"{at}.weight.bits", given.bits)
            weight = WeightQuant(width, self._positive(f"{at}.weight.scales", given.scales))
        bias = None
        if layer.bias_correction is not None:
            outputs = None if weight is None else len(weight.scales)
            bias = self._vector(f"{at}.bias_correction", layer.bias_correction, outputs)
        return LayerQuant(
            name=self._name(self._layers, f"{at}.name", layer.name),
            weight=weight,
            bias_correction=bias,
            sqnr=None if layer.sqnr is None else self._measurement(f"{at}.sqnr", layer.sqnr),
        )

    def _temporal(self, at: str, site: fields.Temporal) -> TemporalPlan:
        return TemporalPlan(
            tensor=self._tensor(f"{at}.tensor", site.tensor, None),
            quantizer=self._text(f"{at}.quantizer", site.quantizer),
            codebook=self._codebook(f"{at}.codebook", site.codebook),
            layers=self._layer_quants(f"{at}.layers", site.layers),
            td_score_before=self._measurement(f"{at}.td_score_before", site.td_score_before),
            td_score_after=self._measurement(f"{at}.td_score_after", site.td_score_after),
        )

    def _codebook(self, at: str, table: fields.Table) -> Codebook:
        levels = self._vector(f"{at}.levels", table.levels)
        if not 2 <= len(levels) <= 256:
            raise UserError(
                f"{self._file}: {at}.levels must have 2 to 256 numbers, found {len(levels)}"
            )
        thresholds = self._vector(f"{at}.thresholds", table.thresholds, len(levels) - 1)
        falls = np.flatnonzero(levels[1:] <= levels[:-1]) + 1
        self._refuse(f"{at}.levels", table.levels, falls, "must be above the one before it")
        falls = np.flatnonzero(thresholds[1:] < thresholds[:-1]) + 1
        below = "must not be below the one before it"
        self._refuse(f"{at}.thresholds", table.thresholds, falls, below)
        return Codebook(levels=levels, thresholds=thresholds)

    def _kept(self, at: str, layer: fields.Kept) -> KeptLayer:
        return KeptLayer(
            name=self._name(self._layers, f"{at}.name", layer.name),
            op=self._text(f"{at}.op", layer.op),
            reason=self._text(f"{at}.reason", layer.reason),
        )

    def _bits(self, text: str) -> Bits:
        try:
            return Bits.parse(self._text("bits", text))
        except UserError as error:
            raise UserError(f"{self._file}: bits: {error}") from error

    def _tensor(self, at: str, name: str, axis: int | None) -> str:
        """Two dense sites may share a tensor, each with a channel axis of its own."""
        seen = self._tensors.setdefault(self._text(at, name), {})
        rivals = seen.values() if axis is None else map(seen.get, (axis, None))
        first = next((path for path in rivals if path is not None), None)
        if first is not None:
            raise UserError(f"{self._file}: {at} repeats {first} ({name!r}); keep one")
        seen[axis] = at
        return name

    def _name(self, seen: dict[str, str], at: str, name: str) -> str:
        first = seen.setdefault(self._text(at, name), at)
        if first != at:
            raise UserError(f"{self._file}: {at} repeats {first} ({name!r}); keep one")
        return name

    def _text(self, at: str, text: str) -> str:
        if not text:
            raise self._wrong(at, fields.TEXT, text)
        return text

    def _width(self, at: str, bits: int) -> int:
        if not 2 <= bits <= 8:
            raise self._wrong(at, fields.WIDTH, bits)
        return bits

    def _measurement(self, at: str, value: float | str) -> float:
        if isinstance(value, str) and value not in fields.NOT_FINITE:
            raise self._wrong(at, fields.MEASUREMENT, value)
        return float(value)

    def _vector(self, at: str, values: list[float], length: int | None = None) -> Float32Array:
        if not values:
            raise self._wrong(at, fields.VECTOR, values)
        if length is not None and len(values) != length:
            raise UserError(f"{self._file}: {at} must have {length} numbers, found {len(values)}")
        with np.errstate(over="ignore", under="ignore"):
            vector = np.array(values).astype(np.float32)
        finite = "must be a finite number within float32"
        self._refuse(at, values, np.flatnonzero(~np.isfinite(vector)), finite)
        return vector

    def _positive(
        self, at: str, values: list[float], length: int | None = None, *, scalar: bool = False
    ) -> Float32Array:
        """Refuse what is not above zero, also after rounding to float32."""
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.array(values).astype(np.float32)
        if scalar and not values[0] > 0:
            raise self._wrong(at, fields.POSITIVE, values[0])
        if scalar and (rounded[0] == 0 or not np.isfinite(rounded[0])):
            raise self._wrong(at, f"{fields.POSITIVE} within float32", values[0])
        vector = rounded if scalar else self._vector(at, values, length)
        bad = np.flatnonzero(vector <= 0)
        self._refuse(at, values, bad, f"{fields.POSITIVE} within float32")
        return vector

    def _refuse(self, at: str, values: list[float], bad: npt.NDArray[np.intp], must: str) -> None:
        """Complain about the first of the elements at these indices."""
        if bad.size:
            index = int(bad[0])
            raise self._wrong(f"{at}[{index}]", must, values[index])

    def _wrong(self, at: str, must: str, found: object) -> UserError:
        return fields.wrong(self._file, at, must, found)


def _plan(plan: QuantPlan) -> dict[str, Any]:
    data = {
        "format": PLAN_FORMAT,
        "model_hash": plan.model_hash,
        "bits": str(plan.bits),
        "algorithm": plan.algorithm,
        "dense": [_dense(site) for site in plan.dense],
        "temporal": [_temporal(site) for site in plan.temporal],
        "kept": [asdict(layer) for layer in plan.kept],
    }
    # Only where there is something to say: the field is younger than the format.
    return {**data, "float32": list(plan.float32)} if plan.float32 else data


def _dense(site: DensePlan) -> dict[str, Any]:
    return {
        "tensor": site.tensor,
        "channel_axis": site.channel_axis,
        "activation": None if site.activation is None else _activation(site.activation),
        "layers": [_layer(layer) for layer in site.layers],
    }


def _activation(quant: ActivationQuant) -> dict[str, Any]:
    return {
        "bits": quant.bits,
        "scale": _number(quant.scale),
        "shift": quant.shift,
        "smooth": quant.smooth,
    }


def _layer(layer: LayerQuant) -> dict[str, Any]:
    return {
        "name": layer.name,
        "weight": None if layer.weight is None else _weight(layer.weight),
        "bias_correction": layer.bias_correction,
        "sqnr": None if layer.sqnr is None else _number(layer.sqnr),
    }


def _weight(quant: WeightQuant) -> dict[str, Any]:
    return {"bits": quant.bits, "scales": quant.scales}


def _temporal(site: TemporalPlan) -> dict[str, Any]:
    return {
        "tensor": site.tensor,
        "quantizer": site.quantizer,
        "td_score_before": _number(site.td_score_before),
        "td_score_after": _number(site.td_score_after),
        "codebook": {"levels": site.codebook.levels, "thresholds": site.codebook.thresholds},
        "layers": [_layer(layer) for layer in site.layers],
    }


def _listed(value: Any) -> Any:
    """The same with lists for arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list) else value


def _number(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _emit(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, np.ndarray):
        yield _vector(value)
    elif isinstance(value, (Mapping, list)) and value:
        inner = indent + "  "
        opening, closing = "{}" if isinstance(value, Mapping) else "[]"
        keys = [json.dumps(key) + ": " for key in value] if isinstance(value, Mapping) else None
        parts = list(value.values()) if isinstance(value, Mapping) else value
        yield opening
        for index, part in enumerate(parts):
            yield ("" if index == 0 else ",") + "\n" + inner + (keys[index] if keys else "")
            yield from _emit(part, inner)
        yield "\n" + indent + closing
    else:
        yield json.dumps(value, ensure_ascii=False)


def _vector(values: Float32Array) -> str:
    return f"[{', '.join(_float32(value) for value in values.astype(np.float32, copy=False))}]"


def _float32(value: np.float32) -> str:
    if not np.isfinite(value):
        return json.dumps(float(value))
    text = str(value)
    # Two roundings, to float64 and on to float32, could miss; the full digits never do.
    return text if np.float32(float(text)) == value else repr(float(value))
