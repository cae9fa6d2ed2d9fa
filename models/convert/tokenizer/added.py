"""Added tokens: tokenizer.json has them, or tokenizer_config.json, or added_tokens.json of older checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..._core import ModelError
from ..checkpoint import member
from ..config import MOST, Config, read_object, shown


@dataclass(frozen=True)
class AddedToken:
    id: int
    content: str
    special: bool  # a control token; else text that is always one token
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_added(folder: Path, spec: Config, config: Config) -> list[AddedToken]:
    """By id; of two sources for one id the first of those above counts.

    spec: tokenizer.json, empty if there is none.
    """
    found: dict[int, AddedToken] = {}
    for token in (*_of_tokenizer_json(spec), *_of_config(config), *_of_old_file(folder)):
        known = found.setdefault(token.id, token)
        if known.content != token.content:
            raise ModelError(
                f"{folder} gives the id {token.id} to the added tokens {shown(known.content)} and"
                f" {shown(token.content)}; accepted: one"
            )
    return [found[i] for i in sorted(found)]


def _of_tokenizer_json(spec: Config) -> Iterator[AddedToken]:
    for entry in spec.objects("added_tokens"):
        yield _token(entry.integer("id", 0, MOST), entry)


def _of_config(config: Config) -> Iterator[AddedToken]:
    table = config.child("added_tokens_decoder")
    for key in table.keys():  # noqa: SIM118 (no mapping)
        if not key.isascii() or not key.isdigit() or len(key) > 8:
            raise ModelError(f"{config.name('added_tokens_decoder')} has the key {shown(key)}; accepted: token ids")
        yield _token(int(key), table.child(key))


def _of_old_file(folder: Path) -> Iterator[AddedToken]:
    """{token: id}, without a word on what is special: what looks like markup is taken for a control token."""
    if not (folder / "added_tokens.json").exists():
        return
    table = read_object(member(folder, "added_tokens.json"))
    for content in table.keys():  # noqa: SIM118 (no mapping)
        yield AddedToken(
            table.integer(content, 0, MOST), content, content.startswith(("<", "[")) and content.endswith((">", "]"))
        )


def _token(number: int, entry: Config) -> AddedToken:
    return AddedToken(
        number,
        entry.text("content"),
        entry.flag("special"),
        entry.flag("lstrip"),
        entry.flag("rstrip"),
        entry.flag("single_word"),
    )
