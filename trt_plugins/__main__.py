"""``python -m qvd_trt.trt_plugins``: build the plugin library, or print where it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qvd_trt.trt_plugins.build import BuildRequest, build_library
from qvd_trt.trt_plugins.library import LIBRARY_VARIABLE, PluginError, find_library

NAME = "python -m qvd_trt.trt_plugins"
EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as all refusals are."""

    def error(self, message: str) -> NoReturn:
        what = " ".join(message.split())
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {what}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = _Parser(prog=NAME, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="build the library with nvcc and cmake")
    build.add_argument(
        "--tensorrt-root",
        type=Path,
        metavar="DIR",
        help="unpacked TensorRT tar (default: TENSORRT_ROOT, else the system's include folders)",
    )
    build.add_argument(
        "--arch",
        nargs="+",
        default=[],
        metavar="N",
        help="GPUs to build for, for example 87 or 90 (default: all that nvcc knows, from 75 on)",
    )
    build.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the library (default: in the user's cache, where `path` finds it)",
    )

    path = commands.add_parser("path", help="print the path of the built library")
    path.add_argument(
        "--tensorrt",
        type=int,
        metavar="N",
        help=f"major version, when several are built; {LIBRARY_VARIABLE} goes before all",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 something is missing, 130 interrupted)."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "build":
            request = BuildRequest(
                tensorrt_root=options.tensorrt_root,
                output=options.out,
                architectures=options.arch,
            )
            print(build_library(request))
        else:
            print(find_library(options.tensorrt))
    except PluginError as error:
        print(f"{NAME}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
