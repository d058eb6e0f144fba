"""Makes a plan: sources of calibration calls, statistics, algorithms, temporal codebooks."""
