"""Reports as JSON text."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(data: Any) -> str:
    """Indented JSON; infinite numbers and NaN, which JSON cannot write, become strings."""
    return json.dumps(_writable(data), indent=2)


def _writable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in value]
    return value
