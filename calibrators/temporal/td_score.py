"""TDScore: how well the timesteps can still be told apart after a feature is quantized."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qvd_trt.export.arrays import Float64Array

_CHUNK = 256
"""Rows of the distance matrix held at once."""

_BoolArray = npt.NDArray[np.bool_]
_Real = npt.NDArray[np.floating]


def td_score(features: _Real, quantized: _Real, timesteps: _Real) -> float:
    """Mean, clipped margin of nearest-neighbour retrieval of the timestep (docs/method.md#tdscore).

    With ``f_t`` the feature and ``q_t`` its quantized value::

        d_t = min over s of ||f_t - f_s||
        m_t = (min over s of ||q_t - f_s||  -  ||q_t - f_t||) / d_t
        TDScore = mean of clip(m_t, -1, 1)

    ``s`` runs over the *rivals* of ``t``: the rows of another timestep whose feature differs from
    ``f_t``. Rows of one timestep under several conditionings are no rivals, because taking one for
    the other still finds the right timestep; rows equal bit for bit are none, because no quantizer
    could part them. So ``d_t`` is never zero. Rows without rivals are left out of the mean.

    Args:
        features: ``[S, C]`` float values, one row per (timestep, conditioning).
        quantized: ``[S, C]``, the same rows after quantize-dequantize.
        timesteps: ``[S]``.

    Returns:
        A value in [-1, 1]: 1 for a lossless quantizer. 1 too when no row has a rival (a single
        timestep, or constant features), for then no retrieval can fail.

    Raises:
        ValueError: the shapes do not fit together, or a value is not finite.
    """
    rows, steps = _checked(features, timesteps)
    codes = np.asarray(quantized, np.float64)
    if codes.shape != rows.shape:
        raise ValueError(f"quantized has shape {codes.shape}, features have {rows.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("quantized holds values that are not finite")
    groups = _identical_rows(rows)
    distance = _nearest_rival(rows, rows, steps, groups)
    told = np.isfinite(distance)
    if not told.any():
        return 1.0
    away = _nearest_rival(codes, rows, steps, groups)[told]
    own = np.sqrt(np.square(codes[told] - rows[told]).sum(axis=1))
    return float(np.clip((away - own) / distance[told], -1.0, 1.0).mean())


def separation(features: _Real, timesteps: _Real) -> Float64Array:
    """``d_t`` of :func:`td_score`: each row's distance to the nearest row of another timestep.

    Args:
        features: ``[S, C]``.
        timesteps: ``[S]``.

    Returns:
        ``[S]`` float64, positive; infinite for a row without rivals.

    Raises:
        ValueError: the shapes do not fit together, or a value is not finite.
    """
    rows, steps = _checked(features, timesteps)
    return _nearest_rival(rows, rows, steps, _identical_rows(rows))


def _checked(features: _Real, timesteps: _Real) -> tuple[Float64Array, Float64Array]:
    rows = np.asarray(features, np.float64)
    steps = np.asarray(timesteps, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"features have shape {rows.shape}, expected a non-empty [S, C]")
    if steps.shape != rows.shape[:1]:
        raise ValueError(f"timesteps have shape {steps.shape}, expected {rows.shape[:1]}")
    if not np.isfinite(rows).all():
        raise ValueError("features hold values that are not finite")
    return rows, steps


def _identical_rows(rows: Float64Array) -> npt.NDArray[np.intp]:
    """``[S]``: a number for each row, equal for rows of equal values (0.0 equals -0.0)."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows + 0.0])


def _nearest_rival(
    queries: Float64Array,
    rows: Float64Array,
    steps: Float64Array,
    groups: npt.NDArray[np.intp],
) -> Float64Array:
    """``[S]``: distance of each query ``t`` to the nearest rival row of ``t``, inf without one.

    The Gram matrix of the centred rows proposes the nearest rows; the distance is then taken from
    the differences, so that cancellation cannot touch it.
    """
    centre = rows.mean(axis=0)
    points, probes = rows - centre, queries - centre
    point_norms = np.square(points).sum(axis=1)
    probe_norms = np.square(probes).sum(axis=1)
    nearest = np.full(len(rows), np.inf)
    rounding = 4.0 * np.finfo(np.float64).eps * rows.shape[1]
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        squared = probe_norms[part, None] + point_norms - 2.0 * (probes[part] @ points.T)
        rival = (steps[part, None] != steps) & (groups[part, None] != groups)
        slack = rounding * (probe_norms[part] + point_norms.max())
        for index, candidates in _candidates(squared, rival, slack):
            differences = rows[candidates] - queries[start + index]
            nearest[start + index] = np.sqrt(np.square(differences).sum(axis=1).min())
    return nearest


def _candidates(
    squared: Float64Array, rival: _BoolArray, slack: Float64Array
) -> list[tuple[int, npt.NDArray[np.intp]]]:
    """Per query with rivals: the rivals whose distance may be the least, given the rounding."""
    masked = np.where(rival, squared, np.inf)
    least = masked.min(axis=1)
    close = masked <= (least + 2.0 * slack)[:, None]
    return [(int(i), np.flatnonzero(close[i])) for i in np.flatnonzero(np.isfinite(least))]
