"""Which trajectories of a calibration run one process makes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qvd_trt.export.errors import UserError


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a run, counted from 1 as in ``2/8``.

    Attributes:
        index: Which one, 1 to ``count``.
        count: How many there are.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises:
            UserError: it is not of that form, or i is not within 1 and n.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.index <= shard.count:
            raise UserError(f"--shard: {text!r} is not understood; write i/n, from 1/n to n/n")
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, trajectory: int) -> bool:
        """Whether the trajectory of that number, from 0, belongs to this shard."""
        return trajectory % self.count == self.index - 1


WHOLE = Shard()
"""All trajectories."""
