"""Tokenizers: from the files beside a checkpoint to GGUF's metadata."""

from __future__ import annotations

from pathlib import Path

from ..._core import FileError
from ..checkpoint import member
from ..config import Config, read_object
from . import byte_bpe, json_bpe, sentence_piece
from .added import read_added
from .special import special_metadata
from .template import read_templates
from .vocabulary import Tokenizer, Vocabulary


def optional_object(folder: Path, name: str) -> Config:
    """A JSON file of the folder, or an empty object."""
    return read_object(member(folder, name)) if (folder / name).exists() else Config({}, name)


def read_tokenizer(folder: Path, model_config: Config, n_vocab: int) -> Tokenizer:
    """n_vocab: rows of the embedding.

    Raises FileError or ModelError for what cannot be read, does not fit the embedding, or has no place in GGUF.
    """
    config = optional_object(folder, "tokenizer_config.json")
    spec = optional_object(folder, "tokenizer.json")
    vocabulary = _vocabulary(folder, spec, config)
    vocabulary.add(read_added(folder, spec, config))
    vocabulary.check(n_vocab)
    vocabulary.pad(n_vocab)
    metadata, notices = special_metadata(
        vocabulary,
        config,
        optional_object(folder, "special_tokens_map.json"),
        model_config,
        optional_object(folder, "generation_config.json"),
    )
    return Tokenizer(vocabulary.metadata() | metadata | read_templates(folder, config), [*vocabulary.notices, *notices])


def _vocabulary(folder: Path, spec: Config, config: Config) -> Vocabulary:
    """tokenizer.json where it is byte-level; else SentencePiece's own file, which says more, if there is one."""
    if byte_bpe.is_byte_level(spec):
        return byte_bpe.read(folder / "tokenizer.json", spec, config)
    if (folder / "tokenizer.model").exists():
        return sentence_piece.read(member(folder, "tokenizer.model"), config)
    if spec.get("model") is not None:
        return json_bpe.read(folder / "tokenizer.json", spec, config)
    raise FileError(f"{folder} has no tokenizer; accepted: tokenizer.json or tokenizer.model")
