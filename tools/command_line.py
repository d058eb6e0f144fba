"""What all commands share: how errors leave the process."""

from __future__ import annotations

import sys
from collections.abc import Callable

from qvd_trt.export.errors import UserError

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130


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
