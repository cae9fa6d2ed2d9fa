"""JSON files of a checkpoint, read key by key: every value is of the type and in the range that was asked for, or a
ModelError says what stood there. Such files come from strangers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from .._core import FileError, ModelError

LARGEST_FILE = 512 << 20  # bytes
MOST = 1 << 24  # generous limit of a dimension: what exceeds it is damaged


def read_json(path: Path) -> Any:
    """A JSON file's value. NaN and Infinity, which JSON does not have, are refused like other nonsense."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FileError(f"{path} has {path.stat().st_size:,} bytes; accepted: up to {LARGEST_FILE:,}")
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON file: {str(error)[:200]}") from error


def read_object(path: Path) -> Config:
    """A JSON file that holds an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path} holds {shown(value)}; accepted: an object")
    return Config(value, path.name)


def shown(value: Any) -> str:
    text = type(value).__name__ if isinstance(value, int) and value.bit_length() > 256 else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class Config:
    """One object of a JSON file.

    Defaults are those of transformers' configuration class, for keys that are absent; null is a value: none of it.
    """

    def __init__(
        self, values: Mapping[str, Any], file: str, prefix: str = "", defaults: Mapping[str, Any] = {}
    ) -> None:
        self._values, self._file, self._prefix, self._defaults = values, file, prefix, defaults

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        return Config(self._values, self._file, self._prefix, defaults)

    def get(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._values[key] if key in self._values else self._defaults.get(key)

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    def first(self, *keys: str) -> str:
        """The first of these keys that the file has, else the last one."""
        return next((key for key in keys if key in self._values), keys[-1])

    def name(self, key: str) -> str:
        return f"{self._prefix}{key} in {self._file}"

    def refuse(self, key: str, accepted: str) -> NoReturn:
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self._file} has no {self._prefix}{key}; accepted: {accepted}")
        raise ModelError(f"{self.name(key)} is {shown(value)}; accepted: {accepted}")

    def integer(self, key: str, least: int = 1, most: int = MOST) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, f"an integer of {least} to {most}")
        return value

    def number(self, key: str, least: float = 0, most: float = 1e12) -> float:
        value = self.get(key)
        if not _is_number(value) or not least <= value <= most:
            self.refuse(key, f"a number of {least:g} to {most:g}")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_number(x) and 0 < x <= 1e12 for x in value)
        ):
            self.refuse(key, f"{count} numbers above 0")
        return [float(x) for x in value]

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.refuse(key, "text")
        return str(value)

    def texts(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            self.refuse(key, "a list of texts")
        return list(value)

    def objects(self, key: str) -> list[Config]:
        """A list of objects, empty when absent."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            self.refuse(key, "a list of objects")
        return [Config(x, self._file, f"{self._prefix}{key}[{i}].") for i, x in enumerate(value)]

    def child(self, key: str) -> Config:
        """An object inside this one, empty when absent."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Config(value, self._file, f"{self._prefix}{key}.")

    def only(self, key: str, accepted: Callable[[Any], bool], what: str) -> None:
        """Refuses every value that GGUF has no place for. None is asked like any other."""
        if not accepted(self.get(key)):
            self.refuse(key, what)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False
