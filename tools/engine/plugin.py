"""The HTDQ plugin in a build: when it is needed, when it is of use, and how it is loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

from qvd_trt.export.atomic_files import not_a_file
from qvd_trt.export.errors import UserError
from qvd_trt.tools.engine.onnx_file import HtdqUse, OnnxFile
from qvd_trt.tools.engine.tensorrt_install import RuntimeKind, Version, product_label
from qvd_trt.trt_plugins.library import PluginError, find_library

FIRST_WITH_FUNCTIONS: Version = (9,)
FIRST_PREFERRING_PLUGIN: Version = (10, 7)
FIRST_WITH_V3: Version = (10,)


def choose_plugin(
    model: OnnxFile, kind: RuntimeKind, version: Version, *, use: bool, library: Path | None
) -> Path | None:
    """The library to load, or None.

    Args:
        model: The file.
        kind: Which TensorRT.
        version: Its version.
        use: Whether to load the plugin.
        library: The named library; None for the one that ``trt_plugins build`` wrote.

    Raises:
        UserError: This TensorRT cannot run the HTDQ nodes of this file this way.
    """
    _check_htdq(model, kind, version, use)
    if not use:
        return None
    if library is None:
        try:
            return find_library(version[0])
        except PluginError as error:
            raise UserError(f"--plugin: {error}") from error
    if not library.is_file():
        raise UserError(f"--plugin {library} {not_a_file(library)}; name the built library")
    return library


def plugin_warnings(
    plugin: Path | None, model: OnnxFile, kind: RuntimeKind, version: Version
) -> tuple[str, ...]:
    """What a loaded plugin will not do."""
    if plugin is None:
        return ()
    if model.htdq is HtdqUse.NONE:
        return ("the file has no HTDQ node: the plugin is loaded but not used",)
    if model.htdq is HtdqUse.FUNCTION and version < FIRST_PREFERRING_PLUGIN:
        return (
            f"{product_label(kind, version)} takes the function in the file and leaves the plugin "
            "unused; to use it, export with `qvd-export --htdq plugin`",
        )
    return ()


def load_plugin(tensorrt: ModuleType, version: Version, path: str, logger: Any) -> None:
    """Register the library's creators, so that the parser finds them.

    Raises:
        RuntimeError: TensorRT or the system's loader does not take the library.
    """
    if version >= FIRST_WITH_V3:
        if tensorrt.get_plugin_registry().load_library(path) is None:
            raise RuntimeError(f"TensorRT did not take the plugin library {path}")
        return
    tensorrt.init_libnvinfer_plugins(logger, "")
    try:
        ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(f"the plugin library cannot be loaded: {error}") from error


def _check_htdq(model: OnnxFile, kind: RuntimeKind, version: Version, use_plugin: bool) -> None:
    label = product_label(kind, version)
    if kind == "rtx" and use_plugin:
        raise UserError(
            "TensorRT-RTX cannot load plugins: leave --plugin out; the HTDQ function that "
            "`qvd-export --target rtx` writes is used"
        )
    if kind == "rtx" and model.htdq is HtdqUse.PLUGIN:
        raise UserError(
            f"{model.path} needs the HTDQ plugin, which TensorRT-RTX cannot load: export it with "
            "`qvd-export --target rtx`"
        )
    if kind == "rtx":
        return
    if model.htdq is HtdqUse.PLUGIN and not use_plugin:
        raise UserError(
            f"{model.path} has HTDQ nodes without a function body: give --plugin, or export it "
            "without `--htdq plugin`"
        )
    if model.htdq is HtdqUse.FUNCTION and version < FIRST_WITH_FUNCTIONS:
        raise UserError(
            f"{label} cannot read the HTDQ function in {model.path}: export it with "
            "`qvd-export --target trt8 --htdq inline`, or with `--target trt8 --htdq plugin` and "
            "build with --plugin"
        )
