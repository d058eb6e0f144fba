"""torch, which only the denoisers need."""

from __future__ import annotations

from typing import Any

from qvd_trt.export.errors import UserError


def import_torch() -> Any:
    """The module torch.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "denoisers take and return torch tensors, and torch cannot be imported "
            f"({error}); pip install torch"
        ) from error
    return torch
