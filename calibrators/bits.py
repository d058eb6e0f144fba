"""Bit widths of weights and activations, as written in ``--bits w8a8``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qvd_trt.calibrators.errors import UserError

FLOAT_BITS = 16
"""A width of 16 leaves that side unquantized."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Bit widths of a quantized layer's weight and input, each 2 to 8, or 16 for float."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        for side, width in (("weight", self.weight), ("activation", self.activation)):
            if width != FLOAT_BITS and not 2 <= width <= 8:
                raise UserError(
                    f"--bits: {side} width {width} is not supported; use 2 to 8, or 16 for float"
                )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weight == FLOAT_BITS and self.activation == FLOAT_BITS

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``w8a8``, ``w4a8``, ``w16a8``...

        Raises:
            UserError: the text is not of this form, or a width is not supported.
        """
        match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
        if match is None:
            raise UserError(f"--bits: {text!r} is not understood; write it as w8a8 or w4a8")
        return cls(weight=int(match[1]), activation=int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


W8A8 = Bits(weight=8, activation=8)
"""The deployable default."""
