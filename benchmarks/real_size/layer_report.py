"""Where the time of an engine goes: its layers in a few kinds, by inspector and profiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOP_LAYERS = 30

INT8_PRODUCT = "INT8 conv/gemm"
FLOAT_PRODUCT = "fp16/fp32 conv/gemm"
FUSED_REGION = "fused region (Myelin)"
REFORMAT = "reformat"
HTDQ = "HTDQ"
OTHER = "other"
KINDS = (INT8_PRODUCT, FLOAT_PRODUCT, FUSED_REGION, REFORMAT, HTDQ, OTHER)

_PRODUCTS = ("convolution", "gemm", "matrixmultiply", "matmul", "fullyconnected", "deconvolution")
_INT8_TACTICS = ("i8i32", "i8i8", "_i8", "int8", "imma", "s8s8")


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer of an engine.

    Attributes:
        name: As TensorRT gives it; it names the ONNX nodes that were fused.
        kind: One of ``KINDS``.
        milliseconds: Mean of the profiled runs.
        type: The inspector's layer type.
        tactic: The kernel, where the inspector names one.
        int8: Whether the layer reads an INT8 tensor.
    """

    name: str
    kind: str
    milliseconds: float
    type: str
    tactic: str
    int8: bool


def layer_times(
    layers: Sequence[Mapping[str, Any]], profile: Mapping[str, float]
) -> list[LayerTime]:
    """The profiled layers, slowest first, with what the inspector knows of them."""
    known = {str(layer.get("Name", "")): layer for layer in layers}
    found = [_layer_time(name, known.get(name, {}), time) for name, time in profile.items()]
    return sorted(found, key=lambda layer: -layer.milliseconds)


def summarize(layers: Sequence[LayerTime]) -> dict[str, Any]:
    """Totals by kind, shares of INT8, and the slowest layers, for JSON."""
    total = sum(layer.milliseconds for layer in layers) or 1.0
    kinds = {
        kind: {
            "layers": sum(layer.kind == kind for layer in layers),
            "ms": round(sum(layer.milliseconds for layer in layers if layer.kind == kind), 4),
            "share": round(
                sum(layer.milliseconds for layer in layers if layer.kind == kind) / total, 4
            ),
        }
        for kind in KINDS
    }
    int8 = [layer for layer in layers if layer.int8]
    return {
        "total_ms": round(total, 4),
        "layers": len(layers),
        "kinds": kinds,
        "int8_layers": len(int8),
        "int8_layer_share": round(len(int8) / max(len(layers), 1), 4),
        "int8_time_share": round(sum(layer.milliseconds for layer in int8) / total, 4),
        "top": [asdict(layer) for layer in layers[:TOP_LAYERS]],
    }


def _layer_time(name: str, layer: Mapping[str, Any], milliseconds: float) -> LayerTime:
    kind = str(layer.get("LayerType", ""))
    tactic = str(layer.get("TacticName", ""))
    reads_int8 = any(
        "int8" in str(entry.get("Format/Datatype", "")).lower() for entry in layer.get("Inputs", ())
    )
    is_int8 = reads_int8 or any(mark in tactic.lower() for mark in _INT8_TACTICS)
    return LayerTime(
        name=name,
        kind=_kind(name, kind.lower(), is_int8, str(layer.get("PluginType", ""))),
        milliseconds=round(milliseconds, 5),
        type=kind,
        tactic=tactic,
        int8=is_int8,
    )


def _kind(name: str, layer_type: str, is_int8: bool, plugin: str) -> str:
    if "HTDQ" in plugin or ("htdq" in name.lower() and "ForeignNode" not in name):
        return HTDQ
    if "reformat" in layer_type or name.startswith("Reformatting CopyNode"):
        return REFORMAT
    if "ForeignNode" in name or "myelin" in layer_type:
        return FUSED_REGION
    if any(product in layer_type for product in _PRODUCTS):
        return INT8_PRODUCT if is_int8 else FLOAT_PRODUCT
    return OTHER
