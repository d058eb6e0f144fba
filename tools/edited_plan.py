"""Whether the plan that lies where an export is to write its own was edited by hand.

It is kept then, under another name. Refusing would stop an unattended run over a file that can as
well be put aside, and overwriting would lose what nobody can make again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path


def plan_digest(plan: Path) -> str:
    """SHA-256 of a plan's file, hexadecimal."""
    return hashlib.sha256(plan.read_bytes()).hexdigest()


def is_edited(plan: Path, report: Path) -> bool:
    """Whether an existing plan is another than the one that the report beside it was written with.

    Without a report that tells, it may be.
    """
    if not plan.is_file():
        return False
    try:
        recorded = json.loads(report.read_bytes())["plan_sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return True
    return bool(recorded != plan_digest(plan))


def spare_name(plan: Path) -> Path:
    """The first of ``x.plan.json.bak``, ``.bak2``, ``.bak3``, ... that is not taken."""
    names = (f"{plan.name}.bak{number if number > 1 else ''}" for number in itertools.count(1))
    return next(path for path in map(plan.with_name, names) if not path.exists())
