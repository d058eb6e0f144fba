"""The layers of a built engine, as TensorRT's inspector or TensorRT-RTX's build log lists them.

In the inspector's JSON, of 8.6 and later, the keys differ between versions and between kinds of
layers, so that every one may be missing. Data types are the last word but one of
``Format/Datatype``, such as "Thirty-two wide channel vectorized row major Int8 format", or a name
alone. Where a layer has no ``Metadata`` its name tells the ONNX nodes, joined with " + " and " || "
and wrapped in ``PWN(...)``.

The verbose build log of TensorRT-RTX needs no GPU. Seen with 1.7.1 and detailed profiling
verbosity: after "Layers:" comes one line a layer with its name, a ``LayerType``, the tensors and
constants with their ``Datatype``, and in ``Metadata`` an ``[ONNX Layer: NAME]`` for every ONNX node
that the layer computes, or a part of it. A nameless node is called ``node_of_`` and its first
output; a node inside of a model-local function is ``node_of_OUTPUT | CALLING NODE (FUNCTION)``,
which is read here as the calling node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PRODUCT_WORDS = ("conv", "gemm", "matrixmultiply", "matmul", "correlation", "fullyconnected")
_COPY_WORDS = ("reformat", "copynode", "reorder")
_GENERATED_COPY = re.compile(r"__myl_(?:Move|Copy|Cast|Resh|Tran)+_")

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
_NAME_JOINT = re.compile(r" \+ |\s*\|\|\s*|, ")
_NAME_WRAPPER = re.compile(r"^(?:PWN|fusion|Reformatting CopyNode[^()]*)\(|\)+$")
_LOG_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[")
_LOG_SECTION = r"{}: \[(.*?)\](?=, (?:Constants|Outputs|TacticName):)"
_LOG_SHAPE = re.compile(r"Dimensions: \[([\d,]+)\]")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\[\x1e\x1f]|$)")
_FUNCTION_CALL = re.compile(r".* \| (.*) \(\w+\)")


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer.

    Attributes:
        name: TensorRT's name for it.
        kind: Its type, such as ``gemm``, ``CaskConvolution`` or ``Reformat``.
        inputs: Data types of the tensors it reads: ``Int8``, ``Half``, ``Float``, ...
        constants: Data types of its weights and other constants.
        outputs: Data types of the tensors it writes.
        onnx_nodes: Names of the ONNX nodes that take part in it.
        input_shape: Extents of its first input; empty where unknown.
        raw: The description it was read from.
        origin: Why TensorRT 8 made a layer of kind ``Reformat``: ``QDQ``, ``CONCAT``, ``REFORMAT``.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    input_shape: tuple[int, ...]
    raw: str
    origin: str = ""

    @property
    def is_product(self) -> bool:
        """Whether it is a library kernel for a matrix product or a convolution."""
        return any(word in self.kind.lower() for word in _PRODUCT_WORDS)

    @property
    def is_int8_product(self) -> bool:
        """Whether it is a matrix product or convolution of two Int8 operands.

        A layer that lists no second operand is a product with weights that it does not show.
        """
        others = (*self.inputs[1:], *self.constants)
        return self.is_product and self.inputs[:1] == ("Int8",) and (not others or "Int8" in others)

    @property
    def is_copy(self) -> bool:
        """Whether it only changes the layout or the type of a tensor.

        TensorRT 8.6 runs a QuantizeLinear as a Reformat layer of that name: that is no copy.
        """
        if self.origin == "QDQ":
            return False
        text = f"{self.kind} {self.name}".lower().replace(" ", "")
        generated = _GENERATED_COPY.match(self.name) is not None
        return generated or any(word in text for word in _COPY_WORDS)

    @property
    def is_opaque(self) -> bool:
        """Whether it is a fused block that does not list its kernels (TensorRT 8)."""
        return self.kind == "Myelin" or "ForeignNode[" in self.name

    @property
    def is_plugin(self) -> bool:
        """Whether a plugin runs it."""
        return self.kind.lower().startswith("plugin")


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
        onnx_nodes=_onnx_nodes(str(entry.get("Metadata") or "")) or _nodes_of_name(name),
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
    parts = (part.strip() for part in _NAME_JOINT.split(name))
    names = []
    for part in parts:
        while (bare := _NAME_WRAPPER.sub("", part)) != part:
            part = bare
        names.append(part)
    return tuple(dict.fromkeys(n for n in names if n))


def rtx_log_layers(log: str) -> Iterator[EngineLayer]:
    """Yield the layers that a build log lists."""
    _, _, listing = log.partition("Layers:\n")
    for line in listing.split("\n"):
        head = _LOG_LAYER.match(line)
        if head is None:
            continue
        description, _, metadata = line.partition("Metadata:")
        yield EngineLayer(
            name=head["name"],
            kind=head["kind"],
            inputs=_log_datatypes(description, "Inputs"),
            constants=_log_datatypes(description, "Constants"),
            outputs=_log_datatypes(description, "Outputs"),
            onnx_nodes=_onnx_nodes(metadata),
            input_shape=_log_shape(description),
            raw=line,
        )


def _log_section(description: str, name: str) -> str:
    found = re.search(_LOG_SECTION.format(name), description)
    return found[1] if found else ""


def _log_datatypes(description: str, section: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", _log_section(description, section)))


def _log_shape(description: str) -> tuple[int, ...]:
    found = _LOG_SHAPE.search(_log_section(description, "Inputs"))
    return tuple(map(int, found[1].split(","))) if found else ()


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The top-level nodes that ``Metadata`` names: for one inside of a function, its caller."""
    names = _ONNX_NODE.findall(metadata.strip())
    calls = (_FUNCTION_CALL.fullmatch(name) for name in names)
    return tuple(dict.fromkeys(c[1] if c else n for n, c in zip(names, calls, strict=True)))
