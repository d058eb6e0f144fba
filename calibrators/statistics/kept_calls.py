"""A few calls of a stream, evenly spread; parts of the stream merge into the same choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qvd_trt.calibrators.statistics.activation_stats import ReferenceCall

HELD_OUT_CALLS = 8
"""At most this many calls are kept out, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class KeptCalls:
    """Every ``stride``-th call of a stream and the newest one.

    The stride is the least power of two at which no more than twice ``HELD_OUT_CALLS`` are kept.
    A part of the stream keeps at least what the whole of it would keep of that part.

    Attributes:
        calls: The calls by their place in the stream, from 0, ascending.
        stride: Of all places that are multiples of it, none was dropped.
    """

    calls: Mapping[int, ReferenceCall] = field(default_factory=dict)
    stride: int = 1

    def with_call(self, place: int, call: ReferenceCall) -> KeptCalls:
        """These calls and another one, at its place in the stream."""
        return self.merged(KeptCalls({place: call}))

    def merged(self, other: KeptCalls) -> KeptCalls:
        """What is kept of both parts; commutative and associative."""
        every = {**self.calls, **other.calls}
        newest = max(every, default=0)
        stride = max(self.stride, other.stride)
        while sum(place % stride == 0 for place in every) > 2 * HELD_OUT_CALLS:
            stride *= 2
        kept = [place for place in sorted(every) if place % stride == 0 or place == newest]
        return KeptCalls({place: every[place] for place in kept}, stride)

    def chosen(self) -> tuple[ReferenceCall, ...]:
        """All calls where they are few, else the first, the newest and some between."""
        calls = list(self.calls.values())
        if len(calls) > HELD_OUT_CALLS:
            last = len(calls) - 1
            places = [round(index * last / (HELD_OUT_CALLS - 1)) for index in range(HELD_OUT_CALLS)]
            calls = [calls[place] for place in places]
        return tuple(calls)
