"""Other people's tokenizers, built from a GGUF file's own tables."""

from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """What Hugging Face's checkpoints of a family use, by its GGUF name."""
    if name == "gpt-2":
        return _byte_level(True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(True)])
    pattern = {"llama-bpe": LLAMA3, "smaug-bpe": LLAMA3, "qwen2": QWEN2}[name]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _byte_level(False)])


def fields(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


def byte_level(path: Path) -> Tokenizer:
    table = fields(path)
    tokens = table["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in table["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer(table["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, table["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def sentence_piece(path: Path) -> sentencepiece.SentencePieceProcessor:
    table = fields(path)
    model = pb.ModelProto()
    rows = zip(
        table["tokenizer.ggml.tokens"], table["tokenizer.ggml.scores"], table["tokenizer.ggml.token_type"], strict=True
    )
    for text, score, kind in rows:
        piece = model.pieces.add()
        # GGUF files spell the spaces of user-defined tokens as such, SentencePiece as U+2581
        piece.piece = text.replace(" ", "\u2581") if kind == pb.ModelProto.SentencePiece.USER_DEFINED else text
        piece.score, piece.type = score, kind
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(table.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
