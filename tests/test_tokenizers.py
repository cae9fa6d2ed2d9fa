"""Tokenizers against `tokenizers` and `sentencepiece`, on the real models and on vocabularies trained here."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, trainers

from helpers import tiny_models, tokenizer_oracles
from helpers.texts import random_texts
from zipcache_rt import Model

N_TEXTS = 20_000


def differences(
    texts: list[str], ours: list[list[int]], theirs: list[list[int]]
) -> list[tuple[str, list[int], list[int]]]:
    return [case for case in zip(texts, ours, theirs, strict=True) if case[1] != case[2]][:5]


def test_smollm2_matches_tokenizers(smollm2: Model, smollm2_path: Path) -> None:
    oracle = tokenizer_oracles.byte_level(smollm2_path)
    texts = random_texts(N_TEXTS, seed=1)
    ours = [smollm2.tokenize(text, add_bos=False) for text in texts]
    theirs = [encoding.ids for encoding in oracle.encode_batch(texts, add_special_tokens=False)]
    assert differences(texts, ours, theirs) == []
    # the vocabulary lacks tokens for some bytes; both tokenizers then drop them
    known = {byte for byte in range(256) if smollm2_spells(oracle, byte)}
    whole = [(text, ids) for text, ids in zip(texts, ours, strict=True) if known.issuperset(text.encode())]
    assert len(whole) > N_TEXTS * 0.8
    assert [text for text, ids in whole if smollm2.detokenize(ids, special=True) != text] == []


def smollm2_spells(oracle: Tokenizer, byte: int) -> bool:
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that GPT-2 spells as themselves
    others = [b for b in range(256) if b not in alphabet]
    return oracle.token_to_id(chr(byte) if byte in alphabet else chr(256 + others.index(byte))) is not None


def test_gemma3_matches_sentencepiece(gemma3_path: Path) -> None:
    model = Model(gemma3_path, threads=2, repack=False)
    oracle = tokenizer_oracles.sentence_piece(gemma3_path)
    # SentencePiece never reads a control token's text, and takes U+2581 for a space
    texts = [text.replace("\u2581", "_") for text in random_texts(N_TEXTS, seed=2)]
    ours = [model.tokenize(text, add_bos=False, special=False) for text in texts]
    theirs = [oracle.encode(text) for text in texts]
    assert differences(texts, ours, theirs) == []
    assert [text for text, ids in zip(texts, ours, strict=True) if model.detokenize(ids, special=True) != text] == []


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_trained_byte_level_vocabularies(pre: str, tmp_path: Path) -> None:
    oracle = Tokenizer(models.BPE())
    oracle.pre_tokenizer = tokenizer_oracles.pre_tokenizer(pre)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=tokenizer_oracles.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    oracle.train_from_iterator(random_texts(3000, seed=3), trainer)
    path = write_vocabulary(tmp_path / "trained.gguf", oracle, pre)
    model = Model(path, threads=1)
    texts = random_texts(N_TEXTS // 4, seed=4)
    ours = [model.tokenize(text, add_bos=False) for text in texts]
    theirs = [encoding.ids for encoding in oracle.encode_batch(texts, add_special_tokens=False)]
    assert differences(texts, ours, theirs) == []


def write_vocabulary(path: Path, oracle: Tokenizer, pre: str) -> Path:
    import json

    table = json.loads(oracle.to_str())["model"]
    tokens = sorted(table["vocab"], key=table["vocab"].__getitem__)
    shape = tiny_models.SHAPES["llama-tied"]
    weights = tiny_models.random_weights(shape)
    weights["token_embd.weight"] = np.zeros((len(tokens), shape.n_embd), np.float32)
    writer = gguf.GGUFWriter(path, shape.architecture)
    for key, value in tiny_models.metadata(shape).items():
        tiny_models.add_value(writer, key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in table["merges"]])
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_flags_and_special_tokens(smollm2: Model) -> None:
    start, end = smollm2.tokenize("<|im_start|><|im_end|>")
    assert (start, end) == (1, 2)
    assert len(smollm2.tokenize("<|im_start|>", special=False)) > 1
    assert smollm2.tokenize("a", add_bos=True) == [1, *smollm2.tokenize("a")]
    assert smollm2.detokenize([start, *smollm2.tokenize("a"), end]) == "a"


def test_lone_surrogates_become_replacement_characters(smollm2: Model) -> None:
    assert smollm2.tokenize("a\ud800b") == smollm2.tokenize("a\ufffdb")
