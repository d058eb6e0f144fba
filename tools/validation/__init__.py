"""Comparing the float model, the QDQ model and the engine on the same calls."""
