"""Frechet distance between two sets of classifier features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def frechet_distance(first: Array, second: Array) -> float:
    """Distance of the normals fitted to two feature sets [n, d] and [m, d].

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with the trace of the root taken from the
    eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.
    """
    mean_gap = first.mean(0) - second.mean(0)
    covariance_1, covariance_2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_2 @ root).clip(min=0)).sum()
    trace = np.trace(covariance_1) + np.trace(covariance_2)
    return float(mean_gap @ mean_gap + trace - 2 * cross)
