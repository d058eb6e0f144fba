"""The error that a user can mend."""

from __future__ import annotations


class PluginError(Exception):
    """The library cannot be built or found; one line says why and what to do about it."""
