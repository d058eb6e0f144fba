"""The inputs of a self-sampled trajectory that the sampler does not compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qvd_trt.calibrators.sources.fit_floats import fit_float
from qvd_trt.calibrators.sources.input_shapes import GivenShape, Shape, resolve_shapes
from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

UNCONDITIONAL = "uncond_"
"""Prefix of an array that replaces an input in the unconditional call of guidance."""


class Conditioning:
    """Every sample's arrays: the given ones, and drawn ones for what is missing.

    A given array holds one or more samples, which are cycled. With an axis more than its input it
    has a leading axis of samples. With its input's rank, where that begins with the latent's batch
    dimension, every ``batch`` rows are a sample; ``batch`` is 1, or what a shape or an array with
    an axis of samples says. Without a batch dimension it serves all samples.

    Each array depends on (seed, sample, input) only. Missing inputs are drawn like this: ones for
    booleans and for every input with ``mask`` in its name (nothing is masked), zeros for other
    integers (ids, class labels), standard normal for floats.

    Attributes:
        drawn: Names of the inputs that are drawn, in graph order.
    """

    def __init__(
        self,
        signature: ModelSignature,
        arrays: Mapping[str, AnyArray],
        shapes: Mapping[str, Shape],
        seed: int,
    ) -> None:
        """Find every input's shape.

        Raises:
            UserError: an array or shape is of no input or does not fit it, or an extent is
                unknown.
        """
        self._signature = signature
        self._seed = seed
        inputs = {spec.name for spec in signature.inputs}
        arrays = {name: self._fitted(name, array) for name, array in arrays.items()}
        self._unconditional = {
            name.removeprefix(UNCONDITIONAL): array
            for name, array in arrays.items()
            if name not in inputs and name.startswith(UNCONDITIONAL)
        }
        self._given = {
            name: array
            for name, array in arrays.items()
            if name in inputs or not name.startswith(UNCONDITIONAL)
        }
        self._batch = self._find_batch(shapes)
        given = [GivenShape(name, tuple(shape), "--shapes") for name, shape in shapes.items()]
        for group, prefix in ((self._given, ""), (self._unconditional, UNCONDITIONAL)):
            for name, array in group.items():
                origin = f"--inputs, {prefix}{name}" if prefix else "--inputs"
                given.append(GivenShape(name, self._sample_shape(name, array), origin))
                self._check_dtype(name, array, prefix + name)
        self._shapes = resolve_shapes(signature, given)
        sampled = {signature.latent, signature.timestep}
        self._free = [spec for spec in signature.inputs if spec.name not in sampled]
        self.drawn = tuple(spec.name for spec in self._free if spec.name not in self._given)

    def shape(self, name: str) -> Shape:
        """Concrete shape of an input."""
        return self._shapes[name]

    def noise(self, sample: int) -> Float32Array:
        """Standard normal float32 of the latent input's shape."""
        latent = self._signature.latent
        noise = self._random(sample, latent).standard_normal(self._shapes[latent], np.float32)
        # numpy gives a plain float for the empty shape.
        return np.asarray(noise, np.float32)

    def inputs(self, sample: int) -> dict[str, AnyArray]:
        """All inputs of one sample but latent and timestep."""
        return {
            spec.name: self._row(spec, self._given[spec.name], sample)
            if spec.name in self._given
            else self._draw(spec, sample)
            for spec in self._free
        }

    def unconditional(self, sample: int) -> dict[str, AnyArray]:
        """What replaces some of :meth:`inputs` in the unconditional call."""
        return {
            spec.name: self._row(spec, self._unconditional[spec.name], sample)
            for spec in self._free
            if spec.name in self._unconditional
        }

    def require_unconditional(self) -> None:
        """Guidance needs at least one unconditional array.

        Raises:
            UserError: there is none.
        """
        if not any(spec.name in self._unconditional for spec in self._free):
            example = self._free[0].name if self._free else "encoder_hidden_states"
            raise UserError(
                "--guidance needs the unconditional call's inputs; add for example "
                f"{UNCONDITIONAL}{example} to the arrays of --inputs"
            )

    def _sample_shape(self, name: str, array: AnyArray) -> Shape:
        """The shape of one sample's part of the array."""
        spec = next((spec for spec in self._signature.inputs if spec.name == name), None)
        if spec is None or array.ndim not in (len(spec.shape), len(spec.shape) + 1):
            return array.shape
        if array.ndim and array.shape[0] == 0:
            raise UserError(f"--inputs: {name!r} has no rows (shape {list(array.shape)})")
        if array.ndim > len(spec.shape):
            return array.shape[1:]
        if not self._is_batched(spec) or name in self._shaping:
            return array.shape
        if len(array) % self._batch:
            raise UserError(
                f"--inputs: {name!r} has {len(array)} rows, which are no whole samples of batch "
                f"{self._batch}; give {self._batch} rows for each sample"
            )
        return (self._batch, *array.shape[1:])

    @property
    def _shaping(self) -> tuple[str, str]:
        """Inputs whose given arrays tell their shape alone."""
        return self._signature.latent, self._signature.timestep

    def _batch_dimension(self) -> int | str | None:
        """The latent's leading extent; None where it has no axis but those of the image."""
        shape = self._signature.input(self._signature.latent).shape
        return shape[0] if shape else None

    def _is_batched(self, spec: TensorSpec) -> bool:
        return bool(spec.shape) and spec.shape[0] == self._batch_dimension()

    def _find_batch(self, shapes: Mapping[str, Shape]) -> int:
        """Rows of one sample: as a shape says it or an array of several samples; else 1."""
        batch = self._batch_dimension()
        if isinstance(batch, int):
            return max(batch, 1)
        for spec in self._signature.inputs:
            known = [shapes.get(spec.name, ())]
            for array in (self._given.get(spec.name), self._unconditional.get(spec.name)):
                if array is not None and array.ndim == len(spec.shape) + 1:
                    known.append(array.shape[1:])
                elif array is not None and spec.name in self._shaping:
                    known.append(array.shape)
            for shape in known:
                for extent, dimension in zip(shape, spec.shape, strict=False):
                    if dimension == batch and extent > 0:
                        return extent
        return 1

    def _fitted(self, name: str, array: AnyArray) -> AnyArray:
        named = {spec.name: spec for spec in self._signature.inputs}
        spec = named.get(name) or named.get(name.removeprefix(UNCONDITIONAL))
        return array if spec is None else fit_float(array, spec.dtype)

    def _check_dtype(self, name: str, array: AnyArray, shown: str) -> None:
        sampled = (self._signature.latent, self._signature.timestep)
        spec = next((spec for spec in self._signature.inputs if spec.name == name), None)
        if spec is None or name in sampled or array.dtype == np.dtype(spec.dtype):
            return
        raise UserError(
            f"--inputs: {shown!r} is {array.dtype}, the model takes {spec.dtype}; "
            f"convert it with .astype('{spec.dtype}')"
        )

    def _row(self, spec: TensorSpec, array: AnyArray, sample: int) -> AnyArray:
        if array.ndim != len(spec.shape):
            return np.asarray(array[sample % len(array)])
        if not self._is_batched(spec):
            return array
        first = sample * self._batch % len(array)
        return array[first : first + self._batch]

    def _draw(self, spec: TensorSpec, sample: int) -> AnyArray:
        shape, dtype = self._shapes[spec.name], np.dtype(spec.dtype)
        if dtype.kind == "b" or "mask" in spec.name.lower():
            return np.ones(shape, dtype)
        if dtype.kind in "iu":
            return np.zeros(shape, dtype)
        values = self._random(sample, spec.name).standard_normal(shape, np.float32)
        return np.asarray(values, dtype)

    def _random(self, sample: int, name: str) -> np.random.Generator:
        names = [spec.name for spec in self._signature.inputs]
        key = (sample, names.index(name))
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))
