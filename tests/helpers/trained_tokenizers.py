"""Tokenizers trained on the spot, written as checkpoints have them."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers.texts import random_texts
from helpers.tokenizer_oracles import pre_tokenizer

BOS, EOS, END = "<|begin|>", "<|end_of_text|>", "<|im_end|>"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


@cache
def byte_level(pre: str, n_vocab: int, *, added: bool = True) -> Tokenizer:
    """pre: GGUF's name of the pre-tokenizer. The last two tokens are added ones: a control token, and a plain one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 2 * added,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS],
    )
    tokenizer.train_from_iterator(random_texts(3000, seed=3), trainer)
    if added:
        tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def write_byte_level(folder: Path, pre: str, n_vocab: int) -> Tokenizer:
    tokenizer = byte_level(pre, n_vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_config(folder, bos_token=BOS, eos_token=EOS, add_bos_token=False, chat_template=TEMPLATE)
    return tokenizer


def write_config(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **values}))


def sentence_piece(n_vocab: int, *, prefix: bool = True, user_defined: tuple[str, ...] = ()) -> bytes:
    """A tokenizer.model as Llama 2's and Gemma's are: BPE, byte fallback, characters as they come."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in random_texts(3000, seed=5) if text.strip() and len(text) < 4000),
        model_writer=out,
        vocab_size=n_vocab,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        hard_vocab_limit=False,
        user_defined_symbols=list(user_defined),
        minloglevel=2,
    )
    return out.getvalue()


def json_of(model: bytes, *, prefix: bool = True) -> Tokenizer:
    """The same tokenizer as Hugging Face writes it in tokenizer.json: every way to make a piece of two is a merge."""
    proto = pb.ModelProto()
    proto.ParseFromString(model)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space]) if prefix else space
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return tokenizer
