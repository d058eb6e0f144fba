"""kill -9 at random moments: every file stays whole, and the run ends in the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_and_resume import check_whole, kill_and_resume
from qvd_trt.export.errors import UserError


@pytest.mark.slow
def test_ten_kills() -> None:
    outcome = kill_and_resume(kills=10, seed=1)
    assert outcome.kills == 10
    assert outcome.finished >= 1
    assert outcome.found["s.npz.partial"] >= 1


def test_a_half_written_file_would_be_seen(tmp_path: Path) -> None:
    assert check_whole(tmp_path) == []
    (tmp_path / "s.npz.partial").write_bytes(b"PK\x03\x04half")
    with pytest.raises(UserError, match="not a complete statistics file"):
        check_whole(tmp_path)
