"""Calibration: the data types, sources of calibration inputs, statistics and solvers."""
