"""What the commands share: the parser, checked names, exit codes, and how they report."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from qvd_trt.export.errors import UserError

EXIT_OK, EXIT_LIMIT, EXIT_USER_ERROR, EXIT_CRASH, EXIT_INTERRUPTED = 0, 1, 2, 70, 130
"""70 is EX_SOFTWARE of sysexits.h; a signal's code is 128 and its number, as shells count."""

TRACEBACK = "QVD_TRACEBACK"
"""Environment variable that asks for the traceback of a crash."""

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
    parser = _Parser(
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


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as all refusals are.

    And where positional arguments go when an option of several values has taken them.
    """

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            taking = [action.option_strings[-1] for action in self._actions if action.nargs == "+"]
            named = " and ".join(", ".join(taking).rsplit(", ", 1))
            message += f"; put them first, before the options: {named} take all words that follow"
        what = " ".join(message.split())
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {what}; see {self.prog} --help\n")


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
    group.add_argument(
        "--prediction-output",
        metavar="NAME",
        help="name of the output that is the prediction (default: the first of the latent's rank)",
    )
    group.add_argument("--provider", choices=PROVIDERS, default=PROVIDERS[0], help=provider)


def read_providers(options: argparse.Namespace) -> tuple[str, ...]:
    """The ONNX Runtime execution providers of ``--provider``, first choice first."""
    from qvd_trt.export.ort_session import CPU, CUDA

    return CUDA if options.provider == "cuda" else CPU


def read_besides(*paths: Path | None) -> tuple[Path, ...]:
    """Files that a request was made from and does not name; no output may replace them."""
    return tuple(path for path in paths if path is not None)


def known(option: str, name: str | None, names: Collection[str]) -> str | None:
    """The name, or None when the option was not given.

    Raises:
        UserError: It is none of ``names``.
    """
    if name is not None and name not in names:
        raise UserError(f"{option}: {name!r} is unknown; use one of {', '.join(names)}")
    return name


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP; like Ctrl-C it unwinds the stack, so that scratch folders go."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_command(name: str, body: Callable[[], int]) -> int:
    """Run a command's body and give the exit code; whatever stops it is one line on stderr.

    What a user can mend is code 2, a signal its own, and all else a bug of this program: code 70.
    """
    _mend_streams()
    try:
        with _heeding_signals():
            return body()
    except UserError as error:
        return _end(name, f"error: {error}", EXIT_USER_ERROR)
    except OSError as error:
        _show_traceback()
        mend = "check the path, its permissions and the free space"
        return _end(name, f"error: {error}; {mend}", EXIT_USER_ERROR)
    except MemoryError as error:
        _show_traceback()
        mend = "give fewer or smaller calls, or a machine with more"
        return _end(name, f"error: out of memory ({error}); {mend}", EXIT_USER_ERROR)
    except Stopped as stop:
        return _end(name, f"stopped by {signal.Signals(stop.number).name}", 128 + stop.number)
    except KeyboardInterrupt:
        return _end(name, "interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        _show_traceback()
        line = f"error: this is a bug of {name}, please report it: {type(error).__name__}: {error}"
        return _end(name, f"{line} ({TRACEBACK}=1 shows the traceback)", EXIT_CRASH)


def _end(name: str, message: str, code: int) -> int:
    _tell(f"{name}: {' '.join(message.split())}")
    return code


def _show_traceback() -> None:
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        _tell(traceback.format_exc().rstrip("\n"))


def _tell(text: str) -> None:
    """Write to stderr; that nobody reads it changes nothing of what was done."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _mend_streams() -> None:
    """Let stdout take any file name, and be there where the caller closed it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _heeding_signals() -> Iterator[None]:
    """Turn the signals that end a process into an exception.

    What the caller ignores, as nohup does SIGHUP, stays ignored.
    """

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # A second one would stop the cleaning up.
        raise Stopped(number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def say(name: str, *, notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
    """Print notes and warnings to stderr, a line each."""
    for note in notes:
        _tell(f"{name}: note: {note}")
    for warning in warnings:
        _tell(f"{name}: warning: {warning}")


def print_report(
    name: str,
    report: AnyReport,
    options: argparse.Namespace,
    print_summary: PrintSummary[AnyReport],
) -> None:
    """Print a report as ``--json`` and ``--verbose`` ask for.

    The job is done and its files are written: a stdout that is closed or full is a warning alone.
    """
    try:
        if options.json:
            print(report.to_json())
        else:
            print_summary(report, verbose=options.verbose)
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        say(name, warnings=[f"done, but stdout takes no more of the summary: {error}"])


def drop_stdout() -> None:
    """Send what is still to be written to stdout nowhere, so that the exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
