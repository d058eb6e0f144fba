"""Rewrites of torch calls that `torch.onnx.export` refuses, or would turn into a wrong graph.

They are a torch function mode and not monkey patches: they apply to the calling thread, inside the
`with` block only. What no mode sees, roots of symbolic numbers, is set on `torch.SymFloat` itself
for as long as the block lasts.

A rewrite is taken where the call has its trap (a symbolic size, a bool tensor) and nowhere else, so
that the graphs of models without traps stay as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import SymFloat, SymInt, Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_check: Any = torch._check  # has no types, as the next
_sym_max: Any = torch.sym_max


class ExportableCalls(TorchFunctionMode):
    """Inside this context, torch calls with a known export trap run as equal, exportable calls.

    | call | trap | runs as |
    |---|---|---|
    | `repeat_interleave` by one count | its Expand is right at batch 1 only | expand, flatten |
    | `masked_fill` of a bool tensor | ONNX's Where would mix types | and, or |
    | `squeeze` of a size that is not 1 | the rank is unknown | nothing |
    | `split`, `expand`, `unsqueeze`, `[]` of complex | not translated | the same of real pairs |
    | `linspace` of sizes | its count is fixed | arange times the step |
    | `adaptive_avg_pool1d`, `2d` | right where the same sizes divide | products with matrices |
    | attention on data-dependent lengths | asks whether they are 0 | states that they are not |
    | `numpy.sqrt` or `** 0.5` of sizes | no such method, no such check | `torch.sym_sqrt` |

    A list of counts of `repeat_interleave` is left alone. Results are equal bit for bit,
    shapes and dtypes too; `linspace` and pooling up to the rounding of their dtype.
    """

    def __enter__(self) -> ExportableCalls:
        self._roots = _symbolic_roots()
        self._roots.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._roots.__exit__(None, None, None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or its exportable equal."""
        kwargs = dict(kwargs or {})
        rewrite = _REWRITES.get(func)
        if rewrite is not None:
            rewritten = rewrite(*args, **kwargs)
            if rewritten is not None:
                return rewritten
        return func(*args, **kwargs)


@contextlib.contextmanager
def _symbolic_roots() -> Iterator[None]:
    """Roots of symbolic numbers by `torch.sym_sqrt`, for numpy and for `** 0.5`.

    No function mode sees those. torch's own power also states that its base is not negative, in a
    form that it then cannot write into the graph.
    """
    before = {name: vars(SymFloat).get(name) for name in ("sqrt", "__pow__")}
    power: Any = SymFloat.__pow__

    def root_or_power(base: SymFloat, exponent: Any) -> Any:
        return torch.sym_sqrt(base) if exponent == 0.5 else power(base, exponent)

    type.__setattr__(SymFloat, "sqrt", torch.sym_sqrt)
    type.__setattr__(SymFloat, "__pow__", root_or_power)
    try:
        yield
    finally:
        for name, method in before.items():
            if method is None:
                type.__delattr__(SymFloat, name)
            else:
                type.__setattr__(SymFloat, name, method)


@contextlib.contextmanager
def tied_axes(module: nn.Module, dynamic_dims: Mapping[str, Mapping[int, str]]) -> Iterator[None]:
    """State at each call of `module` that the axes of one symbol are equal, and none is empty.

    torch gives each input axis a symbol of its own. Where a model multiplies or divides two sizes
    that the caller called equal (the tokens of a batch, `view(batch, -1, c)` of its timesteps),
    the exporter cannot prove it, and refuses a sound graph. A ratio of sizes under a root asks
    whether it is positive.
    """

    def tie(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        first: dict[str, Any] = {}
        for name, axes in dynamic_dims.items():
            for axis, symbol in axes.items():
                size = inputs[name].shape[axis]
                _check(size >= 1)
                _check(size == first.setdefault(symbol, size))

    handle = module.register_forward_pre_hook(tie, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _repeat_interleave(
    input: Tensor,
    repeats: int | torch.SymInt | Tensor | None = None,
    dim: int | None = None,
    *,
    output_size: int | torch.SymInt | None = None,
) -> Tensor | None:
    """`torch.repeat_interleave` for one count, None for the other overloads.

    A count in a tensor without axes is as good as an int: diffusers makes one of two head sizes
    when it sees that it is being exported.

    The argument names are torch's own, for calls by keyword.
    """
    del output_size  # implied by an int count
    count: Any = repeats.item() if isinstance(repeats, Tensor) and repeats.ndim == 0 else repeats
    if not isinstance(count, int | SymInt):
        return None
    if dim is None:
        input, dim = input.flatten(), 0
    dim = dim % input.ndim
    shape = (*input.shape[: dim + 1], count, *input.shape[dim + 1 :])
    repeated: Tensor = input.unsqueeze(dim + 1).expand(shape).flatten(dim, dim + 1)
    return repeated


def _masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    """`torch.masked_fill` of a bool tensor, None for other dtypes."""
    if input.dtype != torch.bool:
        return None
    if isinstance(value, Tensor):
        return (input & ~mask) | (value.to(torch.bool) & mask)
    filled: Tensor = input | mask if value else input & ~mask
    return filled


def _masked_fill_(input: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    filled = _masked_fill(input, mask, value)
    return None if filled is None else input.copy_(filled)


def _squeeze(input: Tensor, dim: int | None = None) -> Tensor | None:
    """`torch.squeeze` of one axis that does not measure 1 (in the trace, if symbolic), else None.

    torch leaves such an axis, ONNX's Squeeze refuses it.
    """
    if not isinstance(dim, int) or not -input.ndim <= dim < input.ndim:
        return None
    size = input.shape[dim]
    if isinstance(size, SymInt):
        if size.node.hint in (None, 1):
            return None
        _check(size != 1)
    return None if isinstance(size, int) and size == 1 else input.view_as(input)


# The exporter keeps a complex tensor as its real pairs, but lacks these calls on it. Each gives
# None for a real tensor.


def _pairs(input: Tensor) -> Tensor:
    return torch.view_as_real(input.resolve_conj() if input.is_conj() else input)


def _split(
    input: Tensor, split_size: int | list[int], dim: int = 0, **sizes: Any
) -> tuple[Tensor, ...] | None:
    if sizes or not input.is_complex() or input.ndim == 0:
        return None
    parts = torch.split(_pairs(input), split_size, dim % input.ndim)
    return tuple(torch.view_as_complex(part) for part in parts)


def _expand(input: Tensor, *size: Any, **named: Any) -> Tensor | None:
    if named or not input.is_complex():
        return None
    size = tuple(size[0]) if isinstance(size[0], list | tuple) else size
    return torch.view_as_complex(_pairs(input).expand(*size, 2))


def _unsqueeze(input: Tensor, dim: int) -> Tensor | None:
    if not input.is_complex():
        return None
    return torch.view_as_complex(_pairs(input).unsqueeze(dim % (input.ndim + 1)))


def _getitem(input: Tensor, index: Any) -> Tensor | None:
    if not input.is_complex():
        return None
    if isinstance(index, tuple) and any(part is Ellipsis for part in index):
        index = (*index, slice(None))
    elif index is Ellipsis:
        return input
    return torch.view_as_complex(_pairs(input)[index])


def _linspace(
    start: Any,
    end: Any,
    steps: int | SymInt,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Tensor | None:
    """`torch.linspace` where a bound or the count is symbolic and none is a tensor, else None."""
    dtype = dtype or torch.get_default_dtype()
    if (
        out is not None
        or not dtype.is_floating_point
        or any(isinstance(x, Tensor) for x in (start, end))
        or not any(isinstance(x, SymInt | SymFloat) for x in (start, end, steps))
    ):
        return None
    return linspace(start, end, steps, dtype=dtype, **options)


def linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype, **options: Any) -> Tensor:
    """`torch.linspace` by arange and the step, up to the rounding of `dtype`.

    As torch does, the second half is counted back from the end, so that both ends are exact.
    """
    index = torch.arange(steps, dtype=dtype, **options)
    last = steps - 1
    step = (end - start) / _sym_max(last, 1)
    return torch.where(index < steps / 2, start + index * step, end - (last - index) * step)


def _adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor | None:
    """`torch.adaptive_avg_pool1d` of a symbolic size, else None."""
    if not isinstance(input.shape[-1], SymInt):
        return None
    (count,) = output_size if isinstance(output_size, list | tuple) else (output_size,)
    return adaptive_average(input, -1, count)


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor | None:
    """`functional.adaptive_avg_pool2d` where a size is symbolic, else None."""
    if not any(isinstance(size, SymInt) for size in input.shape[-2:]):
        return None
    pair = isinstance(output_size, list | tuple)
    high, wide = output_size if pair else (output_size, output_size)
    return adaptive_average(adaptive_average(input, -2, high), -1, wide)


def adaptive_average(input: Tensor, axis: int, count: int | None) -> Tensor:
    """Means over `count` windows of one of the last two axes, for any size of it.

    Window i is `floor(i * size / count)` to `ceil((i + 1) * size / count)`, as torch has it. The
    exporter's form branches on what divides what, and a trace keeps one branch.
    """
    if count is None:
        return input
    size = input.shape[axis]
    index = torch.arange(count, device=input.device)[:, None]
    start, end = index * size // count, ((index + 1) * size + count - 1) // count
    column = torch.arange(size, device=input.device)
    inside = ((column >= start) & (column < end)).to(input.dtype)
    windows = inside / (end - start).to(input.dtype)
    return input @ windows.T if axis == -1 else windows @ input


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> None:
    """State for attention that no data-dependent axis is empty, which it asks and cannot know."""
    for tensor in (query, key, value):
        for size in tensor.shape:
            if isinstance(size, SymInt) and size.node.hint is None:
                _check(size != 0)


_REWRITES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.repeat_interleave: _repeat_interleave,
    Tensor.repeat_interleave: _repeat_interleave,
    torch.masked_fill: _masked_fill,
    Tensor.masked_fill: _masked_fill,
    Tensor.masked_fill_: _masked_fill_,
    torch.squeeze: _squeeze,
    Tensor.squeeze: _squeeze,
    torch.split: _split,
    Tensor.split: _split,
    torch.split_with_sizes: _split,
    Tensor.split_with_sizes: _split,
    Tensor.expand: _expand,
    torch.unsqueeze: _unsqueeze,
    Tensor.unsqueeze: _unsqueeze,
    Tensor.__getitem__: _getitem,
    torch.linspace: _linspace,
    torch.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    functional.scaled_dot_product_attention: _attention,
}


def _square_root(value: Any) -> Any:
    """ONNX of `torch.sym_sqrt`; the value may have come out of integer arithmetic."""
    single: Any = op.Cast(value, to=1)
    return op.Sqrt(single)


# Arithmetic on symbolic numbers that torch's own table lacks.
SYMBOLIC_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.sym_sqrt: _square_root,
}
