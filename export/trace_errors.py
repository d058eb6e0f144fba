"""Why torch could not trace a module, in one line that names the axis or the line of its code."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxscript
import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.onnx._internal.exporter._errors import ConversionError

from qvd_trt.export.torch_patches import ExportableCalls, tied_axes

Axes = Mapping[str, Mapping[int, str]]

# torch.export's two ways to say that a dynamic axis came out as a number.
_FIXED_AXIS = re.compile(
    r"static shape of (?P<size>\d+) for dimension inputs\['(?P<name>\w+)'\]\.shape\[(?P<axis>\d+)\]"
    r"|\['(?P<name2>\w+)'\](?:\.size\(\)|\.shape)\[(?P<axis2>\d+)\] (?:as dynamic but your code|is)"
    r" specialized (?:it )?to be a constant \((?P<size2>\d+)\)"
)
_DATA_DEPENDENT = "data-dependent"
_NOISY = ("torch.onnx", "torch.export", "torch.fx", "torch.utils", "onnxscript", "onnx_ir")
_LONGEST = 300  # characters of torch's own words: it adds graphs and pages of advice
_symbolic_config: Any = _config  # its module adds methods that type checkers do not see
_NOT_THE_MODULE = (
    *(
        str(Path(file).parent)
        for file in (torch.__file__, onnxscript.__file__, sympy.__file__, __file__)
    ),
    "<",  # generated code
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the exporter's warnings and the notices it logs about its own workings."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # On a data-dependent value torch prints its whole graph.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fixed_axes(error: BaseException) -> dict[tuple[str, int], int]:
    """The sizes of dynamic axes that came out as numbers, by (input, axis); empty if none did."""
    found = {}
    for match in _FIXED_AXIS.finditer(" ".join(str(e) for e in _chain(error))):
        part = match.groupdict()
        name, axis, size = (part[key] or part[f"{key}2"] for key in ("name", "axis", "size"))
        found[str(name), int(str(axis))] = int(str(size))
    return found


def first_words(error: BaseException) -> str:
    """The first line of what `error` says, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[0] if lines else type(error).__name__
    return words if len(words) <= _LONGEST else words[:_LONGEST] + "..."


def measures_otherwise(inputs: Mapping[str, Tensor], fixed: Mapping[tuple[str, int], int]) -> bool:
    """Whether no axis of `fixed` has that size in `inputs`; False if there is none."""
    return bool(fixed) and all(
        inputs[name].shape[axis] not in (1, size) for (name, axis), size in fixed.items()
    )


def explain(
    error: BaseException, module: nn.Module, inputs: Mapping[str, Tensor], dynamic_dims: Axes
) -> str:
    """One line: what must be fixed, and why.

    Where torch does not name the axis, it is found by tracing `module` at `inputs` again with one
    symbol dynamic at a time.
    """
    fails_with = partial(_fails_with, module, inputs, dynamic_dims)
    cause = _chain(error)[-1]
    fixed = fixed_axes(error)
    if fixed:
        axes = ", ".join(
            f"axis {axis} ({dynamic_dims.get(name, {}).get(axis, '?')!r}) of {name!r} at {size}"
            for (name, axis), size in fixed.items()
        )
        return (
            f"it must be fixed: {axes}, because the forward loops over it, makes a Python number "
            "of it, or compares it with one; leave it out of dynamic_dims, or trace at another size"
        )
    if any(_DATA_DEPENDENT in str(e) for e in _chain(error)):
        return (
            f"the forward depends on the values of a tensor ({_DATA_DEPENDENT}){_where(error)}; "
            "a graph takes one branch for all values, so no axis mends that"
        )
    symbols = list(dict.fromkeys(s for axes in dynamic_dims.values() for s in axes.values()))
    if any(isinstance(e, ConversionError) for e in _chain(error)):
        why = f"it was traced, but ONNX has no form of it: {first_words(cause)}"
        if "<built-in function" in why:  # arithmetic on sizes
            why += f"; the axis of {symbols} that goes through it must be fixed"
        return why
    if not symbols or fails_with([]):
        return f"{first_words(cause)}{_where(error)}"
    culprits = [symbol for symbol in symbols if fails_with([symbol])]
    if not culprits:
        return (
            f"{first_words(cause)}{_where(error)}; each axis alone is traced, not {symbols} "
            "together: state the sizes' relation by torch._check, or fix one of them"
        )
    return (
        f"{culprits} must be fixed, because of them torch says: {first_words(cause)}"
        f"{_where(error)}; leave them out of dynamic_dims"
    )


def _fails_with(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    dynamic_dims: Mapping[str, Mapping[int, str]],
    symbols: Sequence[str],
) -> bool:
    """Whether `module` cannot be traced with only `symbols` dynamic."""
    dims = {
        name: {axis: symbol for axis, symbol in axes.items() if symbol in symbols}
        for name, axes in dynamic_dims.items()
    }
    try:
        with (
            ExportableCalls(),
            tied_axes(module, dims),
            quiet(),
            _symbolic_config.patch(backed_size_oblivious=True),
        ):
            torch.export.export(
                module,
                (),
                dict(example_inputs),
                dynamic_shapes={
                    name: dict.fromkeys(dims.get(name, {}), torch.export.Dim.DYNAMIC)
                    for name in example_inputs
                },
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception:
        return True
    return False


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and its causes, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return chain


def _where(error: BaseException) -> str:
    """The innermost line of the module's own code on the way to `error`, or nothing."""
    for cause in reversed(_chain(error)):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if frame.filename.endswith("from_torch.py"):
                break  # what lies further out called the exporter
            if not frame.filename.startswith(_NOT_THE_MODULE) and frame.line:
                return f", at {Path(frame.filename).name}:{frame.lineno}: {frame.line.strip()}"
    return ""
