"""A TensorRT engine as a drop-in denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import TensorSpec
from qvd_trt.tools.denoisers.graph_denoiser import GraphDenoiser
from qvd_trt.tools.denoisers.graph_inputs import import_torch
from qvd_trt.tools.engine.engine_session import (
    ALIGNMENT,
    DeviceTensor,
    EngineSession,
    EngineTensor,
)
from qvd_trt.tools.engine.tensorrt_install import Runtime

if TYPE_CHECKING:
    from torch import Tensor


class TrtDenoiser(GraphDenoiser):
    """An engine, called like the diffusers model, on torch's memory and current stream."""

    def __init__(
        self,
        engine: Path | str | EngineSession,
        plugin: Path | None = None,
        runtime: Runtime = "auto",
        config: Mapping[str, Any] | object | None = None,
    ) -> None:
        """Load the engine onto torch's current GPU.

        Args:
            engine: The engine file, or an open session.
            plugin: Library of the HTDQ plugin, where the engine needs it.
            runtime: Which TensorRT it was built by.
            config: The torch model's configuration, for pipelines that read it.

        Raises:
            UserError: torch is missing or has no CUDA, or the engine cannot be loaded.
        """
        torch = import_torch()
        if not torch.cuda.is_available():
            raise UserError("TrtDenoiser needs torch with CUDA and an NVIDIA GPU; see OrtDenoiser")
        self._session = (
            engine
            if isinstance(engine, EngineSession)
            else EngineSession(Path(engine), runtime, plugin)
        )
        device = torch.device("cuda", torch.cuda.current_device())
        super().__init__(graph_specs(self._session.inputs), device, config)
        self._prediction = next(iter(self._session.outputs))

    def _run(self, tensors: Mapping[str, Tensor], extents: Mapping[str, int]) -> Tensor:
        del extents  # the engine knows its outputs' shapes
        torch = import_torch()
        tensors = {name: aligned(tensor) for name, tensor in tensors.items()}
        shapes = self._session.output_shapes(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        )
        outputs = {
            name: torch.empty(shapes[name], dtype=getattr(torch, spec.dtype), device=self.device)
            for name, spec in self._session.outputs.items()
        }
        stream = torch.cuda.current_stream(self.device)
        self._session.run_device(_pointers(tensors), _pointers(outputs), stream.cuda_stream)
        prediction: Tensor = outputs[self._prediction]
        return prediction


def graph_specs(tensors: Mapping[str, EngineTensor]) -> tuple[TensorSpec, ...]:
    """An engine's inputs with names for its dynamic extents: the leading ones are the batch."""
    return tuple(
        TensorSpec(
            tensor.name,
            tensor.dtype,
            tuple(
                extent if extent >= 0 else f"{tensor.name}_{axis}" if axis else "batch"
                for axis, extent in enumerate(tensor.shape)
            ),
        )
        for tensor in tensors.values()
    )


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it starts inside of another one.

    A step of ``scheduler.timesteps`` is such a view, and TensorRT asks for aligned addresses;
    torch aligns all memory that it allocates on the GPU.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _pointers(tensors: Mapping[str, Tensor]) -> dict[str, DeviceTensor]:
    return {
        name: DeviceTensor(
            tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        )
        for name, tensor in tensors.items()
    }
