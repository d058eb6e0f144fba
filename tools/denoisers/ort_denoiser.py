"""An ONNX file in ONNX Runtime as a drop-in denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import TensorSpec, read_signature
from qvd_trt.export.model_file import data_folder, load_model, normalize
from qvd_trt.export.ort_session import CPU, cannot_run, open_session
from qvd_trt.export.passes.precision.widen import has_bfloat16
from qvd_trt.tools.denoisers.graph_denoiser import GraphDenoiser
from qvd_trt.tools.denoisers.graph_inputs import import_torch

if TYPE_CHECKING:
    from torch import Tensor


class OrtDenoiser(GraphDenoiser):
    """A float or QDQ ONNX file, called like the diffusers model; Q and DQ are run as written.

    What is bfloat16 is computed in float32 on the CPU, where ONNX Runtime has no kernels for it,
    and where it is an input or output, which it cannot bind. With the CUDA provider inputs and
    outputs stay on the GPU.
    """

    def __init__(
        self,
        model: Path | str,
        providers: Sequence[str] = CPU,
        config: Mapping[str, Any] | object | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: The ``.onnx`` file.
            providers: Execution providers, first choice first
                (``qvd_trt.export.ort_session.CUDA`` for the GPU).
            config: The torch model's configuration, for pipelines that read it.

        Raises:
            UserError: torch or its CUDA is missing, or the model cannot be loaded.
        """
        torch = import_torch()
        path = Path(model)
        on_gpu = providers[0].startswith("CUDA")
        loaded = load_model(path)
        widened = has_bfloat16(loaded, interface=on_gpu)
        if widened:
            normalize(loaded, path)
        signature = read_signature(loaded.graph)
        if on_gpu and not torch.cuda.is_available():
            raise UserError(
                "the CUDA provider needs torch with CUDA and an NVIDIA GPU; or use --provider cpu"
            )
        super().__init__(signature.inputs, torch.device("cuda" if on_gpu else "cpu", 0), config)
        self._output = signature.output
        folder = data_folder(path, loaded) if widened else None
        self._session = open_session(
            loaded if widened else path, folder, providers, faithful_qdq=True
        )

    def _run(self, tensors: Mapping[str, Tensor], extents: Mapping[str, int]) -> Tensor:
        torch = import_torch()
        latent = tensors[self._latent.name]
        shape = _output_shape(self._output, latent, extents)
        output: Tensor = torch.empty(
            shape, dtype=getattr(torch, self._output.dtype), device=self.device
        )
        binding = self._session.io_binding()
        for spec in self.inputs:
            tensor = tensors[spec.name]
            binding.bind_input(*self._place(spec, tensor))
        binding.bind_output(*self._place(self._output, output))
        if self.device.type == "cuda":
            # ONNX Runtime works on a stream of its own.
            torch.cuda.current_stream(self.device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises classes of no common base
            raise cannot_run(error, {name: x.shape for name, x in tensors.items()}) from error
        binding.synchronize_outputs()
        return output

    def _place(
        self, spec: TensorSpec, tensor: Tensor
    ) -> tuple[str, str, int, Any, tuple[int, ...], int]:
        index = self.device.index or 0
        dtype = np.dtype(spec.dtype)
        return spec.name, self.device.type, index, dtype, tuple(tensor.shape), tensor.data_ptr()


def _output_shape(spec: TensorSpec, latent: Tensor, extents: Mapping[str, int]) -> tuple[int, ...]:
    """The prediction's shape; an extent of unknown name is the latent's on that axis."""
    shape = []
    for axis, extent in enumerate(spec.shape):
        if isinstance(extent, str) and extent not in extents and len(spec.shape) != latent.ndim:
            raise UserError(f"the extent {extent!r} of the output {spec} is unknown")
        if isinstance(extent, str):
            extent = extents[extent] if extent in extents else latent.shape[axis]
        shape.append(extent)
    return tuple(shape)
