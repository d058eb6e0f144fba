"""One file per calibration algorithm, and the registry of them."""
