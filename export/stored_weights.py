"""Weights of 16-bit files: read as float32, one at a time, and given to sessions as stored."""

from __future__ import annotations

import onnx_ir as ir

_FLOAT = ir.DataType.FLOAT


class WidenedTensor(ir.LazyTensor):
    """A 16-bit tensor as float32; converted anew whenever it is read, and never kept.

    Attributes:
        stored: The tensor as the file has it, perhaps in external data.
    """

    __slots__ = ("stored",)

    def __init__(self, stored: ir.TensorProtocol, name: str) -> None:
        super().__init__(self._widen, _FLOAT, ir.Shape(stored.shape.numpy()), name=name)
        self.stored = stored

    def _widen(self) -> ir.TensorProtocol:
        array = self.stored.numpy().astype("float32", order="C")  # views have other orders
        return ir.Tensor(array, dtype=_FLOAT, name=self.name)


def stored_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor that a file holds for this one."""
    return tensor.stored if isinstance(tensor, WidenedTensor) else tensor


def with_stored_weights(model: ir.Model) -> ir.Model:
    """The same function with every widened initializer as the file has it, behind a Cast.

    ONNX Runtime folds those Casts while it loads the model, a weight at a time: the session takes
    no more memory than that of a float32 file, and external weights stay in their file. Tensors
    keep their names; the stored ones are called ``<name>/qvd/stored``.

    Args:
        model: Left as it is.
    """
    widened = [
        value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, WidenedTensor)
    ]
    if not widened:
        return model
    copy = model.clone()
    graph = copy.graph
    for name in [value.name or "" for value in widened]:
        value = graph.initializers[name]
        assert isinstance(value.const_value, WidenedTensor)
        tensor = _renamed(value.const_value.stored, f"{name}/qvd/stored")
        stored = ir.Value(
            name=tensor.name,
            shape=value.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        node = ir.node("Cast", [stored], {"to": int(_FLOAT)}, name=f"{name}/qvd/widen")
        cast = node.outputs[0]
        cast.name, cast.shape, cast.type = name, value.shape, ir.TensorType(_FLOAT)
        value.replace_all_uses_with(cast, replace_graph_outputs=True)
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], node)
    return copy


def _renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same data under another name; the tensor itself belongs to the model that was read."""
    if not isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=name,
        base_dir=tensor.base_dir,
    )
