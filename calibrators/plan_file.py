"""The quantization plan as JSON that can be read and edited by hand.

Objects are indented; a vector of numbers stands on one line, each number in the fewest digits that
give back the same float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.calibrators.atomic_write import write_atomically
from qvd_trt.calibrators.json_fields import JsonField
from qvd_trt.calibrators.plan import (
    ActivationQuant,
    DensePlan,
    LayerQuant,
    QuantPlan,
    TemporalPlan,
    WeightQuant,
)
from qvd_trt.calibrators.plan_reader import PLAN_FORMAT, read_plan


def save_plan(plan: QuantPlan, path: Path) -> None:
    """Write the plan, atomically; :func:`load_plan` gives back equal numbers, bit by bit.

    Raises:
        UserError: the plan itself is invalid, in the words of :func:`load_plan`.
    """
    text = "".join(_emit(_plan(plan), "")) + "\n"
    read_plan(JsonField(json.loads(text), path.name))
    write_atomically(path, text.encode())


def load_plan(path: Path) -> QuantPlan:
    """Read and validate what :func:`save_plan` or a person wrote.

    Raises:
        UserError: naming the field and what is wrong with it, for example ``plan.json:
            dense[3].activation.scale must be a positive number, found -1``.
    """
    return read_plan(JsonField.read(path))


def _plan(plan: QuantPlan) -> dict[str, Any]:
    return {
        "format": PLAN_FORMAT,
        "model_hash": plan.model_hash,
        "bits": str(plan.bits),
        "algorithm": plan.algorithm,
        "dense": [_dense(site) for site in plan.dense],
        "temporal": [_temporal(site) for site in plan.temporal],
        "kept": [asdict(layer) for layer in plan.kept],
    }


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
