"""Calibration algorithms for dense sites: QVD's gate, the baselines, and the registry of them."""
