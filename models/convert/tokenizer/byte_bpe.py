"""Byte-level BPE of a tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._core import ModelError
from ..config import Config, shown
from . import pre_tokenizers
from .bpe import add_flags, foreign_errors, load, nested, read_merges, read_tokens
from .vocabulary import TokenType, Vocabulary


def is_byte_level(spec: Config) -> bool:
    """Whether words are spelled in the alphabet of bytes before they are merged."""
    return any(part.get("type") == "ByteLevel" for part in nested(spec.child("pre_tokenizer"), "pretokenizers"))


def read(path: Path, spec: Config, config: Config) -> Vocabulary:
    model = spec.child("model")
    tokens = read_tokens(model)
    ignore_merges = model.flag("ignore_merges")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        model.only(key, lambda x: not x, "null: GGUF's byte-level BPE has none")
    merges = read_merges(model, tokens)
    notices = _normalizer_notices(spec)
    tokenizer = load(path)
    for part in nested(spec.child("pre_tokenizer"), "pretokenizers"):
        part.only("add_prefix_space", lambda x: not x, "false: GGUF's byte-level BPE adds no space")
    with foreign_errors(path):
        pre = pre_tokenizers.recognize(tokenizer.pre_tokenizer, ignore_merges, path.name)
    missing = [c for c in pre_tokenizers.alphabet() if c not in tokens]
    if missing and model.get("unk_token") is not None:
        model.refuse("unk_token", f"null where bytes have no token (as {shown(missing[0])} here): GGUF drops them")
    return Vocabulary(
        model="gpt2",
        tokens=list(tokens.by_id()),
        types=[TokenType.UNUSED if token is None else TokenType.NORMAL for token in tokens.by_id()],
        source=path.name,
        pre=pre,
        merges=[f"{left} {right}" for left, right in merges],
        flags=add_flags(tokenizer, config),
        notices=notices,
    )


def _normalizer_notices(spec: Config) -> list[str]:
    kinds: list[Any] = [part.get("type") for part in nested(spec.child("normalizer"), "normalizers")]
    kinds = [kind for kind in kinds if kind is not None]
    if kinds == ["NFC"]:
        return ["the checkpoint's tokenizer composes characters (NFC) first; GGUF takes text as it comes"]
    if kinds:
        raise ModelError(f"the normalizer in {spec.name('normalizer')} is {shown(kinds)}; accepted: none, or NFC")
    return []
