"""Strings the stages together; engines, validation, drop-in denoisers, and the commands."""
