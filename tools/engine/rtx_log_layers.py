"""Layers from the verbose build log of TensorRT-RTX, which needs no GPU.

Seen with 1.7.1 and detailed profiling verbosity: after "Layers:" comes one line a layer with its
name, a ``LayerType``, the tensors and constants with their ``Datatype``, and in ``Metadata`` an
``[ONNX Layer: NAME]`` for every ONNX node that the layer computes, or a part of it. A nameless node
is called ``node_of_`` and its first output; a node inside of a model-local function is
``node_of_OUTPUT | CALLING NODE (FUNCTION)``, which is read here as the calling node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qvd_trt.tools.engine.engine_layers import EngineLayer

_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[")
_SECTION = r"{}: \[(.*?)\](?=, (?:Constants|Outputs|TacticName):)"
_SHAPE = re.compile(r"Dimensions: \[([\d,]+)\]")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\[\x1e\x1f]|$)")
_FUNCTION_CALL = re.compile(r".* \| (.*) \(\w+\)")


def rtx_log_layers(log: str) -> Iterator[EngineLayer]:
    """Yield the layers that a build log lists."""
    _, _, listing = log.partition("Layers:\n")
    for line in listing.split("\n"):
        head = _LAYER.match(line)
        if head is None:
            continue
        description, _, metadata = line.partition("Metadata:")
        yield EngineLayer(
            name=head["name"],
            kind=head["kind"],
            inputs=_datatypes(description, "Inputs"),
            constants=_datatypes(description, "Constants"),
            outputs=_datatypes(description, "Outputs"),
            onnx_nodes=onnx_nodes(metadata),
            input_shape=_first_shape(description),
            raw=line,
        )


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The top-level nodes that ``Metadata`` names: for one inside of a function, its caller."""
    names = _ONNX_NODE.findall(metadata.strip())
    calls = (_FUNCTION_CALL.fullmatch(name) for name in names)
    return tuple(dict.fromkeys(c[1] if c else n for n, c in zip(names, calls, strict=True)))


def _section(description: str, name: str) -> str:
    found = re.search(_SECTION.format(name), description)
    return found[1] if found else ""


def _datatypes(description: str, section: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", _section(description, section)))


def _first_shape(description: str) -> tuple[int, ...]:
    found = _SHAPE.search(_section(description, "Inputs"))
    return tuple(map(int, found[1].split(","))) if found else ()
