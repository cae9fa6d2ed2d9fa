"""Texts to measure on: plain files, and .jsonl files of question and answer, prompt or text; either may be gzipped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checks, json_lines
from ._core import ArgumentError
from .model import Model


@dataclass(frozen=True)
class Text:
    """Token ids to measure on, and where they come from."""

    name: str
    tokens: tuple[int, ...]
    skipped: int = 0  # tokens of the source left out before them, a bos token apart

    @classmethod
    def of(cls, model: Model, name: str, text: str, skip: int = 0) -> Text:
        """A text as the model's tokens, without the first `skip` of them; a bos token stays.

        What looks like a control token is read as plain text. Raises ModelError for a model without a tokenizer.
        """
        skip = checks.integer(skip, "skip", 0, 2**62, "0 or more tokens")
        tokens = model.tokenize(text, special=False)
        begin = 1 if model.info.add_bos else 0
        return cls(name, tuple(tokens[:begin] + tokens[begin + skip :]), skip)


def read(path: Path) -> str:
    """A file's text. Of a .jsonl file, what _piece() makes of each object.

    Raises FileError, and ArgumentError for an object without a known field.
    """
    text = json_lines.read_text(path)
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return text
    return "".join(_pieces(path.name, text))


def _pieces(name: str, text: str) -> Iterable[str]:
    for number, found in json_lines.parse(name, text):
        piece = _piece(found)
        if piece is None:
            accepted = "an object with the texts 'question' and 'answer', 'prompt', or 'text'"
            raise ArgumentError(f"{name}, line {number}, is {json.dumps(found)[:80]!r}; accepted: {accepted}")
        yield piece


def _piece(found: Any) -> str | None:
    if not isinstance(found, dict):
        return None
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    if "question" in texts and "answer" in texts:
        return f"Question: {texts['question']}\nLet's think step by step\n{texts['answer']}\n\n"
    text = texts.get("prompt", texts.get("text"))
    return None if text is None else f"{text}\n\n"
