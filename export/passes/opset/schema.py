"""What the ONNX schemas say of a node: its parameters, the types they take, the types it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from qvd_trt.export.errors import UserError

Schema = onnx.defs.OpSchema
Parameter = onnx.defs.OpSchema.FormalParameter
Dtypes = Mapping[ir.Value, ir.DataType]

LOWEST, HIGHEST = 17, 25
"""Opsets between which a graph can be lowered."""

REDUCTIONS_OF_18 = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
"""``Reduce...`` operators whose axes became an input in opset 18."""

DTYPE_ATTRIBUTES = {
    "Cast": "to",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
    "EyeLike": "dtype",
    "Bernoulli": "dtype",
    "Multinomial": "dtype",
    "DequantizeLinear": "output_dtype",
    "QuantizeLinear": "output_dtype",
}
"""Attributes that name the type of the first output; 0 or no attribute leaves it to the inputs."""

STATED_OUTPUT = frozenset({*DTYPE_ATTRIBUTES, "ConstantOfShape", "Constant"})
"""Operators that choose the type of their first output. Type variables of outputs alone that are
not theirs are statistics (LayerNormalization's mean), which stay float."""


_DEPRECATED_BUT_THERE = frozenset({"GroupNormalization"})
"""Marked as deprecated in opsets 18 to 20, where everybody runs it all the same."""


def schema_of(node: ir.Node, opset: int) -> Schema | None:
    """Find a node's schema at an opset of the default domain; None for every other domain.

    Raises:
        UserError: the default domain of that opset does not know the operator.
    """
    if node.domain:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        schema = None
    gone = schema is None or (schema.deprecated and node.op_type not in _DEPRECATED_BUT_THERE)
    if gone:
        raise UserError(f"{describe(node)}: opset {opset} does not have this operator")
    return schema


def describe(node: ir.Node) -> str:
    """How errors name a node: by its name, or by what it writes."""
    called = repr(node.name) if node.name else f"that writes {node.outputs[0].name!r}"
    return f"node {called} ({node.op_type})"


def parameter(parameters: Sequence[Parameter], index: int) -> Parameter | None:
    """Find the formal parameter of an actual input or output; the last one may be variadic."""
    if index < len(parameters):
        return parameters[index]
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    if parameters and parameters[-1].option == variadic:
        return parameters[-1]
    return None


def type_name(dtype: ir.DataType) -> str:
    """Write the dtype as schemas do, for example ``tensor(float16)``."""
    return f"tensor({dtype.name.lower()})"


def is_tied(formal: Parameter) -> bool:
    """Whether the parameter's type is a variable (``T``) and not one fixed type."""
    return "(" not in formal.type_str


def infer_dtypes(graph: ir.Graph, opset: int) -> dict[ir.Value, ir.DataType]:
    """Find the element type of every value of a graph without subgraphs.

    Declared types are taken as they are; the others follow from the schemas, node by node.

    Raises:
        UserError: a type is neither declared nor follows; the message names the node.
    """
    found: dict[ir.Value, ir.DataType] = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        dtype = value.const_value.dtype if value.const_value is not None else value.dtype
        if dtype is None:
            raise UserError(f"graph input {value.name!r} has no type; export the model again")
        found[value] = dtype
    for node in graph:
        for index, output in enumerate(node.outputs):
            dtype = output.dtype or _output_dtype(node, index, opset, found)
            if dtype is None and not output.uses() and not output.is_graph_output():
                dtype = ir.DataType.UNDEFINED  # left out by the file, and named since
            if dtype is None:
                raise UserError(
                    f"{describe(node)}: the type of its output {output.name!r} is neither stated "
                    "nor inferred; state it in the model's value_info"
                )
            found[output] = dtype
    return found


def check_node(node: ir.Node, source: int, target: int) -> None:
    """Refuse what the schemas of opset ``target`` do not describe.

    Raises:
        UserError: an operator, an attribute, an input or a type is not part of that opset.
    """
    schema = schema_of(node, target)
    if schema is None:
        return
    where = f"opset {source} to {target}: {describe(node)}"
    if unknown := sorted(set(node.attributes) - set(schema.attributes)):
        raise UserError(f"{where}: attribute {unknown[0]!r} is not part of opset {target}")
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None:
                continue
            formal = parameter(formals, index)
            if formal is None:
                raise UserError(f"{where}: operand {value.name!r} is not part of opset {target}")
            dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
            if dtype is not None and type_name(dtype) not in formal.types:
                raise UserError(
                    f"{where}: {value.name!r} is {dtype.name}, "
                    f"which opset {target} does not take there"
                )


def drop_new_defaults(node: ir.Node, source: int, target: int) -> None:
    """Drop attributes that opset ``target`` lacks and that are at the default of ``source``.

    A new attribute's default is what the operator did before.
    """
    new, old = schema_of(node, source), schema_of(node, target)
    if new is None or old is None:
        return
    for name in set(node.attributes) & set(new.attributes) - set(old.attributes):
        default = new.attributes[name].default_value
        if default.type:
            unchanged = ir.serde.deserialize_attribute(default).value
            if node.attributes[name].value == unchanged:
                node.attributes.pop(name)


def least_ir_version(opset: int) -> int:
    """Look up the IR version that an opset of the default domain came with."""
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def mixed_types(graph: ir.Graph, opset: int) -> str | None:
    """Describe the first node that binds one type variable to two types; None without such a node.

    Only declared types count.
    """
    for node in graph:
        schema = schema_of(node, opset)
        bound: dict[str, ir.DataType] = {}
        for values, formals in (
            (node.inputs, schema.inputs if schema else ()),
            (node.outputs, schema.outputs if schema else ()),
        ):
            for index, value in enumerate(values):
                formal = parameter(formals, index)
                if value is None or formal is None or value.dtype is None or not is_tied(formal):
                    continue
                if formal.is_homogeneous and value.dtype != bound.setdefault(
                    formal.type_str, value.dtype
                ):
                    was = bound[formal.type_str].name
                    return f"{describe(node)}: {value.name!r} is {value.dtype.name}, not {was}"
    return None


def _output_dtype(
    node: ir.Node, index: int, opset: int, known: dict[ir.Value, ir.DataType]
) -> ir.DataType | None:
    inputs = [None if value is None else known.get(value) for value in node.inputs]
    schema = schema_of(node, opset)
    if schema is None:
        return next((dtype for dtype in inputs if dtype is not None), None)
    if index == 0 and (stated := _stated_dtype(node, inputs)) is not None:
        return stated
    formal = parameter(schema.outputs, index)
    if formal is None:
        return None
    for position, dtype in enumerate(inputs):
        source = parameter(schema.inputs, position)
        if source is not None and source.type_str == formal.type_str and dtype is not None:
            return dtype
    if len(formal.types) == 1:
        return ir.DataType[next(iter(formal.types))[len("tensor(") : -1].upper()]
    return None


def _stated_dtype(node: ir.Node, inputs: Sequence[ir.DataType | None]) -> ir.DataType | None:
    """Read the type that the node itself states, by an attribute or a default."""
    name = DTYPE_ATTRIBUTES.get(node.op_type)
    if name is not None and (number := node.attributes.get_int(name, 0)):
        return ir.DataType(number)
    if node.op_type in ("RandomNormal", "RandomUniform"):
        return ir.DataType.FLOAT
    if node.op_type in ("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli"):
        return inputs[0]
    if node.op_type == "QuantizeLinear":
        return inputs[2] if len(inputs) > 2 and inputs[2] is not None else ir.DataType.UINT8
    if node.op_type == "DequantizeLinear":
        return inputs[1]
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        return None if tensor is None else tensor.dtype
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        return ir.DataType.FLOAT if value is None else value.as_tensor().dtype
    return None
