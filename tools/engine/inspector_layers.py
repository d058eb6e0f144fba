"""Layers from the JSON of TensorRT's engine inspector, of 8.6 and later.

The keys differ between versions and between kinds of layers, so that every one may be missing.
Data types are the last word but one of ``Format/Datatype``, such as "Thirty-two wide channel
vectorized row major Int8 format", or a name alone. Where a layer has no ``Metadata`` its name
tells the ONNX nodes, joined with " + " and " || " and wrapped in ``PWN(...)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.rtx_log_layers import onnx_nodes

_DATATYPES = {
    "int8": "Int8",
    "half": "Half",
    "fp16": "Half",
    "float": "Float",
    "fp32": "Float",
    "bf16": "BFloat16",
    "bfloat16": "BFloat16",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
    "uint8": "UInt8",
    "fp8": "FP8",
    "fp4": "FP4",
    "int4": "Int4",
}
_WORD = re.compile(r"\w+")
_JOINT = re.compile(r" \+ |\s*\|\|\s*|, ")
_WRAPPER = re.compile(r"^(?:PWN|fusion|Reformatting CopyNode[^()]*)\(|\)+$")


def inspector_layers(texts: Iterable[str]) -> Iterator[EngineLayer]:
    """Yield the layers of ``get_layer_information(index, LayerInformationFormat.JSON)``."""
    for text in texts:
        entry = read_entry(text)
        yield _layer(entry) if isinstance(entry, dict) else _bare(str(entry))


def read_entry(text: str) -> Any:
    """What the inspector says of one layer.

    TensorRT 8.6 joins the nodes in ``Metadata`` by a record separator as such (0x1E), which strict
    JSON does not allow in a string.
    """
    return json.loads(text, strict=False)


def _layer(entry: Mapping[str, Any]) -> EngineLayer:
    name = str(entry.get("Name", ""))
    inputs = _tensors(entry, "Inputs")
    constants = [*_tensors(entry, "Constants"), *_weights(entry)]
    return EngineLayer(
        name=name,
        kind=str(entry.get("LayerType", "")),
        inputs=tuple(_datatype(tensor) for tensor in inputs),
        constants=tuple(_datatype(tensor) for tensor in constants),
        outputs=tuple(_datatype(tensor) for tensor in _tensors(entry, "Outputs")),
        onnx_nodes=onnx_nodes(str(entry.get("Metadata") or "")) or _nodes_of_name(name),
        input_shape=_shape(inputs),
        origin=str(entry.get("Origin", "")),
        raw=json.dumps(entry, ensure_ascii=False),
    )


def _bare(name: str) -> EngineLayer:
    """A layer of an engine without detailed verbosity: only a name."""
    return EngineLayer(name, "", (), (), (), _nodes_of_name(name), (), raw=name)


def _tensors(entry: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    tensors = entry.get(key)
    return [t for t in tensors if isinstance(t, dict)] if isinstance(tensors, list) else []


def _weights(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    weights = entry.get("Weights")
    return [weights] if isinstance(weights, dict) else []


def _datatype(tensor: Mapping[str, Any]) -> str:
    """The type in words such as "Row major linear FP16 format"; "" where none is told."""
    text = tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("Type") or ""
    words = [_DATATYPES.get(word.lower()) for word in _WORD.findall(str(text))]
    return next((word for word in reversed(words) if word), "")


def _shape(tensors: list[Mapping[str, Any]]) -> tuple[int, ...]:
    dims = tensors[0].get("Dimensions") if tensors else None
    known = isinstance(dims, list) and all(isinstance(dim, int) and dim >= 0 for dim in dims)
    return tuple(dims) if known and dims is not None else ()


def _nodes_of_name(name: str) -> tuple[str, ...]:
    if "ForeignNode[" in name or name.startswith("Reformatting"):
        return ()
    parts = (part.strip() for part in _JOINT.split(name))
    names = []
    for part in parts:
        while (bare := _WRAPPER.sub("", part)) != part:
            part = bare
        names.append(part)
    return tuple(dict.fromkeys(n for n in names if n))
