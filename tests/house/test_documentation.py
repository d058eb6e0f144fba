"""Every command, file and link that the documents mention exists."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.house.markdown import Command, blocks, commands_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_LINE = 140
READERS_OWN = {"calibrators/algorithms/half_range.py", "loader.py"}
SOURCE_NAME = re.compile(r"`([\w./-]+\.(?:py|cuh|cu|cpp))`")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
EXTRAS = re.compile(r"(?:^|/)\.\[([\w,-]+)\]$|^qvd-trt\[([\w,-]+)\]$")


def all_commands() -> list[Command]:
    return [
        command
        for path in DOCUMENTS
        if path.exists()
        for command in commands_of(path.relative_to(ROOT).as_posix(), path.read_text())
    ]


def own_commands() -> dict[str, str]:
    return {
        entry.name: entry.module
        for entry in distribution("qvd-trt").entry_points
        if entry.group == "console_scripts"
    }


COMMANDS = all_commands()


def test_readme_shows_the_main_command() -> None:
    assert any(c.document == "README.md" and c.argv[0] == "qvd-export" for c in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.argv[0].startswith("qvd-")], ids=str)
def test_command_is_accepted_by_its_parser(command: Command) -> None:
    module = importlib.import_module(own_commands()[command.argv[0]])
    parser = module.build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    if {"-h", "--help", "--version"}.isdisjoint(command.argv):
        parser.parse_args(command.argv[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "pip" in c.argv[:3]], ids=str)
def test_installed_extras_exist(command: Command) -> None:
    known = set(distribution("qvd-trt").metadata.get_all("Provides-Extra") or [])
    for word in command.argv:
        found = EXTRAS.search(word)
        if found:
            assert set((found[1] or found[2]).split(",")) <= known


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_files_of_the_repository_exist(command: Command) -> None:
    for word in command.argv:
        if word.startswith(("examples/", "tests/", "docs/", "benchmarks/")):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_imports_of_python_blocks_exist(document: Path) -> None:
    for block in blocks(document.read_text(), {"python", "py"}):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qvd_trt"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_commands_are_found_in_shell_blocks() -> None:
    text = (
        "```console\n$ cd x && qvd-export m.onnx \\\n    --bits w8a8  # note\nits | output\n```\n"
        "1. In a list:\n\n   ```bash\n   pip install -e '.[test,dev]'\n"
        "   qvd-export a; qvd-export 'b c' | tee log\n   ```\n"
        "```python\nqvd-export not this\n```\n"
    )
    assert [c.argv for c in commands_of("t", text)] == [
        ("cd", "x"),
        ("qvd-export", "m.onnx", "--bits", "w8a8"),
        ("pip", "install", "-e", ".[test,dev]"),
        ("qvd-export", "a"),
        ("qvd-export", "b c"),
        ("tee", "log"),
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_is_too_long(document: Path) -> None:
    lines = document.read_text().splitlines()
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


def test_files_that_documents_name_exist() -> None:
    """A name such as `export/apply_plan.py` or `qvd.py` is that of a file of the repository."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    names = {path.rpartition("/")[2] for path in tracked}
    for document in DOCUMENTS:
        for word in set(SOURCE_NAME.findall(document.read_text())) - READERS_OWN:
            known = word in names if "/" not in word else any(f.endswith(word) for f in tracked)
            assert known, f"{document.name}: {word}"
