"""The code blocks of a Markdown document, and the commands in its shell blocks."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

SHELL = {"console", "bash", "sh", "shell"}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One simple command: a program and its arguments."""

    document: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.argv)}"


def blocks(text: str, languages: set[str]) -> Iterator[str]:
    """The blocks in one of these languages, in order, without their indentation."""
    for _, language, body in FENCE.findall(text):
        if language in languages:
            yield textwrap.dedent(body)


def joined(text: str) -> str:
    """The text with continued shell lines in one."""
    return re.sub(r" *\\\n *", " ", text)


def shell_lines(text: str) -> Iterator[str]:
    """The lines of the shell blocks, continued ones joined, without comments.

    In a block with `$ ` prompts, the lines without one are output.
    """
    for block in blocks(text, SHELL):
        lines = joined(block).splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        yield from (line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def steps(text: str) -> list[str]:
    """What a reader would enter one after the other: the shell lines, cut at each `&&`."""
    return [step.strip() for line in shell_lines(text) for step in line.split(" && ")]


def commands_of(document: str, text: str) -> Iterator[Command]:
    """Yield the simple commands of the shell lines, wherever they stand in one."""
    for line in shell_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        argv: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                if argv:
                    yield Command(document, tuple(argv))
                argv = []
            else:
                argv.append(word)
