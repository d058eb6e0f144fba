"""What an algorithm wants to know about each site, and how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from qvd_trt.calibrators.sites import Site

ROW_BYTES_PER_WINDOW = 4 << 20
"""Sample rows kept per receptive field: at most this many bytes."""

MIN_ROWS, MAX_ROWS = 64, 512


@dataclass(frozen=True, slots=True)
class StatisticsRequest:
    """The statistics that an algorithm needs; ranges are always collected.

    Attributes:
        rows: Whether sample rows of the layers' inputs are needed.
    """

    rows: bool

    def __or__(self, other: StatisticsRequest) -> StatisticsRequest:
        return StatisticsRequest(rows=self.rows or other.rows)


def row_limit(site: Site) -> int:
    """How many sample rows are kept per receptive field of the site, between 64 and 512."""
    row_bytes = 4 * site.channels * max(window.taps for window in site.windows)
    return max(MIN_ROWS, min(MAX_ROWS, ROW_BYTES_PER_WINDOW // row_bytes))


def memory_forecast(sites: tuple[Site, ...], request: StatisticsRequest) -> int:
    """Upper bound in bytes of what the statistics hold, whatever the number of samples.

    Ranges per timestep come on top: 8 bytes per channel, site and distinct timestep.
    """
    if not request.rows:
        return 0
    return sum(
        4 * site.channels * window.taps * row_limit(site)
        for site in sites
        for window in site.windows
    )
