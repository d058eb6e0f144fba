"""The torch module that a node came from, as torch's exporter notes it."""

from __future__ import annotations

import ast

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata: a printed list of the module paths from the root down, then torch's node."""


def module_path(node: ir.Node) -> str:
    """The path, such as ``down_blocks.0.attentions.0.proj_in``; empty where none is noted."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
