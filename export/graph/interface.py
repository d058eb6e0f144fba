"""The denoiser's interface: which input is the timestep, which the noisy latent."""

from __future__ import annotations

import onnx_ir as ir

from qvd_trt.calibrators.errors import UserError
from qvd_trt.calibrators.sources.signature import ModelSignature, TensorSpec

_TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level")
_LATENT_NAMES = ("sample", "hidden_states", "latent", "latents", "latent_model_input", "x", "input")


def read_signature(
    graph: ir.Graph, timestep: str | None = None, latent: str | None = None
) -> ModelSignature:
    """The graph's inputs and first output, with the timestep and the latent identified.

    Both are found by their usual names, then by the graph: the timestep is the small input that
    reaches Sin and Cos, the latent the float input of highest rank. ``timestep`` and ``latent``
    override the search.

    Raises:
        UserError: a name is no input, or nothing like a timestep or a latent is found.
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
    return ModelSignature(inputs, _spec(graph.outputs[0]), timestep, latent)


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise UserError(f"the model's input or output {value.name!r} has no type; export it again")
    shape = tuple(
        extent if isinstance(extent, int) else str(extent.value) for extent in value.shape
    )
    return TensorSpec(value.name or "", str(value.dtype.numpy()), shape)


def _chosen(inputs: tuple[TensorSpec, ...], name: str | None, option: str) -> str | None:
    if name is not None and name not in {spec.name for spec in inputs}:
        raise UserError(f"{option} {name!r} is no input of the model; it has {_names(inputs)}")
    return name


def _find_timestep(graph: ir.Graph, inputs: tuple[TensorSpec, ...]) -> str:
    by_name = {spec.name.lower(): spec.name for spec in inputs}
    for usual in _TIMESTEP_NAMES:
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
    by_name = {spec.name.lower(): spec.name for spec in candidates}
    for usual in _LATENT_NAMES:
        if usual in by_name:
            return by_name[usual]
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
