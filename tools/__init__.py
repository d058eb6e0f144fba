"""The commands: argument parsing, progress and reports."""
