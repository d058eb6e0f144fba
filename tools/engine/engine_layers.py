"""The layers of a built engine, from whichever source lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PRODUCT_WORDS = ("conv", "gemm", "matrixmultiply", "matmul", "correlation", "fullyconnected")
_COPY_WORDS = ("reformat", "copynode", "reorder")
_GENERATED_COPY = re.compile(r"__myl_(?:Move|Copy|Cast|Resh|Tran)+_")


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer.

    Attributes:
        name: TensorRT's name for it.
        kind: Its type, such as ``gemm``, ``CaskConvolution`` or ``Reformat``.
        inputs: Data types of the tensors it reads: ``Int8``, ``Half``, ``Float``, ...
        constants: Data types of its weights and other constants.
        outputs: Data types of the tensors it writes.
        onnx_nodes: Names of the ONNX nodes that take part in it.
        input_shape: Extents of its first input; empty where unknown.
        raw: The description it was read from.
        origin: Why TensorRT 8 made a layer of kind ``Reformat``: ``QDQ``, ``CONCAT``, ``REFORMAT``.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    input_shape: tuple[int, ...]
    raw: str
    origin: str = ""

    @property
    def is_product(self) -> bool:
        """Whether it is a library kernel for a matrix product or a convolution."""
        return any(word in self.kind.lower() for word in _PRODUCT_WORDS)

    @property
    def is_int8_product(self) -> bool:
        """Whether it is a matrix product or convolution of two Int8 operands.

        A layer that lists no second operand is a product with weights that it does not show.
        """
        others = (*self.inputs[1:], *self.constants)
        return self.is_product and self.inputs[:1] == ("Int8",) and (not others or "Int8" in others)

    @property
    def is_copy(self) -> bool:
        """Whether it only changes the layout or the type of a tensor.

        TensorRT 8.6 runs a QuantizeLinear as a Reformat layer of that name: that is no copy.
        """
        if self.origin == "QDQ":
            return False
        text = f"{self.kind} {self.name}".lower().replace(" ", "")
        generated = _GENERATED_COPY.match(self.name) is not None
        return generated or any(word in text for word in _COPY_WORDS)

    @property
    def is_opaque(self) -> bool:
        """Whether it is a fused block that does not list its kernels (TensorRT 8)."""
        return self.kind == "Myelin" or "ForeignNode[" in self.name

    @property
    def is_plugin(self) -> bool:
        """Whether a plugin runs it."""
        return self.kind.lower().startswith("plugin")
