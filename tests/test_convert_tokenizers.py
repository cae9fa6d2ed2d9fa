"""Tokenizers of converted checkpoints give the ids of the libraries they come from."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken

from helpers import small_checkpoints, trained_tokenizers
from helpers.texts import random_texts
from zipcache_rt import Model
from zipcache_rt.convert import convert

N_TEXTS = 5000
SPECIAL = [trained_tokenizers.BOS, trained_tokenizers.EOS, trained_tokenizers.END, "<tool>", "<s>", "</s>", "<unk>"]


def texts(seed: int, special: list[str] = SPECIAL) -> list[str]:
    """Random ones, a third of them with special tokens between."""
    source = random.Random(seed)
    made = random_texts(N_TEXTS, seed)
    for i in range(0, N_TEXTS, 3):
        words = made[i].split(" ")
        words.insert(source.randrange(len(words) + 1), source.choice(special))
        made[i] = source.choice(["", " "]).join(words)
    return made


def converted(folder: Path, n_vocab: int) -> Model:
    small_checkpoints.write(folder, n_vocab)
    convert(folder, folder / "out.gguf", type="f32")
    return Model(folder / "out.gguf", threads=1)


def differences(model: Model, given: list[str], encode: Callable[[str], list[int]]) -> list[object]:
    cases = [(text, model.tokenize(text, add_bos=False), encode(text)) for text in given]
    return [case for case in cases if case[1] != case[2]][:5]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    oracle = trained_tokenizers.write_byte_level(tmp_path, pre, 1500)
    model = converted(tmp_path, 1500)
    assert differences(model, texts(11), lambda text: oracle.encode(text, add_special_tokens=False).ids) == []
    assert model.tokenize("a") == oracle.encode("a").ids
    assert model.info.bos_token == trained_tokenizers.BOS
    assert model.info.eos_token == trained_tokenizers.EOS
    assert model.info.chat_template == trained_tokenizers.TEMPLATE


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(prefix: bool, tmp_path: Path) -> None:
    data = trained_tokenizers.sentence_piece(1200, prefix=prefix, user_defined=("<tool>", "\u2581\u2581\u2581"))
    (tmp_path / "tokenizer.model").write_bytes(data)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=data)
    trained_tokenizers.write_config(tmp_path, bos_token="<s>", eos_token={"content": "</s>"}, add_bos_token=True)
    model = converted(tmp_path, oracle.vocab_size())
    # SentencePiece never reads a control token's text, and takes U+2581 for a space
    given = [text.replace("\u2581", "_") for text in texts(12, ["<tool>", "    "])]
    cases = [(text, model.tokenize(text, add_bos=False, special=False), oracle.encode(text)) for text in given]
    assert [case for case in cases if case[1] != case[2]][:5] == []
    assert model.tokenize("a") == [oracle.bos_id(), *oracle.encode("a")]
    assert model.info.eos_token == "</s>"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_in_tokenizer_json(prefix: bool, tmp_path: Path) -> None:
    oracle = trained_tokenizers.json_of(trained_tokenizers.sentence_piece(1200, prefix=prefix), prefix=prefix)
    oracle.add_special_tokens([AddedToken(trained_tokenizers.END, special=True, normalized=False)])
    oracle.save(str(tmp_path / "tokenizer.json"))
    trained_tokenizers.write_config(tmp_path, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model = converted(tmp_path, oracle.get_vocab_size())
    given = [text.replace("\u2581", "_") for text in texts(13)]
    assert differences(model, given, lambda text: oracle.encode(text, add_special_tokens=False).ids) == []
    assert model.tokenize("a") == oracle.encode("a").ids
