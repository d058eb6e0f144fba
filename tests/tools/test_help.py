"""What the commands say of themselves: one shape, the registries' names, the version."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable
from importlib.metadata import version
from types import ModuleType
from typing import get_args

import pytest

from qvd_trt.calibrators.algorithms.registry import ALGORITHMS
from qvd_trt.calibrators.sources.samplers import (
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    SamplerOptions,
    build_sampler,
)
from qvd_trt.calibrators.temporal.codebooks import CODEBOOKS
from qvd_trt.export.errors import UserError
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm
from qvd_trt.tools.cli import build, export, validate
from qvd_trt.tools.engine.build_plan import EngineFloat
from qvd_trt.tools.engine.tensorrt_install import Runtime

COMMANDS = (export, build, validate)
SHAPE = ("build_parser", "read_request", "run", "main")
SAMPLING = "qvd_trt.tools.cli.sampling"
EXPORT = "qvd_trt.tools.cli.export"


def action(command: ModuleType, option: str) -> argparse.Action:
    """The option of a command's parser."""
    parser: argparse.ArgumentParser = command.build_parser()
    return next(entry for entry in parser._actions if option in entry.option_strings)


def help_of(command: ModuleType, option: str) -> str:
    return action(command, option).help or ""


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
class TestEveryCommand:
    def test_has_the_same_functions_in_the_same_order(self, command: ModuleType) -> None:
        lines = {name: inspect.getsourcelines(getattr(command, name))[1] for name in SHAPE}
        assert sorted(lines, key=lines.__getitem__) == list(SHAPE)

    def test_has_the_common_options(self, command: ModuleType) -> None:
        parser: argparse.ArgumentParser = command.build_parser()
        options = {name for entry in parser._actions for name in entry.option_strings}
        assert options >= {"-h", "--version", "--recipe", "--json", "-v", "--verbose"}
        assert parser.prog == command.NAME
        assert not parser.allow_abbrev
        assert f"\n  {command.NAME} " in (parser.epilog or "")

    def test_formats_its_help(self, command: ModuleType) -> None:
        text = command.build_parser().format_help()
        assert "%" not in text.replace("0.01 is 1 %", "")

    def test_prints_its_version(
        self, command: ModuleType, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as leaving:
            command.main(["--version"])
        assert leaving.value.code == 0
        assert capsys.readouterr().out == f"{command.NAME} {version('qvd-trt')}\n"

    def test_examples_are_accepted(self, command: ModuleType) -> None:
        parser: argparse.ArgumentParser = command.build_parser()
        examples = [line.split()[1:] for line in command.EXAMPLES.splitlines()]
        for words in examples:
            if "--recipe" not in words:
                parser.parse_args(words)
        assert sum("--recipe" in words for words in examples) == 1


def test_version_of_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("qvd_trt.tools.cli.common.version", missing)
    assert export.main(["--version"]) == 2
    assert "is not installed; install it with pip" in capsys.readouterr().err


NAMES: list[tuple[ModuleType, str, Iterable[str]]] = [
    (export, "--algorithm", ALGORITHMS),
    (export, "--temporal", (*CODEBOOKS, "float")),
    (export, "--target", TARGETS),
    (export, "--dtype", [entry.value for entry in FloatType]),
    (export, "--htdq", [entry.value for entry in HtdqForm]),
    *(
        (command, option, names)
        for command in (export, validate)
        for option, names in (
            ("--sampler", SAMPLERS),
            ("--schedule", SCHEDULES),
            ("--spacing", SPACINGS),
        )
    ),
]


@pytest.mark.parametrize(
    ("command", "option", "names"), NAMES, ids=[f"{c.NAME} {o}" for c, o, _ in NAMES]
)
def test_help_names_the_whole_registry(
    command: ModuleType, option: str, names: Iterable[str]
) -> None:
    assert set(names) <= words(help_of(command, option))


REGISTRIES = [
    (EXPORT, "ALGORITHMS", "--algorithm", ALGORITHMS),
    (EXPORT, "CODEBOOKS", "--temporal", CODEBOOKS),
    (EXPORT, "TARGETS", "--target", TARGETS),
    (SAMPLING, "SAMPLERS", "--sampler", SAMPLERS),
]


@pytest.mark.parametrize(("module", "name", "option", "registry"), REGISTRIES)
def test_new_entry_is_in_the_help(
    module: str,
    name: str,
    option: str,
    registry: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of it is written by hand."""
    (first, *_) = registry.values()
    monkeypatch.setattr(f"{module}.{name}", {**registry, "brand-new": first})
    assert "brand-new" in words(help_of(export, option))


@pytest.mark.parametrize(
    ("name", "option"), [("SCHEDULES", "--schedule"), ("SPACINGS", "--spacing")]
)
def test_new_name_is_in_the_help(name: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SAMPLING}.{name}", ("brand-new",))
    assert "brand-new" in words(help_of(export, option))


@pytest.mark.parametrize("option", ["--dtype", "--htdq"])
def test_help_tells_the_default_of_every_target(option: str) -> None:
    default = help_of(export, option).partition("(default: ")[2]
    for name, target in TARGETS.items():
        value = (target.float_types[0] if option == "--dtype" else target.htdq_form).value
        assert re.search(rf"\b{value} for [\w ]*\b{name}\b", default), name


def test_predictions_and_aliases_of_the_help_are_taken() -> None:
    """These names have no registry."""
    assert {"epsilon", "v_prediction", "sample"} <= words(help_of(export, "--prediction"))
    for prediction in ("epsilon", "v_prediction", "sample"):
        build_sampler("ddim", SamplerOptions(prediction=prediction))
    assert "cosine" in words(help_of(export, "--schedule"))
    build_sampler("ddim", SamplerOptions(schedule="cosine"))
    with pytest.raises(UserError, match="takes velocity"):
        build_sampler("flow", SamplerOptions(prediction="epsilon"))


@pytest.mark.parametrize("command", [build, validate], ids=lambda command: command.NAME)
def test_runtimes(command: ModuleType) -> None:
    assert tuple(action(command, "--runtime").choices or ()) == get_args(Runtime)


def test_types_of_an_engine() -> None:
    assert tuple(action(build, "--dtype").choices or ()) == get_args(EngineFloat)
