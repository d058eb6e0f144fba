"""Reading hand-edited JSON: every complaint names the file and the path of the field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.calibrators.errors import UserError


@dataclass(frozen=True, slots=True)
class JsonField:
    """One value of a JSON file.

    Attributes:
        value: The decoded value.
        file: Name of the file.
        path: Where the value stands, for example ``dense[3].activation.scale``; empty for the top.
    """

    value: Any
    file: str
    path: str = ""

    @classmethod
    def read(cls, path: Path) -> JsonField:
        """Decode a file.

        Raises:
            UserError: it is missing, is not JSON, holds NaN or Infinity, or has an object with
                the same key twice.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error})") from error
        try:
            value = json.loads(
                text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
            )
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path.name}: line {error.lineno}, column {error.colno}: not valid JSON "
                f"({error.msg})"
            ) from error
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path.name}: {error}") from error
        return cls(value, path.name)

    def error(self, must: str) -> UserError:
        """The error that this field ``must`` be something else."""
        where = self.path or "the file"
        found = json.dumps(self.value)
        shown = found if len(found) <= 60 else found[:57] + "..."
        return UserError(f"{self.file}: {where} {must}, found {shown}")

    def object(self, *keys: str) -> dict[str, JsonField]:
        """The fields of an object that has exactly these keys."""
        if not isinstance(self.value, dict):
            raise self.error("must be an object")
        for key in self.value:
            if key not in keys:
                close = difflib.get_close_matches(key, keys, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(keys)}"
                raise UserError(f"{self._where}has no field {key!r}; {hint}")
        for key in keys:
            if key not in self.value:
                raise UserError(f"{self._where}lacks the field {key!r}; add it")
        prefix = f"{self.path}." if self.path else ""
        return {key: JsonField(self.value[key], self.file, prefix + key) for key in keys}

    def items(self) -> Iterator[JsonField]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.error("must be an array")
        for index, item in enumerate(self.value):
            yield JsonField(item, self.file, f"{self.path}[{index}]")

    @property
    def is_null(self) -> bool:
        """Whether the value is null."""
        return self.value is None

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("must be a non-empty string")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.error(f"must be an integer from {low} to {high}")
        return self.value

    def positive(self) -> float:
        """A finite number above zero, also after rounding to float32."""
        value = self._number()
        if value is None or not value > 0:
            raise self.error("must be a positive number")
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.float32(value)
        if rounded == 0 or not np.isfinite(rounded):
            raise self.error("must be a positive number within float32")
        return value

    def measurement(self) -> float:
        """A number; ``"inf"``, ``"-inf"`` and ``"nan"`` stand for what JSON cannot write."""
        if self.value in ("inf", "-inf", "nan"):
            return float(self.value)
        value = self._number()
        if value is None:
            raise self.error('must be a number, "inf", "-inf" or "nan"')
        return value

    def vector(self, length: int | None = None) -> Float32Array:
        """A non-empty array of finite numbers, ``[length]`` float32."""
        if not isinstance(self.value, list) or not self.value:
            raise self.error("must be an array of numbers")
        if length is not None and len(self.value) != length:
            raise UserError(f"{self._where}must have {length} numbers, found {len(self.value)}")
        if any(type(number) not in (int, float) for number in self.value):
            bad = next(item for item in self.items() if type(item.value) not in (int, float))
            raise bad.error("must be a number")
        with np.errstate(over="ignore", under="ignore"):
            result = np.array([_to_float(number) for number in self.value]).astype(np.float32)
        self.refuse(~np.isfinite(result), "must be a finite number within float32")
        return result

    def positive_vector(self, length: int | None = None) -> Float32Array:
        """A non-empty array of positive numbers, ``[length]`` float32."""
        result = self.vector(length)
        self.refuse(result <= 0, "must be a positive number within float32")
        return result

    def refuse(self, bad: npt.NDArray[np.bool_], must: str) -> None:
        """Complain about the first element of an array that ``bad`` marks."""
        if bad.any():
            index = int(np.argmax(bad))
            raise JsonField(self.value[index], self.file, f"{self.path}[{index}]").error(must)

    @property
    def _where(self) -> str:
        return f"{self.file}: {self.path} " if self.path else f"{self.file}: the file "

    def _number(self) -> float | None:
        if type(self.value) not in (int, float):
            return None
        number = _to_float(self.value)
        return number if math.isfinite(number) else None


def _to_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object; keep one")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; write a finite one")
