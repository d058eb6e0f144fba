"""Links to a heading lead to one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for folder in (".", ".github", "docs", "examples", "trt_plugins")
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_headings(page: Path) -> None:
    for file, anchor in LINK.findall(page.read_text()):
        target = page.parent / file if file else page
        assert anchor in anchors(target.read_text()), f"{file}#{anchor}"


def test_anchors_of_headings() -> None:
    text = "# A `b`: c's\n## D-e\n## D-e\n```sh\n# comment\n```\n### [f](g.md) in 2.0\n"
    assert anchors(text) == {"a-b-cs", "d-e", "d-e-1", "f-in-20"}


@pytest.mark.parametrize(
    "name",
    [
        "notation",
        "temporal-features",
        "htdq",
        "tdscore",
        "scri",
        "gate",
        "folding",
        "bias-correction",
        "weights",
        "calibration",
        "bits",
        "evidence",
    ],
)
def test_sections_of_the_method_keep_their_names(name: str) -> None:
    """Docstrings cite them."""
    assert name in anchors((ROOT / "docs" / "method.md").read_text())
