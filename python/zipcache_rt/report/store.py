"""Results as lines of JSON, each under a key that says all it depends on: what is there is not measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._core import FileError

Key = dict[str, Any]


class Store:
    """A file that grows line by line. A last line that was cut off is dropped, and that result is made again.

    Raises FileError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        if path.exists():
            self._read()

    def find(self, key: Key) -> Any:
        """What was added under this key, or None."""
        return self._values.get(_text(key))

    def add(self, key: Key, value: Any) -> None:
        """It is in the file before this returns."""
        line = json.dumps({"key": key, "value": value})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._values[_text(key)] = json.loads(line)["value"]

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self._path, len(whole))
        except OSError as error:
            raise FileError(f"cannot read {self._path}: {error.strerror or error}") from error
        self._values = dict(self._entry(line, number) for number, line in enumerate(whole.splitlines(), 1))

    def _entry(self, line: bytes, number: int) -> tuple[str, Any]:
        try:
            found = json.loads(line)
            return _text(found["key"]), found["value"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise FileError(f"{self._path}, line {number}, is no result of a report: {error}") from error


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True)
