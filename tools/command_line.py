"""What all commands share: how errors leave the process."""

from __future__ import annotations

import sys
from collections.abc import Callable

from qvd_trt.calibrators.errors import UserError

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def run_command(name: str, body: Callable[[], int]) -> int:
    """Run a command's body; a :class:`UserError` becomes one line on stderr and exit code 2."""
    try:
        return body()
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"{name}: error: {line}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
