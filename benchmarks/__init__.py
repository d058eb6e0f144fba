"""Measurements behind docs/results.md; each file is a command."""
