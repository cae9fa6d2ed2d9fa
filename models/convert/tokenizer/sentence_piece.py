"""SentencePiece's own file, tokenizer.model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from ..._core import FileError, ModelError
from ..config import LARGEST_FILE, Config, shown
from .vocabulary import BYTES, TokenType, Vocabulary

pb: Any = sentencepiece_model_pb2  # its classes are made at run time


def read(path: Path, config: Config) -> Vocabulary:
    model = pb.ModelProto()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FileError(f"{path} has {path.stat().st_size:,} bytes; accepted: up to {LARGEST_FILE:,}")
        model.ParseFromString(path.read_bytes())
        pieces = [piece.piece for piece in model.pieces]
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is no SentencePiece model: {str(error)[:200]}") from error
    _check(model, path)
    kinds = [TokenType(piece.type) for piece in model.pieces]
    check_bytes(pieces, kinds, path.name)
    trainer = model.trainer_spec
    special = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    squeezes = bool(model.normalizer_spec.remove_extra_whitespaces)
    return Vocabulary(
        model="llama",
        tokens=list(pieces),
        types=kinds,
        source=path.name,
        scores=[float(piece.score) for piece in model.pieces],
        flags={
            "add_bos_token": config.flag("add_bos_token", True),
            "add_eos_token": config.flag("add_eos_token"),
            "add_space_prefix": bool(model.normalizer_spec.add_dummy_prefix),
            "remove_extra_whitespaces": squeezes,
        },
        special={name: i for name, i in special.items() if 0 <= i < len(pieces)},
        notices=["the tokenizer squeezes runs of spaces; llama.cpp does not, for this kind"] if squeezes else [],
    )


def _check(model: Any, path: Path) -> None:
    def refuse(what: str, value: object, accepted: str) -> None:
        raise ModelError(f"{what} of {path} is {shown(value)}; accepted: {accepted}")

    if not model.pieces:
        refuse("the vocabulary", "empty", "pieces")
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != pb.TrainerSpec.BPE:
        refuse("the model type", pb.TrainerSpec.ModelType.Name(trainer.model_type), "BPE")
    if normalizer.precompiled_charsmap:
        refuse("the normalizer", "a table of replacements", "none: GGUF takes characters as they come")
    if not normalizer.escape_whitespaces:
        refuse("escape_whitespaces", False, "true")
    if trainer.treat_whitespace_as_suffix:
        refuse("treat_whitespace_as_suffix", True, "false")
    if any(piece.score != piece.score for piece in model.pieces):
        refuse("a score", "not a number", "numbers")


def check_bytes(tokens: list[str], kinds: list[TokenType], source: str) -> None:
    """Unknown characters are spelled as bytes: all 256 must be there."""
    found = {token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.BYTE}
    missing = [name for name in BYTES if name not in found]
    if missing:
        raise ModelError(f"{source} has no byte token {missing[0]}; accepted: all 256 (byte fallback)")
    if len(found) > len(BYTES):
        raise ModelError(f"{source} has the byte token {shown(min(found - set(BYTES)))}; accepted: <0x00> to <0xFF>")
