"""Shapes of an optimization profile: ``--shapes NAME:MIN:OPT:MAX``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.onnx_file import Dim, ModelInput

Shape = tuple[int, ...]

_EXTENTS = r"\d+(?:x\d+)*"
_RANGE = re.compile(rf"(?P<name>.+?):(?P<shapes>{_EXTENTS}(?::{_EXTENTS}:{_EXTENTS})?)")
_EXAMPLE_EXTENTS = (
    ("batch", 1),
    ("frame", 16),
    ("height", 32),
    ("width", 32),
    ("token", 77),
    ("seq", 77),
)
_EXAMPLE_EXTENT = 16


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes that an engine takes at one input, and the one it is tuned for.

    Attributes:
        name: The input.
        min: Smallest extents.
        opt: Extents to tune for.
        max: Largest extents.
    """

    name: str
    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        shapes = [self.opt] if self.min == self.max else [self.min, self.opt, self.max]
        return ":".join([self.name, *map(shape_text, shapes)])


def shape_text(shape: Sequence[int]) -> str:
    """``1x4x16x32x32``."""
    return "x".join(map(str, shape))


def _dims_text(shape: Sequence[Dim]) -> str:
    """``[batch, 4, frames, height, width]``."""
    return f"[{', '.join(map(str, shape))}]"


def parse_shape_range(text: str) -> ShapeRange:
    """Parse ``NAME:SHAPE`` or ``NAME:MIN:OPT:MAX``; the name may hold colons.

    Raises:
        UserError: It is neither, or min, opt and max are not in order.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        raise UserError(
            f"--shapes {text!r} is not NAME:SHAPE or NAME:MIN:OPT:MAX, for example "
            "sample:1x4x16x32x32 or sample:1x4x8x32x32:1x4x16x32x32:2x4x16x64x64"
        )
    shapes = [tuple(map(int, part.split("x"))) for part in found["shapes"].split(":")]
    least, usual, most = shapes if len(shapes) == 3 else shapes * 3
    if not len(least) == len(usual) == len(most):
        raise UserError(f"--shapes {text}: min, opt and max have different numbers of dimensions")
    if not all(0 < a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
        raise UserError(f"--shapes {text}: every extent needs 1 <= min <= opt <= max")
    return ShapeRange(found["name"], least, usual, most)


def resolve_shapes(
    ranges: Iterable[ShapeRange], inputs: Sequence[ModelInput]
) -> tuple[ShapeRange, ...]:
    """The shapes of all dynamic inputs, in the order of the graph.

    Raises:
        UserError: A dynamic input has none, or a range does not fit the model.
    """
    given: dict[str, ShapeRange] = {}
    by_name = {spec.name: spec for spec in inputs}
    for entry in ranges:
        if entry.name not in by_name:
            raise UserError(
                f"--shapes {entry.name}: the model has no such input; it has {', '.join(by_name)}"
            )
        if entry.name in given:
            raise UserError(f"--shapes {entry.name} is given twice")
        _check_fits(entry, by_name[entry.name])
        given[entry.name] = entry
    missing = [spec for spec in inputs if spec.is_dynamic and spec.name not in given]
    if missing:
        listed = ", ".join(f"{spec.name} {_dims_text(spec.shape)}" for spec in missing)
        example = " ".join(_example(spec) for spec in missing)
        raise UserError(
            f"inputs with dynamic dimensions need shapes: {listed}; "
            f"for example --shapes {example}, or NAME:MIN:OPT:MAX for a range"
        )
    _check_shared_dims(given.values(), by_name)
    return tuple(given[spec.name] for spec in inputs if spec.is_dynamic)


def _check_fits(entry: ShapeRange, spec: ModelInput) -> None:
    if len(entry.opt) != len(spec.shape):
        raise UserError(
            f"--shapes {entry}: {spec.name} has {len(spec.shape)} dimensions "
            f"{_dims_text(spec.shape)}, not {len(entry.opt)}"
        )
    for dim, *extents in zip(spec.shape, entry.min, entry.opt, entry.max, strict=True):
        if isinstance(dim, int) and set(extents) != {dim}:
            raise UserError(
                f"--shapes {entry}: {spec.name} is {_dims_text(spec.shape)} in the file, so that "
                f"{dim} cannot become {next(e for e in extents if e != dim)}"
            )


def _check_shared_dims(ranges: Iterable[ShapeRange], inputs: dict[str, ModelInput]) -> None:
    """Dimensions of one name have one extent, in TensorRT as in ONNX."""
    seen: dict[str, tuple[str, Shape]] = {}
    for entry in ranges:
        dims = inputs[entry.name].shape
        for dim, *extents in zip(dims, entry.min, entry.opt, entry.max, strict=True):
            if isinstance(dim, int) or dim == "?":
                continue
            where, before = seen.setdefault(dim, (entry.name, tuple(extents)))
            if before != tuple(extents):
                raise UserError(
                    f"--shapes: {dim} is {_range_text(before)} in {where} and "
                    f"{_range_text(extents)} in {entry.name}; give both the same"
                )


def _range_text(extents: Sequence[int]) -> str:
    return str(extents[0]) if len(set(extents)) == 1 else ":".join(map(str, extents))


def _example(spec: ModelInput) -> str:
    extents = [dim if isinstance(dim, int) else _example_extent(dim) for dim in spec.shape]
    return f"{spec.name}:{shape_text(extents)}"


def _example_extent(dim: str) -> int:
    return next((e for word, e in _EXAMPLE_EXTENTS if word in dim.lower()), _EXAMPLE_EXTENT)
