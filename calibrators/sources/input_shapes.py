"""Concrete shapes of a model's inputs, from its signature and what the user gave."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GivenShape:
    """A concrete shape of one input and the option it came from, for error messages."""

    name: str
    shape: Shape
    origin: str


def parse_shapes(texts: Iterable[str]) -> dict[str, Shape]:
    """Read ``--shapes`` values such as ``sample:1x4x16x32x32``; ``timestep:`` is a scalar.

    Raises:
        UserError: a value is not of this form, or names an input twice.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, colon, extents = text.rpartition(":")
        if not (name and colon and re.fullmatch(r"(\d+(x\d+)*)?", extents)):
            raise UserError(
                f"--shapes: {text!r} is not understood; write it as sample:1x4x16x32x32"
            )
        if name in shapes:
            raise UserError(f"--shapes: {name!r} is given twice")
        shapes[name] = tuple(int(extent) for extent in extents.split("x") if extent)
    return shapes


def resolve_shapes(signature: ModelSignature, given: Iterable[GivenShape]) -> dict[str, Shape]:
    """The shape of every input, by name.

    Fixed extents come from the signature. A symbolic one takes the value it has in any given
    shape; when no given shape knows it, it is 1 where it is some input's leading (batch) extent.

    Raises:
        UserError: a given shape is of no input, does not fit its input, or contradicts another;
            or an extent stays unknown.
    """
    symbols: dict[str, tuple[int, str]] = {}
    known = [spec.name for spec in signature.inputs]
    for shape in given:
        if shape.name not in known:
            raise UserError(
                f"{shape.origin}: {shape.name!r} is no input of the model; its inputs are {known}"
            )
        _learn(symbols, signature.input(shape.name), shape)
    return {spec.name: tuple(_extents(spec, symbols, signature)) for spec in signature.inputs}


def _learn(symbols: dict[str, tuple[int, str]], spec: TensorSpec, given: GivenShape) -> None:
    if len(given.shape) != len(spec.shape):
        raise _does_not_fit(spec, given)
    for extent, wanted in zip(given.shape, spec.shape, strict=True):
        if extent < 1 or (isinstance(wanted, int) and extent != wanted):
            raise _does_not_fit(spec, given)
        if isinstance(wanted, int):
            continue
        origin = f"{given.origin} {given.name!r}"
        other, other_origin = symbols.setdefault(wanted, (extent, origin))
        if other != extent:
            raise UserError(
                f"the model's dimension {wanted!r} is {other} in {other_origin} but {extent} in "
                f"{origin}; make them equal"
            )


def _extents(
    spec: TensorSpec, symbols: Mapping[str, tuple[int, str]], signature: ModelSignature
) -> Iterator[int]:
    batch_like = {other.shape[0] for other in signature.inputs if other.shape}
    for axis, extent in enumerate(spec.shape):
        if isinstance(extent, int):
            yield extent
        elif extent in symbols:
            yield symbols[extent][0]
        elif extent in batch_like:
            yield 1
        else:
            example = "x".join(str(e if isinstance(e, int) else 1) for e in spec.shape)
            raise UserError(
                f"dimension {axis} ({extent!r}) of the model's input {spec} is unknown; give all "
                f"its extents as in --shapes {spec.name}:{example}, or an array in --inputs"
            )


def _does_not_fit(spec: TensorSpec, given: GivenShape) -> UserError:
    wanted = ", ".join(map(str, spec.shape))
    return UserError(
        f"{given.origin}: {given.name!r} has shape {list(given.shape)}, the model takes [{wanted}]"
    )
