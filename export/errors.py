"""The error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, described in one line that says what is wrong and how to mend it.

    The commands print the message without a traceback and exit with code 2.
    """
