"""``--recipe``: a command's arguments from a TOML file."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qvd_trt.export.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string in quotes",
}


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line, completed by the recipe that it names.

    Whatever the command line gives replaces what the recipe gives, lists as a whole. A switch that
    the recipe turns on cannot be turned off.

    Args:
        parser: The command's; left as it is.
        arguments: The command line, or None for that of the process.

    Raises:
        UserError: There are two recipes, or the one cannot be read, or has an unknown key or a
            value of another type.
        SystemExit: As argparse raises it.
    """
    recipe = _find_recipe(arguments)
    if recipe is None:
        options = parser.parse_args(arguments)
        _refuse_odd_paths(options)
        return options
    actions = {_key(action): action for action in parser._actions if _may_be_in_recipe(action)}
    defaults = {action.dest: action.default for action in actions.values()}
    values = _read_values(recipe, actions)
    options = argparse.Namespace(**{**defaults, **values, **_given(parser, arguments)})
    missing = [
        str(action.metavar or action.dest)
        for action in actions.values()
        if not action.option_strings and getattr(options, action.dest) is None
    ]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    _refuse_odd_paths(options)
    return options


def _refuse_odd_paths(options: argparse.Namespace) -> None:
    """Refuse file names that are no text: JSON, ONNX and ONNX Runtime hold only UTF-8."""
    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, (Path, str)):
                continue
            try:
                str(path).encode()
            except UnicodeEncodeError:
                shown = str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
                raise UserError(
                    f"{name}: {shown} is not UTF-8, which files and reports need; rename it"
                ) from None


def _find_recipe(arguments: Sequence[str] | None) -> Path | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--recipe", type=Path, action="append", default=[])
    try:
        recipes: list[Path] = finder.parse_known_args(arguments)[0].recipe
    except argparse.ArgumentError:
        return None  # The command's own parser says what is wrong.
    if len(recipes) > 1:
        named = " and ".join(map(str, recipes))
        raise UserError(f"--recipe is given twice, {named}; put the arguments of both into one")
    return recipes[0] if recipes else None


def _given(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> Mapping[str, object]:
    """What the command line itself gives: no defaults, and no positional argument required."""
    lenient = copy.deepcopy(parser)
    for action in lenient._actions:
        if action.option_strings:
            action.default = argparse.SUPPRESS
        else:
            action.nargs = "?"
    # Intermixed, as an optional positional would else be taken as absent before an option.
    given = vars(lenient.parse_intermixed_args(arguments))
    return {name: value for name, value in given.items() if value is not None}


def _may_be_in_recipe(action: argparse.Action) -> bool:
    return action.default is not argparse.SUPPRESS and action.dest != "recipe"


def _key(action: argparse.Action) -> str:
    long = [name for name in action.option_strings if name.startswith("--")]
    return (long[0] if long else action.dest).lstrip("-").replace("_", "-")


def _read_values(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, object]:
    """The recipe's values by argparse's names, converted as argparse does."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--recipe {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--recipe {path} is no TOML file: {error}") from error
    values: dict[str, object] = {}
    for name, raw in content.items():
        action = _find_action(path, name, actions)
        if action.dest in values:
            raise UserError(f"{path}: {name!r} is given twice, with - and with _; keep one")
        value = _convert(f"{path}: {name}", action, raw)
        if value is not None:
            values[action.dest] = value
    return values


def _find_action(path: Path, name: str, actions: Mapping[str, argparse.Action]) -> argparse.Action:
    key = name.replace("_", "-")
    if key in actions:
        return actions[key]
    close = get_close_matches(key, actions, n=1)
    mend = f"did you mean {close[0]!r}?" if close else "use the long names that --help lists"
    raise UserError(f"{path}: {name!r} is no argument that a recipe can give; {mend}")


def _convert(where: str, action: argparse.Action, raw: Any) -> object:
    """A TOML value as argparse would give it; None where it means that it was not given."""
    if isinstance(action.default, list):
        entries = raw if isinstance(raw, list) else [raw]
        if not entries:
            raise UserError(f"{where} is empty; name something or leave it out")
        each = f"{where}: an entry" if entries is raw else where
        return [_convert_one(each, action, entry) for entry in entries]
    if action.nargs == 0:
        return _require(where, raw, bool)
    if action.nargs == "?" and isinstance(raw, bool):  # An option whose value may be left out.
        return action.const if raw else None
    return _convert_one(where, action, raw)


def _convert_one(where: str, action: argparse.Action, raw: Any) -> object:
    kind: type = str
    if action.type is int or action.type is float:
        kind = action.type
    if kind is float and type(raw) is int:
        raw = float(str(raw))  # Not float(raw), which overflows where a float would be inf.
    _require(where, raw, kind)
    value = Path(raw) if action.type is Path else raw
    if isinstance(raw, str) and "\0" in raw:
        raise UserError(f"{where} holds a NUL character; leave it out")
    if action.choices is not None and value not in action.choices:
        names = ", ".join(map(str, action.choices))
        raise UserError(f"{where}: {value!r} is unknown; use one of {names}")
    return value


def _require(where: str, raw: object, kind: type) -> object:
    if type(raw) is not kind:
        raise UserError(f"{where} must be {_WANTED[kind]}, not {_shown(raw)}")
    return raw


def _shown(raw: object) -> str:
    if isinstance(raw, list):
        return "a list"
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, str):
        return repr(raw)
    return str(raw).lower() if isinstance(raw, bool) else str(raw)
