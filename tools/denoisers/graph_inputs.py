"""From the arguments of a diffusers model's call to the inputs of a graph."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import LATENT_NAMES, TIMESTEP_NAMES, TensorSpec, latent_by_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SYNONYMS = (
    LATENT_NAMES,
    TIMESTEP_NAMES,
    ("encoder_hidden_states", "context", "prompt_embeds"),
)
"""Names that models of several families have for one argument."""


def import_torch() -> Any:
    """The module torch.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "denoisers take and return torch tensors, and torch cannot be imported "
            f"({error}); pip install torch"
        ) from error
    return torch


def name_arguments(
    inputs: Sequence[TensorSpec], positional: Sequence[object], named: Mapping[str, object]
) -> dict[str, object]:
    """Which graph input every argument is for.

    Positional arguments follow the graph's order. An argument whose name the graph lacks goes to
    the input that other model families call so: ``hidden_states`` to ``sample``, for example.
    None, strings and flags that belong to no input are left out; they choose what a torch module
    does, which the graph has fixed.

    Raises:
        UserError: an argument that carries numbers is of no input, one is given twice, or one is
            missing.
    """
    names = [spec.name for spec in inputs]
    if len(positional) > len(names):
        raise UserError(f"{len(positional)} positional arguments; the graph takes {names}")
    found: dict[str, object] = dict(zip(names, positional, strict=False))
    for given, value in named.items():
        name = given if given in names else _synonym(given, names)
        if name is None:
            if _carries_numbers(value):
                raise UserError(
                    f"{given!r} is no input of the graph, which takes {names}; leave it out, or "
                    "export the model with it"
                )
        elif name in found:
            raise UserError(f"the graph's input {name!r} is given twice")
        else:
            found[name] = value
    missing = [name for name in names if found.get(name) is None]
    if missing:
        raise UserError(f"no value for the graph's input {missing[0]!r}; it takes {names}")
    return found


def fit_tensors(
    inputs: Sequence[TensorSpec], values: Mapping[str, object], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Bring every argument to its input's dtype and rank, onto the device.

    A number, a 0-d tensor or a vector of one element fills an input of higher rank, so that one
    timestep serves the whole batch; a vector of equal elements fits a 0-d input. Floats for an
    integer input are rounded, as self-sampled calibration rounds them.

    Args:
        inputs: What the graph takes.
        values: A tensor, array or number for each.
        device: Where the graph runs.

    Returns:
        Contiguous tensors by input name, and the extents of the graph's symbolic dimensions.

    Raises:
        UserError: a value is no tensor, or its rank does not fit.
    """
    torch = import_torch()
    tensors = {
        spec.name: _cast(_as_tensor(spec, values[spec.name]), getattr(torch, spec.dtype), device)
        for spec in inputs
    }
    extents = _extents(inputs, tensors)
    fitted = {spec.name: _fit(spec, tensors[spec.name], extents) for spec in inputs}
    return fitted, extents


def find_latent(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that sets dtype, device and batch: by its usual name, else the first."""
    return latent_by_name(inputs) or inputs[0]


def _synonym(given: str, names: Iterable[str]) -> str | None:
    group = next((group for group in _SYNONYMS if given in group), ())
    candidates = [name for name in names if name in group]
    return candidates[0] if len(candidates) == 1 else None


def _carries_numbers(value: object) -> bool:
    if value is None or isinstance(value, (bool, str)):
        return False
    if isinstance(value, Mapping):
        return any(_carries_numbers(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_carries_numbers(item) for item in value)
    return isinstance(value, (numbers.Number, np.ndarray, import_torch().Tensor))


def _as_tensor(spec: TensorSpec, value: object) -> Any:
    try:
        return import_torch().as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{spec.name!r} is {type(value).__name__}, the graph takes a tensor {spec}"
        ) from error


def _cast(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_floating_point() and not dtype.is_floating_point:
        tensor = tensor.round()
    return tensor.to(device=device, dtype=dtype)


def _extents(inputs: Sequence[TensorSpec], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Extents by symbol; the latent's first, since short vectors may yet be expanded."""
    latent = find_latent(inputs)
    others = sorted(inputs, key=lambda spec: (spec is not latent, -len(spec.shape)))
    extents: dict[str, int] = {}
    for spec in others:
        tensor = tensors[spec.name]
        if tensor.ndim == len(spec.shape):
            for symbol, extent in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(symbol, str):
                    extents.setdefault(symbol, extent)
    return extents


def _fit(spec: TensorSpec, tensor: Tensor, extents: Mapping[str, int]) -> Tensor:
    rank = len(spec.shape)
    if tensor.ndim == 1 and rank == 0 and len(tensor) and bool((tensor == tensor[0]).all()):
        tensor = tensor[0]
    if tensor.ndim != rank and tensor.numel() == 1:
        tensor = tensor.reshape(())
    elif tensor.ndim != rank:
        raise UserError(
            f"{spec.name!r} has shape {list(tensor.shape)}, the graph takes {list(spec.shape)}"
        )
    if tensor.numel() == 1 and rank > 0:
        unknown = [e for e in spec.shape if isinstance(e, str) and e not in extents]
        if unknown:
            raise UserError(
                f"{spec.name!r} is one number, and the extent {unknown[0]!r} of its input is "
                "unknown; give the whole tensor"
            )
        shape = [e if isinstance(e, int) else extents[e] for e in spec.shape]
        tensor = tensor.reshape([1] * rank).expand(shape)
    return tensor.contiguous()
