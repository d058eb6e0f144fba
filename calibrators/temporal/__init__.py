"""Temporal features: codebook quantizers (HTDQ) and their score (TDScore)."""
