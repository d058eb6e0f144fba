"""What the commands share: the parser, checked names, exit codes, and how they report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qvd_trt.export.errors import UserError

EXIT_OK, EXIT_LIMIT, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
PROVIDERS = ("cpu", "cuda")


class Report(Protocol):
    """What a command found."""

    def to_json(self) -> str:
        """The whole report, for machines."""


AnyReport = TypeVar("AnyReport", bound=Report)
AnyReport_contra = TypeVar("AnyReport_contra", bound=Report, contravariant=True)


class PrintSummary(Protocol[AnyReport_contra]):
    """Prints a report for people."""

    def __call__(self, report: AnyReport_contra, *, verbose: bool) -> None:
        """Print it; ``verbose`` leaves nothing out."""


def command_parser(
    name: str, description: str, examples: str, *, verbose: str
) -> argparse.ArgumentParser:
    """A parser with the options that every command has.

    Args:
        name: Name of the command.
        description: What it does, in a sentence.
        examples: Command lines, one a line.
        verbose: What ``--verbose`` adds, for its help.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE.toml",
        help="take arguments from this file, too: long options without their dashes, the models "
        'by name, for example bits = "w8a8", calib = ["a", "b"], json = true. Its paths are '
        "relative to the working directory; what the command line gives replaces (not extends) "
        "what the file gives",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
    return parser


class _Version(argparse.Action):
    """Prints the installed version, which it looks up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        try:
            print(f"{parser.prog} {version('qvd-trt')}")
        except PackageNotFoundError:
            raise UserError(
                "--version: qvd-trt runs from a folder and is not installed; install it with pip"
            ) from None
        parser.exit()


def add_model_options(group: argparse._ArgumentGroup, *, provider: str) -> None:
    """Add how the float model is read and run; ``provider`` says what runs, for the help."""
    group.add_argument("--timestep-input", metavar="NAME", help="name of the timestep input")
    group.add_argument("--latent-input", metavar="NAME", help="name of the noisy latent input")
    group.add_argument("--provider", choices=PROVIDERS, default=PROVIDERS[0], help=provider)


def read_providers(options: argparse.Namespace) -> tuple[str, ...]:
    """The ONNX Runtime execution providers of ``--provider``, first choice first."""
    from qvd_trt.export.ort_session import CPU, CUDA

    return CUDA if options.provider == "cuda" else CPU


def known(option: str, name: str | None, names: Collection[str]) -> str | None:
    """The name, or None when the option was not given.

    Raises:
        UserError: It is none of ``names``.
    """
    if name is not None and name not in names:
        raise UserError(f"{option}: {name!r} is unknown; use one of {', '.join(names)}")
    return name


def run_command(name: str, body: Callable[[], int]) -> int:
    """Run a command's body; what a user can mend becomes one line on stderr and exit code 2."""
    try:
        return body()
    except UserError as error:
        return _refuse(name, str(error))
    except OSError as error:
        return _refuse(name, f"{error}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _refuse(name: str, message: str) -> int:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def say(name: str, *, notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
    """Print notes and warnings to stderr, a line each."""
    for note in notes:
        print(f"{name}: note: {note}", file=sys.stderr)
    for warning in warnings:
        print(f"{name}: warning: {warning}", file=sys.stderr)


def print_report(
    report: AnyReport, options: argparse.Namespace, print_summary: PrintSummary[AnyReport]
) -> None:
    """Print a report as ``--json`` and ``--verbose`` ask for."""
    if options.json:
        print(report.to_json())
    else:
        print_summary(report, verbose=options.verbose)
