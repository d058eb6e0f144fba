"""Builds ONNX files with the real TensorRT-RTX compiler, on a CPU, and reads what came out.

`build` compiles a file ahead of time for the named GPU generations and returns the layers of the
engine; `int8_layers` says which Conv, ConvTranspose, MatMul and Gemm nodes of the file run on
INT8 operands. No GPU is needed, and nothing is executed: this shows that a file parses, that it
compiles and with which types, not what it computes.

What the compiler's log holds (tensorrt-rtx 1.7.1, with detailed profiling verbosity):

* After "Layers:" comes one line a layer, which `qvd_trt.tools.engine.engine_layers` reads. A build
  for several GPU generations lists its layers once.
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

Every build runs in a process of its own, since a failure inside of the compiler may abort it; it
is the one that `qvd-build` runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.compile_process import compile_in_child
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.onnx_file import WEIGHT_OPS, node_name
from qvd_trt.tools.engine.shape_ranges import ShapeRange
from qvd_trt.tools.engine.tensorrt_install import find_tensorrt

Shape = Sequence[int]
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]


class RtxBuildError(AssertionError):
    """TensorRT-RTX refused to parse or to build a file; the message is its own."""


@dataclass(frozen=True, slots=True)
class RtxBuild:
    """An engine: its size, its layers, and the operator of every named node of the ONNX file."""

    engine_bytes_len: int
    layers: tuple[EngineLayer, ...]
    op_types: Mapping[str, str]

    def layers_of(self, onnx_node: str) -> tuple[EngineLayer, ...]:
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
    plan = BuildPlan(
        model=Path(onnx_path).resolve(),
        kind="rtx",
        version=find_tensorrt("rtx").version,
        shapes=tuple(
            ShapeRange(name, *map(tuple, shapes)) for name, shapes in (profiles or {}).items()
        ),
        compute_capabilities=tuple(compute_capabilities),
    )
    try:
        answer = compile_in_child(plan, timeout_s)
    except UserError as error:
        raise RtxBuildError(str(error)) from error
    if answer.inspector_error is not None:
        raise RtxBuildError(f"{onnx_path}: {answer.inspector_error}")
    assert answer.engine is not None
    return RtxBuild(len(answer.engine), answer.layers, _op_types(Path(onnx_path)))


def int8_layers(built: RtxBuild) -> set[str]:
    """Return the names of the Conv, ConvTranspose, MatMul and Gemm nodes that run in INT8."""
    return {
        node
        for layer in built.layers
        if layer.is_int8_product
        for node in layer.onnx_nodes
        if built.op_types.get(node) in WEIGHT_OPS
    }


def _op_types(onnx_path: Path) -> dict[str, str]:
    return {node_name(node): node.op_type for node in ir.load(onnx_path).graph}
