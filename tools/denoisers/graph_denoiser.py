"""What all denoisers share: the call of a diffusers model around a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from qvd_trt.export.graph.signature import TensorSpec
from qvd_trt.tools.denoisers.graph_inputs import (
    find_latent,
    fit_tensors,
    import_torch,
    name_arguments,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DenoiserOutput(NamedTuple):
    """The prediction, as diffusers models return it: ``output.sample`` or ``output[0]``."""

    sample: Tensor


class DenoiserConfig(dict[str, Any]):
    """Entries as attributes too, as pipelines read a model's configuration."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(
                f"the denoiser's config has no {name!r}; give the torch model's: config=unet.config"
            ) from error


class GraphDenoiser(ABC):
    """A graph with the call signature of the diffusers model that it was exported from.

    Attributes:
        inputs: The graph's inputs, in order.
        device: Where it runs.
        dtype: The latent input's torch dtype, which pipelines cast to.
        config: What pipelines read from ``unet.config``.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        device: torch.device,
        config: Mapping[str, Any] | object | None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.device = device
        self._latent = find_latent(self.inputs)
        self.dtype: torch.dtype = getattr(import_torch(), self._latent.dtype)
        given = config if config is not None else {}
        self.config = DenoiserConfig(given) if isinstance(given, Mapping) else given

    def __call__(
        self, *arguments: object, return_dict: bool = True, **named: object
    ) -> DenoiserOutput | tuple[Tensor]:
        """Denoise once.

        Args:
            *arguments: The graph's inputs in order, as torch tensors: latent, timestep, ...
            return_dict: Whether to return an object with ``.sample``, not a tuple.
            **named: Inputs by name. What the graph lacks must be None or a flag.

        Returns:
            The prediction, of the latent's dtype and on its device.

        Raises:
            UserError: an argument does not fit the graph.
        """
        torch = import_torch()
        values = name_arguments(self.inputs, arguments, named)
        tensors, extents = fit_tensors(self.inputs, values, self.device)
        prediction = self._run(tensors, extents)
        latent = values[self._latent.name]
        if isinstance(latent, torch.Tensor):
            dtype = latent.dtype if latent.is_floating_point() else prediction.dtype
            prediction = prediction.to(device=latent.device, dtype=dtype)
        return DenoiserOutput(prediction) if return_dict else (prediction,)

    @contextmanager
    def cache_context(self, name: str, **state: object) -> Iterator[None]:
        """Do nothing; pipelines enter it around calls of models that cache.

        Args:
            name: Of the call: ``cond``, ``uncond``, ...
            **state: What else a pipeline tells a cache, such as the step.
        """
        del name, state
        yield

    @abstractmethod
    def _run(self, tensors: Mapping[str, Tensor], extents: Mapping[str, int]) -> Tensor:
        """The first output for contiguous inputs on the device."""
