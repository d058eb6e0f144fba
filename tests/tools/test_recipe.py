"""`--recipe`: the same request from a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from qvd_trt.export.errors import UserError
from qvd_trt.tools.cli import build, export, validate
from qvd_trt.tools.cli.recipe import parse_arguments
from tests.tools.command import FAST, Command

FAST_RECIPE = """\
model = "model.onnx"
sampler = "flow"
steps = 3
samples = 2
shapes = ["sample:1x16x8x8"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "r.toml"


def parse(command: ModuleType, recipe: Path, text: str, *arguments: str) -> argparse.Namespace:
    recipe.write_text(text, encoding="utf-8")
    return parse_arguments(command.build_parser(), ["--recipe", str(recipe), *arguments])


def refused(command: ModuleType, recipe: Path, text: str, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parse(command, recipe, text, *arguments)
    return str(error.value)


SAME: list[tuple[ModuleType, str, Sequence[str]]] = [
    (export, 'bits = "w6a6"', ["--bits", "w6a6"]),
    (export, 'output = "x.onnx"', ["-o", "x.onnx"]),
    (export, 'calib = ["a", "b"]', ["--calib", "a", "b"]),
    (export, 'calib = "a"', ["--calib", "a"]),
    (export, 'keep = ["*attn*", "-1"]', ["--keep", "*attn*", "--keep=-1"]),
    (export, 'keep = "conv"', ["--keep", "conv"]),
    (export, "json = true\nverbose = true", ["--json", "-v"]),
    (export, "json = false", []),
    (export, "steps = 30\nseed = 0x10", ["--steps", "30", "--seed", "16"]),
    (export, "seed = -1", ["--seed=-1"]),
    (export, "min-sqnr = 25", ["--min-sqnr", "25"]),
    (export, "min_sqnr = -2.5", ["--min-sqnr=-2.5"]),
    (export, "shift = inf", ["--shift", "inf"]),
    (export, f"shift = {10**400}", ["--shift", f"{10**400}"]),
    (export, 'temporal-timesteps = "training"', ["--temporal-timesteps", "training"]),
    (build, "plugin = true", ["--plugin", "--json", "--json"]),
    (build, 'plugin = "lib.so"', ["--plugin", "lib.so"]),
    (build, "plugin = false", []),
    (build, "optimization-level = 5", ["--optimization-level", "5"]),
    (build, 'shapes = ["a:1x2", "b:1"]', ["--shapes", "a:1x2", "--shapes", "b:1"]),
    (build, "no-cublas = true", ["--no-cublas"]),
    (validate, 'engine-outputs = ["a.json"]', ["--engine-outputs", "a.json"]),
    (validate, "max-implementation-error = 0.01", ["--max-implementation-error", "0.01"]),
]


@pytest.mark.parametrize(
    ("command", "text", "arguments"), SAME, ids=[f"{c.NAME} {t[:40]}" for c, t, _ in SAME]
)
def test_is_as_on_the_command_line(
    command: ModuleType, text: str, arguments: list[str], recipe: Path
) -> None:
    models = ["f.onnx", "q.onnx"] if command is validate else ["f.onnx"]
    names = ["float_model", "qdq-model"] if command is validate else ["model"]
    text += "".join(f'\n{name} = "{path}"' for name, path in zip(names, models, strict=True))
    if arguments.count("--json") == 2:  # Only ends a `--plugin` without a value.
        text += "\njson = true"
    options = vars(parse(command, recipe, text))
    assert options.pop("recipe") == recipe
    expected = vars(command.build_parser().parse_args([*models, *arguments]))
    assert expected.pop("recipe") is None
    assert options == expected
    assert {name: type(value) for name, value in options.items()} == {
        name: type(value) for name, value in expected.items()
    }


class TestPrecedence:
    def test_value_is_replaced(self, recipe: Path) -> None:
        text = 'model = "a.onnx"\nbits = "w6a6"\nsteps = 3'
        options = parse(export, recipe, text, "b.onnx", "--bits", "w8a8")
        assert (options.model, options.bits, options.steps) == (Path("b.onnx"), "w8a8", 3)

    def test_value_is_replaced_by_the_default(self, recipe: Path) -> None:
        assert parse(export, recipe, "steps = 3", "m.onnx", "--steps", "20").steps == 20

    @pytest.mark.parametrize(
        ("command", "text", "arguments", "name", "expected"),
        [
            (export, 'keep = ["a", "b"]', ["--keep", "c"], "keep", ["c"]),
            (export, 'keep = ["a"]', ["--keep", "b", "--keep", "c"], "keep", ["b", "c"]),
            (export, 'calib = ["a", "b"]', ["--calib", "c"], "calib", [Path("c")]),
            (build, 'shapes = ["a:1"]', ["--shapes", "b:1", "c:1"], "shapes", ["b:1", "c:1"]),
        ],
    )
    def test_list_is_replaced_as_a_whole(
        self,
        command: ModuleType,
        text: str,
        arguments: list[str],
        name: str,
        expected: list[object],
        recipe: Path,
    ) -> None:
        options = parse(command, recipe, text, "m.onnx", *arguments)
        assert getattr(options, name) == expected

    def test_option_may_stand_anywhere(self, recipe: Path) -> None:
        recipe.write_text('calib = ["a"]\nfloat_model = "x"\nqdq_model = "y"')
        for arguments in (
            ["f", "q", "--recipe", str(recipe), "--json"],
            ["f", f"--recipe={recipe}", "--json", "q"],
            ["--json", "f", "q", "--recipe", str(recipe)],
        ):
            options = parse_arguments(validate.build_parser(), arguments)
            assert (options.float_model, options.qdq_model) == (Path("f"), Path("q"))
            assert options.json
            assert options.calib == [Path("a")]

    def test_parser_is_left_as_it_is(self, recipe: Path) -> None:
        parser = export.build_parser()
        before = parser.format_help()
        recipe.write_text('model = "a"\nkeep = ["x"]')
        for _ in range(2):
            options = parse_arguments(parser, ["--recipe", str(recipe), "--keep", "y"])
            assert options.keep == ["y"]
        assert parser.format_help() == before
        assert parser.parse_args(["m"]).keep == []


REFUSED = [
    (export, 'bitz = "w8a8"', "'bitz' is no argument that a recipe can give; did you mean 'bits'?"),
    (export, "min_sqn = 2", "did you mean 'min-sqnr'?"),
    (export, "xyzzy = 2", "use the long names that --help lists"),
    (export, 'recipe = "other.toml"', "'recipe' is no argument"),
    (export, "help = true", "'help' is no argument"),
    (export, "version = true", "'version' is no argument"),
    (export, "v = true", "'v' is no argument"),
    (validate, 'float = "f.onnx"', "did you mean 'float-model'?"),
    (export, "[bits]\nw = 8", "bits must be a string in quotes, not a table"),
    (export, "steps = 2.5", "steps must be a whole number, not 2.5"),
    (export, "steps = true", "steps must be a whole number, not true"),
    (export, 'steps = "3"', "steps must be a whole number, not '3'"),
    (export, 'min-sqnr = "3"', "min-sqnr must be a number, not '3'"),
    (export, "bits = 8", "bits must be a string in quotes, not 8"),
    (export, "bits = ['w8a8']", "bits must be a string in quotes, not a list"),
    (export, "bits = 2020-01-01", "bits must be a string in quotes, not 2020-01-01"),
    (export, "json = 1", "json must be true or false, not 1"),
    (export, 'json = "yes"', "json must be true or false, not 'yes'"),
    (export, "calib = [1]", "calib: an entry must be a string in quotes, not 1"),
    (export, "calib = [['a']]", "calib: an entry must be a string in quotes, not a list"),
    (export, "keep = 1", "keep must be a string in quotes, not 1"),
    (export, "calib = []", "calib is empty; name something or leave it out"),
    (export, 'stats = "a\\u0000b"', "stats holds a NUL character"),
    (export, 'provider = "tpu"', "provider: 'tpu' is unknown; use one of cpu, cuda"),
    (build, "optimization-level = 6", "use one of 0, 1, 2, 3, 4, 5"),
    (build, "plugin = 1", "plugin must be a string in quotes, not 1"),
    (export, "min-sqnr = 1\nmin_sqnr = 1", "is given twice, with - and with _; keep one"),
]


@pytest.mark.parametrize(("command", "text", "mend"), REFUSED, ids=[t for _, t, _ in REFUSED])
def test_refused(command: ModuleType, text: str, mend: str, recipe: Path) -> None:
    line = refused(command, recipe, text)
    assert mend in line
    assert line.startswith(f"{recipe}: ")


@pytest.mark.parametrize("content", [b"bits = ", b"\xff", b"a = 1\na = 2", b"a = " + b"[" * 9999])
def test_no_toml(content: bytes, recipe: Path) -> None:
    recipe.write_bytes(content)
    with pytest.raises(UserError, match=r"r\.toml is no TOML file"):
        parse_arguments(export.build_parser(), ["--recipe", str(recipe)])


def test_usage_errors(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments, text in (
        (export, [], "the following arguments are required: model"),
        (validate, ["f"], "the following arguments are required: QDQ.onnx"),
        (export, ["m", "--nonsense"], "unrecognized arguments: --nonsense"),
        (export, ["m", "n"], "unrecognized arguments: n"),
        (export, ["m", "--steps", "many"], "invalid int value: 'many'"),
        (export, ["m", "--recipe"], "--recipe: expected one argument"),
    ):
        with pytest.raises(SystemExit) as leaving:
            parse(command, recipe, "", *arguments)
        assert leaving.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{command.NAME}: error: ")
        assert text in err
        assert err.endswith(f"; see {command.NAME} --help\n")
        assert err.count("\n") == 1


def test_two_recipes(command: Command) -> None:
    for name in ("a.toml", "b.toml"):
        (command.folder / name).write_text(FAST_RECIPE)
    line = command.refused("model.onnx", "--recipe", "a.toml", "--json", "--recipe=b.toml")
    assert line == "--recipe is given twice, a.toml and b.toml; put the arguments of both into one"
    command.done("model.onnx", "--recipe", "a.toml")


class TestWholeRuns:
    def test_gives_the_same_files(self, command: Command) -> None:
        command.done("model.onnx", *FAST, "--keep", "linear", "-o", "a.onnx")
        (command.folder / "r.toml").write_text(
            FAST_RECIPE + 'keep = ["linear"]\noutput = "b.onnx"\njson = true\n'
        )
        report = command.done("--recipe", "r.toml").json()
        assert report["output"] == "b.onnx"
        for suffix in (".onnx", ".plan.json"):
            first = (command.folder / f"a{suffix}").read_bytes()
            assert (command.folder / f"b{suffix}").read_bytes() == first

    def test_paths_are_relative_to_the_working_directory(self, command: Command) -> None:
        (command.folder / "sub").mkdir()
        (command.folder / "sub" / "r.toml").write_text(FAST_RECIPE)
        result = command.done("--recipe", "sub/r.toml")
        assert "model.w8a8.onnx" in result.written

    @pytest.mark.parametrize(
        ("text", "mend"),
        [
            ('algorithm = "magic"', "--algorithm: 'magic' is unknown; use one of qvd, shift"),
            ("guidance = nan", "--guidance: nan is not supported"),
            ('bits = "w8a8"\nplan = "p"', "--bits and --plan exclude each other"),
            ('modell = "m"', "r.toml: 'modell' is no argument that a recipe can give"),
            ('bits = "w8a8', "--recipe r.toml is no TOML file"),
        ],
    )
    def test_has_the_same_checks(self, command: Command, text: str, mend: str) -> None:
        (command.folder / "r.toml").write_text(f"{FAST_RECIPE}{text}\n")
        assert mend in command.refused("--recipe", "r.toml")

    def test_absent(self, command: Command) -> None:
        assert "--recipe r.toml cannot be read" in command.refused("--recipe", "r.toml")
        assert "--recipe . cannot be read" in command.refused("--recipe", ".")
