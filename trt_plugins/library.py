"""Where the built plugin library is, and the error that says why there is none."""

from __future__ import annotations

import os
from pathlib import Path

LIBRARY_NAME = "libqvd_trt_plugins.so"
LIBRARY_VARIABLE = "QVD_TRT_PLUGIN_LIBRARY"


class PluginError(Exception):
    """The library cannot be built or found; one line says why and what to do about it."""


def library_folder(tensorrt_major: int) -> Path:
    """The folder in the user's cache for the library of one major version of TensorRT."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qvd-trt" / "plugins" / f"trt{tensorrt_major}"


def find_library(tensorrt_major: int | None = None) -> Path:
    """Path of the library: from ``QVD_TRT_PLUGIN_LIBRARY``, else from the user's cache.

    Args:
        tensorrt_major: The TensorRT that will load it. May be left out while only one is built.

    Raises:
        PluginError: There is none, or there are several to choose from.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise PluginError(f"{LIBRARY_VARIABLE} names {named}, which is not a file")
        return Path(named)
    folder = "trt*" if tensorrt_major is None else f"trt{tensorrt_major}"
    found = list(library_folder(0).parent.glob(f"{folder}/{LIBRARY_NAME}"))
    if not found:
        wanted = "" if tensorrt_major is None else f" for TensorRT {tensorrt_major}"
        raise PluginError(
            f"the plugin library{wanted} is not built: run `python -m qvd_trt.trt_plugins build`, "
            f"or set {LIBRARY_VARIABLE}"
        )
    if len(found) > 1:
        majors = sorted(int(path.parent.name.removeprefix("trt")) for path in found)
        versions = ", ".join(map(str, majors))
        raise PluginError(
            f"the plugin library is built for TensorRT {versions}: say which with --tensorrt"
        )
    return found[0]
