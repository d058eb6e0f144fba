"""Rewrites of torch calls that `torch.onnx.export` would turn into a wrong graph.

They are a torch function mode and not monkey patches: they apply to the calling thread, inside the
`with` block only, and torch itself is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ExportableCalls(TorchFunctionMode):
    """Inside this context, torch calls with a known export trap run as equal, exportable calls.

    `repeat_interleave` by an int (or a symbolic one) becomes unsqueeze, expand, flatten: for a
    symbolic count the exporter writes an Expand that is right at batch 1 only. Counts given as a
    tensor are left alone. Results are equal bit for bit, shapes and dtypes too.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, or its exportable equal."""
        kwargs = dict(kwargs or {})
        if func in (torch.repeat_interleave, Tensor.repeat_interleave):
            rewritten = _repeat_interleave(*args, **kwargs)
            if rewritten is not None:
                return rewritten
        return func(*args, **kwargs)


def _repeat_interleave(
    input: Tensor,
    repeats: int | torch.SymInt | Tensor | None = None,
    dim: int | None = None,
    *,
    output_size: int | torch.SymInt | None = None,
) -> Tensor | None:
    """`torch.repeat_interleave` for an int count, None for the other overloads.

    The argument names are torch's own, for calls by keyword.
    """
    del output_size  # implied by an int count
    if not isinstance(repeats, int | torch.SymInt):
        return None
    if dim is None:
        input, dim = input.flatten(), 0
    dim = dim % input.ndim
    shape = (*input.shape[: dim + 1], repeats, *input.shape[dim + 1 :])
    return input.unsqueeze(dim + 1).expand(shape).flatten(dim, dim + 1)
