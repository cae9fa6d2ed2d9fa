"""What a case came to, and the file of JSON lines that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import get_args

from .. import checks
from .._core import FileError
from .case import Json, Metric

Key = tuple[str, ...]
BEGIN = b'{"task": "'  # of a line
REFERENCE = "f16"  # the policy that the others are compared with


@dataclass(frozen=True)
class Record:
    """One case under one policy: a line of a results file."""

    task: str
    metric: Metric
    model: str  # the file's name
    model_sha256: str  # of the file
    device: str  # ModelInfo.runs_on: "cpu", "cuda:0", ...
    options: Mapping[str, Json]  # of the task and of the run, as far as they may change a reply
    version: str  # of zipcache-rt
    jobs: int  # how many cases ran at once: what the seconds must be read with
    threads: int  # of each of them
    case: str = ""  # Case.id
    group: str = ""  # Case.group
    policy: str = ""  # as KvOptions.parse() takes it, in its shortest form
    prompt_sha256: str = ""  # of the ids of prompt and continuation, as little-endian int32
    prompt_tokens: int = 0
    shared_tokens: int = 0  # of the prompt, prefilled and compressed once for all cases
    expected: Json = None
    reply: str = ""
    reply_tokens: int = 0  # of a continuation: its length
    finish: str = ""  # "stop" or "length"; of a continuation: "given"
    score: float | None = None  # 0..1, None: not known; of a continuation: mean natural log of its probabilities
    tops: tuple[int, ...] = ()  # of a continuation: the most probable token at each of its places
    prefill_seconds: float = 0.0  # of the whole prompt, also where its beginning was shared
    decode_seconds: float = 0.0
    decode_tokens: int = 0  # which took decode_seconds
    kv_bytes: int = 0  # after the reply, all that is allocated
    kv_bits: float = 0.0  # kv_bytes * 8 / elements
    kv_ratio: float = 0.0  # 16 / kv_bits
    compressed_bits: float = 0.0  # an element of compressed tokens; 0 when there are none

    @property
    def key(self) -> Key:
        """Equal for what need not be run twice."""
        options = json.dumps(self.options, sort_keys=True)
        return (self.task, self.case, self.policy, self.model_sha256, self.device, options, self.prompt_sha256)

    @classmethod
    def of(cls, found: Json) -> Record:
        """From a line's JSON, which must hold all fields; those of later versions are ignored. Raises FileError."""
        if not isinstance(found, dict):
            raise FileError(f"{str(found)[:80]!r} is no record; accepted: objects as this tool writes them")
        values = {item.name: found.get(item.name, ...) for item in fields(cls)}
        for item in fields(cls):
            if (value := values[item.name]) is ... or not isinstance(value, _KINDS[str(item.type)]):
                shown = "missing" if value is ... else repr(value)[:80]
                raise FileError(f"{item.name!r} is {shown}; accepted: {item.type}")
        if values["metric"] not in get_args(Metric):
            raise FileError(f"'metric' is {values['metric']!r}; accepted: {', '.join(get_args(Metric))}")
        return cls(**values | {"tops": tuple(values["tops"])})


_KINDS: dict[str, tuple[type, ...]] = {  # what JSON makes of a field's type
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, NoneType),
    "Metric": (str,),
    "Mapping[str, Json]": (dict,),
    "Json": (object,),
    "tuple[int, ...]": (list,),
}


def load(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a results file, a later one in place of an earlier one with the same key.

    A last line that was cut off is left out. Raises FileError for what cannot be read or is no record.
    """
    return list(_read(Path(checks.path(path, "path"))).records.values())


class Results:
    """Records by key, kept in a file as they come. path None: in memory only.

    A file that is there is read, and a last line that was cut off removed from it. Raises FileError.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else Path(checks.path(path, "out"))
        self._records: dict[Key, Record] = {}
        if self._path and self._path.exists():
            self._records = _repaired(self._path)
        elif self._path:
            self._write("")  # told before the work if it cannot be

    @property
    def records(self) -> list[Record]:
        return list(self._records.values())

    def find(self, key: Key) -> Record | None:
        return self._records.get(key)

    def add(self, record: Record) -> None:
        """It is in the file before this returns. Raises FileError."""
        self._write(json.dumps(asdict(record)) + "\n")
        self._records[record.key] = record

    def _write(self, text: str) -> None:
        if not self._path:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise FileError(f"cannot write the results {self._path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Found:
    records: dict[Key, Record]
    n_bytes: int  # of whole lines


def _read(path: Path) -> _Found:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read the results {path}: {error.strerror or error}") from error
    whole = data[: data.rfind(b"\n") + 1]
    torn = data[len(whole) :]
    if not torn.startswith(BEGIN[: len(torn)]):  # somebody else's file: it must not be cut
        raise FileError(f"{path.name} ends in {torn[:80]!r}, which is no result; accepted: files of this tool")
    records: dict[Key, Record] = {}
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = Record.of(json.loads(line))
        except (ValueError, RecursionError, FileError) as error:
            raise FileError(f"{path.name}, line {number}, is no result: {error}") from error
        records[record.key] = record
    return _Found(records, len(whole))


def _repaired(path: Path) -> dict[Key, Record]:
    """What the file holds once it ends in a whole line."""
    found = _read(path)
    try:
        if path.stat().st_size > found.n_bytes:
            os.truncate(path, found.n_bytes)
    except OSError as error:
        raise FileError(f"cannot repair the results {path}: {error.strerror or error}") from error
    return found.records
