"""What a case came to, and the file of JSON lines that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .._core import FileError
from .case import Json, Metric


@dataclass(frozen=True)
class Record:
    """One case under one policy: a line of a results file."""

    task: str
    metric: Metric
    case: str  # Case.id
    group: str  # Case.group
    policy: str  # as KvOptions.parse() takes it, in its shortest form
    model: str  # the file's name
    model_sha256: str  # of the file
    device: str  # "cpu", "cuda:0", ...
    options: Mapping[str, Json]  # of the task and of the run, as far as they may change a reply
    prompt_sha256: str  # of the ids of prompt and continuation, as little-endian int32
    prompt_tokens: int
    expected: Json
    reply: str
    reply_tokens: int  # of a continuation: its length
    finish: str  # "stop" or "length"; of a continuation: "given"
    score: float | None  # 0..1; of a continuation: mean natural log of its tokens' probabilities. None: not known
    prefill_seconds: float  # of the whole prompt, also where its beginning was shared
    decode_seconds: float
    kv_bytes: int  # after the reply, all that is allocated
    kv_bits: float  # kv_bytes * 8 / elements
    kv_ratio: float  # 16 / kv_bits
    compressed_bits: float  # an element of compressed tokens; 0 when there are none
    threads: int
    jobs: int  # how many cases ran at once: what the seconds must be read with
    version: str  # of zipcache-rt
    shared_tokens: int = 0  # of the prompt, prefilled and compressed once for all cases
    tops: tuple[int, ...] = field(default=())  # of a continuation: the most probable token at each of its places

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for what need not be run twice."""
        options = json.dumps(self.options, sort_keys=True)
        made = (self.task, self.case, self.policy, self.model_sha256, self.device, options, self.prompt_sha256)
        return made

    @classmethod
    def of(cls, found: Json) -> Record:
        """From a line's JSON; fields of later versions are ignored. Raises FileError."""
        if not isinstance(found, dict):
            raise FileError(f"{str(found)[:80]!r} is no record; accepted: objects as this tool writes them")
        known = {item.name for item in fields(cls)}
        try:
            record = cls(**{name: value for name, value in found.items() if name in known})
        except TypeError as error:
            raise FileError(f"a record lacks fields: {error}") from error
        return record


def load(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a results file, a later one in place of an earlier one with the same key.

    A last line that was cut off is left out. Raises FileError for what cannot be read or is no record.
    """
    return list(Results(Path(path), writing=False).records)


class Results:
    """Records by key, kept in a file as they come. path None: in memory only.

    writing: the file may be missing, and a last line that was cut off is removed from it.
    """

    def __init__(self, path: Path | None, *, writing: bool = True) -> None: ...

    @property
    def records(self) -> Iterable[Record]: ...

    def find(self, key: tuple[str, ...]) -> Record | None: ...

    def add(self, record: Record) -> None:
        """Written before this returns. Raises FileError."""
