"""Export a torch or diffusers denoiser to ONNX, and prove the file against torch.

It, `torch_patches` and `trace_errors` are the modules of `qvd_trt.export` that import torch.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qvd_trt.export.atomic_files import written_together
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import NAME_SCOPES
from qvd_trt.export.model_file import (
    INLINE_LIMIT_BYTES,
    data_path,
    needs_external_data,
    save_model,
)
from qvd_trt.export.torch_patches import SYMBOLIC_TRANSLATIONS, ExportableCalls, tied_axes
from qvd_trt.export.trace_errors import explain, first_words, fixed_axes, measures_otherwise, quiet

_NOISE, _FAR_BEYOND_NOISE = 1e-5, 100.0
"""An error that many times that at the example, and above the first number, is no rounding."""


class ExportError(UserError):
    """The module could not be exported, or the exported file disagrees with torch."""


@dataclass(frozen=True, slots=True)
class AgreementCheck:
    """The exported file against torch at one set of inputs.

    `max_relative_error` is max|onnx - torch| / max|torch|, the largest over the outputs.
    """

    shapes: Mapping[str, tuple[int, ...]]
    max_relative_error: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how it was checked.

    `inputs` and `outputs` map a name to its shape, a symbol for each dynamic axis. `external_data`
    is the weights' file when there is one. `checks` starts with the example inputs.
    """

    path: Path
    external_data: Path | None
    opset: int
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    parameters: int
    checks: tuple[AgreementCheck, ...]
    seconds: float

    @property
    def max_relative_error(self) -> float:
        """The largest error over all checks."""
        return max(check.max_relative_error for check in self.checks)


def export_denoiser(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    dynamic_dims: Mapping[str, Mapping[int, str]],
    path: str | os.PathLike[str],
    *,
    opset: int = 20,
    output_names: Sequence[str] = ("out",),
    verify_inputs: Sequence[Mapping[str, Tensor]] = (),
    tolerance: float = 1e-3,
    external_data_threshold: int = INLINE_LIMIT_BYTES,
) -> ExportReport:
    """Write `module` to `path` as ONNX, after checking it in ONNX Runtime against torch.

    The graph inputs are `example_inputs` (any shapes and dtypes), by name and in the order of
    `module.forward`; the outputs are the tensors of its result, dataclasses and tuples flattened,
    in number equal to `output_names`. `dynamic_dims` maps an input to {axis: symbol}; axes of equal
    symbol are equal at run time, and symbolic axes should not measure 1 in `example_inputs`.

    The file is compared with the eager module at `example_inputs` and at each of `verify_inputs`.
    Pass shapes and batch sizes unlike the example's: exporters silently bake dimensions, and only a
    run at other dimensions shows it. `tolerance` bounds max|onnx - torch| / max|torch|; at
    `verify_inputs` the error must also be of the size that rounding has at the example. Nothing is
    left at `path` unless all checks pass; an older file there is then replaced. Runs in eval mode
    without gradients, and restores the mode.

    Raises:
        ValueError: names or axes that do not fit together, or no `output_names`.
        ExportError: torch could not export the module, a dynamic axis came out fixed, ONNX Runtime
            refused the file or its inputs, or an error exceeds `tolerance`, is not finite or is far
            beyond the example's.
    """
    started = time.perf_counter()
    path = Path(path)
    example_inputs = _in_forward_order(module, example_inputs)
    _validate(example_inputs, dynamic_dims, verify_inputs, output_names)
    every_input = (example_inputs, *verify_inputs)
    with _inference_mode(module):
        _require_single_precision(module, every_input)
        expected = [_run(module, inputs, output_names) for inputs in every_input]
        model = _trace(module, example_inputs, verify_inputs, dynamic_dims, opset, output_names)
        _require_dynamic(model, dynamic_dims)
        _strip_metadata(model)

        external = needs_external_data(model, external_data_threshold)
        with written_together(path) as staged:
            save_model(model, staged, external=external)
            checks = _verify(staged, every_input, expected, output_names, tolerance)
    return ExportReport(
        path=path,
        external_data=data_path(path) if external else None,
        opset=opset,
        inputs={v.name or "": _shape(v) for v in model.graph.inputs},
        outputs={v.name or "": _shape(v) for v in model.graph.outputs},
        parameters=sum(p.numel() for p in module.parameters()),
        checks=checks,
        seconds=time.perf_counter() - started,
    )


def _in_forward_order(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sort `inputs` as `module.forward` takes them; raises ValueError for a name it does not."""
    parameters = inspect.signature(module.forward).parameters
    unknown = [name for name in inputs if name not in parameters]
    if unknown:
        raise ValueError(
            f"{type(module).__name__}.forward takes no {unknown}; it takes {list(parameters)}"
        )
    return {name: inputs[name] for name in parameters if name in inputs}


def _validate(
    example_inputs: Mapping[str, Tensor],
    dynamic_dims: Mapping[str, Mapping[int, str]],
    verify_inputs: Sequence[Mapping[str, Tensor]],
    output_names: Sequence[str],
) -> None:
    """Raise ValueError where the arguments of `export_denoiser` do not fit together."""
    if not output_names:
        raise ValueError("output_names is empty")
    for name, axes in dynamic_dims.items():
        if name not in example_inputs:
            raise ValueError(
                f"dynamic_dims names {name!r}, which is no input of {list(example_inputs)}"
            )
        bad = [axis for axis in axes if not 0 <= axis < example_inputs[name].ndim]
        if bad:
            raise ValueError(
                f"dynamic axes {bad} of {name!r}: its shape is {tuple(example_inputs[name].shape)}"
            )
    for number, inputs in enumerate(verify_inputs):
        if set(inputs) != set(example_inputs):
            raise ValueError(
                f"verify_inputs[{number}] has inputs {sorted(inputs)}, "
                f"the example has {sorted(example_inputs)}"
            )


@contextlib.contextmanager
def _inference_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each submodule's own mode is restored."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def _require_single_precision(
    module: nn.Module, all_inputs: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise ExportError for 16-bit floats among the parameters or the inputs.

    The file is checked on the CPU, where ONNX Runtime has no bfloat16 kernels, and float16 ones
    that round otherwise than torch's: a wrong graph could not be told from a right one.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"parameter {name!r}"] = parameter
    for inputs in all_inputs:
        tensors |= {f"input {name!r}": tensor for name, tensor in inputs.items()}
    for what, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() < 4:
            raise ExportError(
                f"{what} of {type(module).__name__} is {str(tensor.dtype).removeprefix('torch.')},"
                " and the check of the file in ONNX Runtime on the CPU needs float32: pass"
                " module.float() and float32 inputs; the precision of the result is chosen when it"
                " is quantized (qvd-export --dtype)"
            )


def _run(
    module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str]
) -> list[npt.NDArray[Any]]:
    """The eager outputs; raises ExportError where the module itself fails, in torch's words.

    Before the trace, which takes minutes on a large model and tells of a bad input less clearly.
    """
    try:
        leaves = pytree.tree_leaves(module(**inputs))
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        raise ExportError(
            f"{type(module).__name__} itself fails at {shapes}: {first_words(error)}"
        ) from error
    outputs = [leaf.numpy(force=True) for leaf in leaves if isinstance(leaf, Tensor)]
    if len(outputs) != len(output_names):
        raise ExportError(
            f"{type(module).__name__} returns {len(outputs)} tensors, "
            f"output_names has {len(output_names)}: {list(output_names)}"
        )
    return outputs


def _trace(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    others: Sequence[Mapping[str, Tensor]],
    dynamic_dims: Mapping[str, Mapping[int, str]],
    opset: int,
    output_names: Sequence[str],
) -> ir.Model:
    """Return the ONNX graph of `module`; raises ExportError when torch cannot make it.

    It is traced at `example_inputs`; where an axis comes out as a number there, at the first of
    `others` that measures otherwise: a model may compare a size with the one it was made for.
    """
    program = None
    try:
        with ExportableCalls(), tied_axes(module, dynamic_dims), quiet():
            program = torch.onnx.export(
                module,
                kwargs=dict(example_inputs),
                dynamic_shapes={name: dict(dynamic_dims.get(name, {})) for name in example_inputs},
                input_names=list(example_inputs),
                output_names=list(output_names),
                opset_version=opset,
                custom_translation_table=SYMBOLIC_TRANSLATIONS,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        for other in others:
            if measures_otherwise(other, fixed_axes(error)):
                return _trace(module, other, (), dynamic_dims, opset, output_names)
        why = explain(error, module, example_inputs, dynamic_dims)
        raise ExportError(f"torch.onnx.export failed on {type(module).__name__}: {why}") from error
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    model: ir.Model = program.model
    found = [value.name for value in model.graph.outputs]
    if found != list(output_names):
        raise ExportError(f"the module returns {len(found)} tensors: {found}, not {output_names}")
    return model


def _require_dynamic(model: ir.Model, dynamic_dims: Mapping[str, Mapping[int, str]]) -> None:
    """Raise ExportError when an axis of `dynamic_dims` is a number in the graph."""
    inputs = {value.name: value for value in model.graph.inputs}
    for name, axes in dynamic_dims.items():
        if name not in inputs:
            raise ExportError(f"input {name!r} is not in the graph: does the module use it?")
        shape = _shape(inputs[name])
        for axis, symbol in axes.items():
            if isinstance(shape[axis], int):
                raise ExportError(
                    f"axis {axis} ({symbol!r}) of input {name!r} was fixed to {shape[axis]}"
                )


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        raise ExportError(f"the exported graph gives no shape for {value.name!r}")
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def _strip_metadata(model: ir.Model) -> None:
    """Keep of all metadata and doc strings the nodes' `NAME_SCOPES` only.

    The exporter writes stack traces there, with the absolute paths of the exporting machine.
    """
    model.metadata_props.clear()
    model.doc_string = None
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        values = list(graph.inputs)
        if isinstance(graph, ir.Graph):
            values += graph.initializers.values()
        for node in graph.all_nodes():
            scopes = node.metadata_props.get(NAME_SCOPES)
            node.metadata_props.clear()
            if scopes is not None:
                node.metadata_props[NAME_SCOPES] = scopes
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None


def _verify(
    path: Path,
    all_inputs: Sequence[Mapping[str, Tensor]],
    all_expected: Sequence[Sequence[npt.NDArray[Any]]],
    output_names: Sequence[str],
    tolerance: float,
) -> tuple[AgreementCheck, ...]:
    """Compare the file with torch at all inputs; raises ExportError where they disagree."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load the exported file: {error}") from error
    taken = {value.name for value in session.get_inputs()}
    checks: list[AgreementCheck] = []
    for inputs, expected in zip(all_inputs, all_expected, strict=True):
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        feeds = {name: t.numpy(force=True) for name, t in inputs.items() if name in taken}
        try:
            actual = session.run(list(output_names), feeds)
        except Exception as error:
            raise ExportError(
                f"the exported file fails at {shapes}, where torch runs: {error}\n"
                "A dimension was probably baked in during the export."
            ) from error
        errors = [_relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
        for name, relative in zip(output_names, errors, strict=True):
            if not relative <= tolerance:
                raise ExportError(
                    f"output {name!r} disagrees with torch at {shapes}: "
                    f"max relative error {relative:.3g}, tolerance {tolerance:.3g}"
                )
            if checks and relative > max(_NOISE, _FAR_BEYOND_NOISE * checks[0].max_relative_error):
                raise ExportError(
                    f"output {name!r} disagrees with torch at {shapes}: max relative error "
                    f"{relative:.3g}, where rounding gives {checks[0].max_relative_error:.3g} at "
                    "the example; a branch on its sizes was probably baked in: make it the same "
                    "for all sizes, or fix the axis"
                )
        checks.append(AgreementCheck(shapes=shapes, max_relative_error=max(errors)))
    return tuple(checks)


def _relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """max|actual - expected| / max|expected|; inf for unlike shapes, nan where a value is nan."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    scale = np.abs(expected.astype(np.float64)).max(initial=0.0)
    return float(difference.max(initial=0.0) / (scale or 1.0))
