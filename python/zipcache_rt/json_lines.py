"""Text files and files of JSON lines, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._core import FileError


def read_text(path: Path) -> str:
    """Raises FileError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the text {path}: {error}") from error


def parse(name: str, text: str) -> Iterator[tuple[int, Any]]:
    """(number of the line, what it holds), empty lines left out. name: the file's, for FileError."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileError(f"{name}, line {number}, is no JSON: {error}") from error
