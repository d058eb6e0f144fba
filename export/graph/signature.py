"""The denoiser's interface: its inputs and its prediction, which are timestep and noisy latent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

LATENT_NAMES = ("sample", "hidden_states", "latent", "latents", "latent_model_input", "x", "input")
"""What model families call the noisy latent."""

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time")
"""What model families call the timestep."""

NOISE_LEVEL_NAMES = ("sigma", "sigmas", "noise_level")
"""Names of inputs that take the noise level in place of a timestep."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One graph input or output.

    Attributes:
        name: Its name.
        dtype: The numpy dtype's name, for example ``float32``.
        shape: Fixed extents as int, symbolic ones as str.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """The denoiser's interface.

    Attributes:
        inputs: Graph inputs, in order.
        output: The prediction.
        timestep: Name of the timestep input.
        latent: Name of the noisy latent input.
    """

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    timestep: str
    latent: str

    def input(self, name: str) -> TensorSpec:
        """The input of that name."""
        return next(spec for spec in self.inputs if spec.name == name)


def check_inputs(inputs: Mapping[str, AnyArray], signature: ModelSignature, origin: str) -> None:
    """Check one call's arrays against the graph inputs: names, dtypes, ranks, extents, finiteness.

    Raises:
        UserError: naming ``origin``, the input, what it is and what it must be.
    """
    wanted = {spec.name for spec in signature.inputs}
    if missing := sorted(wanted - inputs.keys()):
        raise UserError(
            f"{origin}: no array for the model's input {missing[0]!r}; it has {sorted(inputs)}"
        )
    if extra := sorted(inputs.keys() - wanted):
        raise UserError(
            f"{origin}: {extra[0]!r} is no input of the model; its inputs are {sorted(wanted)}"
        )
    sampled = (signature.latent, signature.timestep)
    extents: dict[str, int] = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise UserError(
                f"{origin}: {spec.name!r} is {array.dtype}, the model takes {spec.dtype}; "
                f"convert it with .astype('{spec.dtype}')"
            )
        shape_is_wrong = array.ndim != len(spec.shape)
        if not shape_is_wrong:
            for extent, wanted_extent in zip(array.shape, spec.shape, strict=True):
                if isinstance(wanted_extent, str):
                    shape_is_wrong |= extents.setdefault(wanted_extent, extent) != extent
                else:
                    shape_is_wrong |= extent != wanted_extent
        if shape_is_wrong:
            raise UserError(
                f"{origin}: {spec.name!r} has shape {list(array.shape)}, "
                f"the model takes {list(spec.shape)}"
            )
        if array.dtype.kind == "f" and not _is_sound(array, spec.name in sampled):
            raise UserError(f"{origin}: {spec.name!r} holds NaN or Inf; drop or repair that sample")


def _is_sound(array: AnyArray, sampled: bool) -> bool:
    """Whether all numbers are finite; conditioning may hold -inf, as additive masks do."""
    if np.isfinite(array).all():
        return True
    return not sampled and not (np.isnan(array).any() or np.isposinf(array).any())


def latent_by_name(inputs: Iterable[TensorSpec]) -> TensorSpec | None:
    """The input with a usual name of the noisy latent, the most usual first; case is ignored."""
    by_name = {spec.name.lower(): spec for spec in inputs}
    return next((by_name[name] for name in LATENT_NAMES if name in by_name), None)


def timestep_of(inputs: Mapping[str, AnyArray], signature: ModelSignature) -> float:
    """The call's timestep; of several (one per sample, frame or token), the greatest.

    Clean frames of an image-to-video call have timestep 0 beside those that are denoised.
    """
    return float(np.max(inputs[signature.timestep]))


def read_signature(
    graph: ir.Graph,
    timestep: str | None = None,
    latent: str | None = None,
    prediction: str | None = None,
) -> ModelSignature:
    """The graph's inputs and prediction, with the timestep and the latent identified.

    Both are found by their usual names, then by the graph: the timestep is the small input that
    reaches Sin and Cos, the latent the float input of highest rank. The prediction is the first
    output of floats; of several, the first of the latent's rank. ``timestep``, ``latent`` and
    ``prediction`` override the search.

    Raises:
        UserError: a name is no input, nothing like a timestep or a latent is found, or one of the
            tensors is bfloat16, which no array of ONNX Runtime holds.
    """
    inputs = tuple(_spec(value) for value in graph.inputs if not value.is_initializer())
    if not inputs or not graph.outputs:
        raise UserError("the model has no inputs or no outputs; export the denoiser's forward pass")
    timestep = _chosen(inputs, timestep, "--timestep-input") or _find_timestep(graph, inputs)
    latent = _chosen(inputs, latent, "--latent-input") or _find_latent(inputs, timestep)
    if latent == timestep:
        raise UserError(
            f"{latent!r} cannot be both the timestep and the latent; name the other one with "
            "--timestep-input or --latent-input"
        )
    rank = next(len(spec.shape) for spec in inputs if spec.name == latent)
    output = _find_prediction(graph, rank, prediction)
    for spec in (*inputs, output):
        if spec.dtype == "bfloat16":
            raise UserError(
                f"the model's input or output {spec.name!r} is bfloat16, which ONNX Runtime takes "
                "from no array; export the model with float32 inputs and outputs"
            )
    return ModelSignature(inputs, output, timestep, latent)


def _find_prediction(graph: ir.Graph, rank: int, chosen: str | None) -> TensorSpec:
    outputs = [_spec(value) for value in graph.outputs]
    names = ", ".join(map(str, outputs))
    if chosen is not None:
        found = next((spec for spec in outputs if spec.name == chosen), None)
        if found is None:
            raise UserError(
                f"--prediction-output {chosen!r} is no output of the model; it has {names}"
            )
        return found
    floats = [spec for spec in outputs if "float" in spec.dtype]
    if not floats:
        raise UserError(f"the model returns no floats, only {names}; export its prediction")
    return next((spec for spec in floats if len(spec.shape) == rank), floats[0])


def _spec(value: ir.Value) -> TensorSpec:
    from qvd_trt.export.graph.values import named_extents  # needs onnx_ir, which --help spares

    if value.shape is None or value.dtype is None:
        raise UserError(f"the model's input or output {value.name!r} has no type; export it again")
    return TensorSpec(value.name or "", str(value.dtype.numpy()), named_extents(value))


def _chosen(inputs: tuple[TensorSpec, ...], name: str | None, option: str) -> str | None:
    if name is not None and name not in {spec.name for spec in inputs}:
        raise UserError(f"{option} {name!r} is no input of the model; it has {_names(inputs)}")
    return name


def _find_timestep(graph: ir.Graph, inputs: tuple[TensorSpec, ...]) -> str:
    by_name = {spec.name.lower(): spec.name for spec in inputs}
    for usual in (*TIMESTEP_NAMES, *NOISE_LEVEL_NAMES):
        if usual in by_name:
            return by_name[usual]
    reaching = [
        value.name or ""
        for value in graph.inputs
        if value.shape is not None and len(value.shape) <= 2 and _reaches_angle(value)
    ]
    if len(reaching) == 1:
        return reaching[0]
    raise UserError(
        f"no input looks like a timestep among {_names(inputs)}; name it with --timestep-input NAME"
    )


def _find_latent(inputs: tuple[TensorSpec, ...], timestep: str) -> str:
    candidates = [spec for spec in inputs if spec.name != timestep and "float" in spec.dtype]
    if (usual := latent_by_name(candidates)) is not None:
        return usual.name
    candidates.sort(key=lambda spec: len(spec.shape), reverse=True)
    if candidates and len(candidates[0].shape) >= 3:
        first = candidates[0]
        if len(candidates) == 1 or len(candidates[1].shape) < len(first.shape):
            return first.name
    raise UserError(
        f"no input looks like a noisy latent among {_names(inputs)}; "
        "name it with --latent-input NAME"
    )


def _reaches_angle(start: ir.Value) -> bool:
    """Whether the value flows into Sin or Cos without passing a MatMul, Gemm or Conv."""
    seen: set[ir.Value] = set()
    stack = [start]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        for node in value.consumers():
            if node.op_type in ("Sin", "Cos"):
                return True
            if node.op_type not in ("MatMul", "Gemm", "Conv", "Shape", "Size"):
                stack.extend(node.outputs)
    return False


def _names(inputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in inputs)
