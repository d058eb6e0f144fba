"""The constant of the file that a tensor is made of."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def stored_value(value: ir.Value | None, through: Collection[str]) -> ir.Value | None:
    """The initializer or Constant that a tensor comes from, or None.

    Args:
        value: The tensor.
        through: Operators that may stand between, each with the tensor as its first input.
    """
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in through:
            return value if producer.op_type == "Constant" else None
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None
