"""Builds ONNX files with the real TensorRT-RTX compiler, on a CPU, and reads what came out.

`build` compiles a file ahead of time for the named GPU generations and returns the layers of the
engine; `int8_layers` says which Conv, ConvTranspose, MatMul and Gemm nodes of the file run on
INT8 operands. No GPU is needed, and nothing is executed: this shows that a file parses, that it
compiles and with which types, not what it computes.

What the compiler's log holds (tensorrt-rtx 1.7.1, with detailed profiling verbosity):

* After "Layers:" comes one line a layer: its name, a `LayerType`, the tensors and constants with
  their `Datatype`, and in `Metadata` an `[ONNX Layer: NAME]` for every ONNX node that the layer
  computes, or a part of it. A nameless node is called `node_of_` and its first output; a node
  inside of a model-local function is `node_of_OUTPUT | CALLING NODE (FUNCTION)`, which is read
  here as the calling node. A build for several GPU generations lists its layers once.
* `gemm` and `correlation` layers are library kernels: a MatMul or Gemm, and a Conv. `kgen` layers
  are generated kernels for everything pointwise: norms, activations, Q and DQ. `runtime_fusion`
  layers are a product with pointwise neighbours; their name spells the chain, in the order of
  execution.
* An INT8 product is a `gemm` or `correlation` with an Int8 input and an Int8 constant. q, k and v
  that read one QuantizeLinear are one such layer, with three ONNX nodes. The DQ nodes are listed
  in it too, and the `kgen` that multiplies the scales in names a MatMul once more: so a node is
  looked for in the layer that multiplies, not in any layer that names it.
* The output of an INT8 layer tells where it keeps its int32 sums: `gemm` in Half when the scales
  are fp16, else in Float; `correlation` always in Float.

How a product silently stays float; each is a test in test_builder.py:

* A Conv whose activation scale has shape [1] instead of []: it counts as a scale per axis. One
  kernel then quantizes and at once dequantizes the activation, and the Conv reads floats. A
  MatMul does not mind.
* A weight scale along the wrong axis. The Conv reads floats. The MatMul becomes a
  `runtime_fusion` named `...CastMulCast...Fc`, which reads Int8 but converts it and multiplies
  floats.
* GPU generation 7.5 among the targets: it has no INT8 Conv, and takes it away from all other
  targets.

Every build runs in a process of its own, since a failure inside of the compiler may abort it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

Shape = Sequence[int]
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]

MATRIX_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_LIBRARY_KINDS = frozenset({"gemm", "correlation"})
_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[")
_SECTION = r"{}: \[(.*?)\](?=, (?:Constants|Outputs|TacticName):)"
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[|\x1f|$)")
_FUNCTION_CALL = re.compile(r".* \| (.*) \(\w+\)")


class RtxBuildError(AssertionError):
    """TensorRT-RTX refused to parse or to build a file; the message is its own."""


@dataclass(frozen=True, slots=True)
class RtxLayer:
    """One layer of an engine, as TensorRT-RTX describes it.

    `inputs`, `constants` and `outputs` are data types ("Int8", "Half", "Float", ...). `onnx_nodes`
    are the names of the ONNX nodes that take part in the layer.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    raw: str

    @property
    def is_int8_product(self) -> bool:
        """Whether this layer is a matrix product or convolution of two Int8 operands."""
        return (
            self.kind in _LIBRARY_KINDS
            and self.inputs[:1] == ("Int8",)
            and "Int8" in (*self.inputs[1:], *self.constants)
        )


@dataclass(frozen=True, slots=True)
class RtxBuild:
    """An engine: its size, its layers, and the operator of every named node of the ONNX file."""

    engine_bytes_len: int
    layers: tuple[RtxLayer, ...]
    op_types: Mapping[str, str]

    def layers_of(self, onnx_node: str) -> tuple[RtxLayer, ...]:
        """Return the layers in which the named ONNX node takes part."""
        return tuple(layer for layer in self.layers if onnx_node in layer.onnx_nodes)


def build(
    onnx_path: Path,
    compute_capabilities: Sequence[str] = ("8.9", "12.0"),
    profiles: Profiles | None = None,
    timeout_s: float = 600.0,
) -> RtxBuild:
    """Build an ONNX file for the given GPU generations, on the CPU.

    `profiles` gives (min, opt, max) shapes for the inputs with dynamic dimensions.
    """
    request = {
        "onnx_path": str(Path(onnx_path).resolve()),
        "compute_capabilities": list(compute_capabilities),
        "profiles": {
            name: [list(shape) for shape in shapes] for name, shapes in (profiles or {}).items()
        },
    }
    with tempfile.TemporaryDirectory() as directory:
        answer_file = Path(directory, "answer.json")
        child = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), json.dumps(request), str(answer_file)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if not answer_file.exists():
            raise RtxBuildError(
                f"{onnx_path}: the compiler ended with code {child.returncode}:\n"
                + (child.stdout + child.stderr)[-4000:]
            )
        answer = json.loads(answer_file.read_text())
    if "errors" in answer:
        raise RtxBuildError(f"{onnx_path}:\n" + "\n".join(answer["errors"]))
    layers = tuple(parse_layers(answer["log"]))
    if not layers:
        raise RtxBuildError(f"{onnx_path}: the build log lists no layers")
    return RtxBuild(answer["engine_bytes_len"], layers, _op_types(Path(onnx_path)))


def int8_layers(built: RtxBuild) -> set[str]:
    """Return the names of the Conv, ConvTranspose, MatMul and Gemm nodes that run in INT8."""
    return {
        node
        for layer in built.layers
        if layer.is_int8_product
        for node in layer.onnx_nodes
        if built.op_types.get(node) in MATRIX_OPS
    }


def parse_layers(log: str) -> Iterator[RtxLayer]:
    """Yield the layers that a verbose build log lists."""
    _, _, listing = log.partition("Layers:\n")
    for line in listing.split("\n"):
        head = _LAYER.match(line)
        if head is None:
            continue
        description, _, metadata = line.partition("Metadata:")
        yield RtxLayer(
            name=head["name"],
            kind=head["kind"],
            inputs=_datatypes(description, "Inputs"),
            constants=_datatypes(description, "Constants"),
            outputs=_datatypes(description, "Outputs"),
            onnx_nodes=_onnx_nodes(metadata),
            raw=line,
        )


def _datatypes(description: str, section: str) -> tuple[str, ...]:
    found = re.search(_SECTION.format(section), description)
    return tuple(re.findall(r"Datatype: (\w+)", found[1])) if found else ()


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Return the top-level nodes: for a node inside of a function, the one that calls it."""
    names = _ONNX_NODE.findall(metadata.strip())
    calls = (_FUNCTION_CALL.fullmatch(name) for name in names)
    return tuple(dict.fromkeys(c[1] if c else n for n, c in zip(names, calls, strict=True)))


def _op_types(onnx_path: Path) -> dict[str, str]:
    model = onnx.load(onnx_path, load_external_data=False)
    return {node.name or f"node_of_{node.output[0]}": node.op_type for node in model.graph.node}


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    """Parse and build in this process: the child's work."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps every message; prints what went wrong, in case the process dies."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                print(message, file=sys.stderr, flush=True)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["onnx_path"]):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return {"errors": [f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors]}

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(request["compute_capabilities"])
    for i, capability in enumerate(request["compute_capabilities"]):
        name = "SM" + capability.replace(".", "")
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    if request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in request["profiles"].items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"errors": log.errors or ["the builder returned nothing and logged no error"]}
    return {"engine_bytes_len": engine.nbytes, "log": "\n".join(log.messages)}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_compile(json.loads(sys.argv[1]))))
