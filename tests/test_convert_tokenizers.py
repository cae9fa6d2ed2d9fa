"""Tokenizers of converted checkpoints give the ids of the libraries they come from."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from helpers import small_checkpoints, trained_tokenizers
from helpers.texts import random_texts
from zipcache_rt import Model, ModelError
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


@pytest.fixture(scope="module")
def spm() -> bytes:
    return trained_tokenizers.sentence_piece(1200)


def test_added_tokens_and_rows_without_tokens(spm: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm)
    n = sentencepiece.SentencePieceProcessor(model_proto=spm).vocab_size()
    end = {"content": trained_tokenizers.END, "special": True, "rstrip": True}
    trained_tokenizers.write_config(tmp_path, eos_token="</s>", added_tokens_decoder={str(n): end})
    (tmp_path / "added_tokens.json").write_text(f'{{"plain": {n + 1}, "<|user|>": {n + 3}}}')
    small_checkpoints.write(tmp_path, n + 10)
    (notice,) = convert(tmp_path, tmp_path / "out.gguf")
    assert notice == "'<|im_end|>' swallow spaces beside them in the checkpoint; GGUF keeps those spaces"
    model = Model(tmp_path / "out.gguf")
    assert model.tokenize("plain<|im_end|><|user|>", add_bos=False)[-2:] == [n, n + 3]
    assert n + 1 in model.tokenize("plain", special=False)
    assert n not in model.tokenize("<|im_end|>", special=False)
    assert model.detokenize([n + 2, n + 9], special=True) == f"[PAD{n + 2}][PAD{n + 9}]"


def test_the_end_of_a_turn(tmp_path: Path) -> None:
    trained_tokenizers.write_byte_level(tmp_path, "qwen2", 400)
    model = converted(tmp_path, 400)
    assert model._open.is_end(model.tokenize(trained_tokenizers.END)[0])


def test_flags_of_the_configuration_and_of_the_tokenizer(spm: bytes, tmp_path: Path) -> None:
    oracle = trained_tokenizers.json_of(spm)  # adds bos by itself
    for name, flags, added in (("silent", {}, True), ("no", {"add_bos_token": False}, False)):
        folder = tmp_path / name
        folder.mkdir()
        oracle.save(str(folder / "tokenizer.json"))
        trained_tokenizers.write_config(folder, bos_token="<s>", eos_token="</s>", **flags)
        assert converted(folder, oracle.get_vocab_size()).info.add_bos == added


def changed(spm: bytes, edit: Callable[[pb.ModelProto], None]) -> bytes:
    model = pb.ModelProto()
    model.ParseFromString(spm)
    edit(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: setattr(m.trainer_spec, "model_type", pb.TrainerSpec.UNIGRAM), "the model type .*'UNIGRAM'; accepted: BPE"),
        (lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"x"), "the normalizer of .*a table of replacements"),
        (lambda m: setattr(m.pieces[10], "type", pb.ModelProto.SentencePiece.NORMAL), "has no byte token <0x07>"),
        (lambda m: setattr(m.pieces[300], "piece", m.pieces[301].piece), "gives 2 ids to the token"),
        (lambda m: setattr(m.pieces[300], "score", float("nan")), "a score of .* not a number"),
        (lambda m: m.ClearField("pieces"), "the vocabulary of .* is 'empty'"),
    ],
)  # fmt: skip
def test_sentence_piece_models_that_gguf_cannot_hold(
    edit: Callable[[pb.ModelProto], None], says: str, spm: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(changed(spm, edit))
    with pytest.raises(ModelError, match=says):
        converted(tmp_path, sentencepiece.SentencePieceProcessor(model_proto=spm).vocab_size())


def test_text_that_is_read_otherwise_is_noted(spm: bytes, tmp_path: Path) -> None:
    oracle = trained_tokenizers.json_of(spm)
    oracle.normalizer = None
    oracle.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    oracle.save(str(tmp_path / "tokenizer.json"))
    trained_tokenizers.write_config(tmp_path, bos_token="<s>", eos_token="</s>")
    small_checkpoints.write(tmp_path, oracle.get_vocab_size())
    notices = convert(tmp_path, tmp_path / "out.gguf")
    assert len(notices) == 2 and "begins with a space" in notices[0] and "after every special token" in notices[1]

    qwen = trained_tokenizers.write_byte_level(tmp_path, "qwen2", 400)
    qwen = Tokenizer.from_str(qwen.to_str())
    qwen.normalizer = normalizers.NFC()
    qwen.save(str(tmp_path / "tokenizer.json"))
    small_checkpoints.write(tmp_path, 400)
    assert convert(tmp_path, tmp_path / "out.gguf") == [
        "the checkpoint's tokenizer composes characters (NFC) first; GGUF takes text as it comes"
    ]


def test_merges_that_scores_cannot_express(tmp_path: Path) -> None:
    oracle = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    oracle.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *bytes_]
    )
    oracle.train_from_iterator(random_texts(500, seed=6), trainer)
    oracle.save(str(tmp_path / "tokenizer.json"))
    trained_tokenizers.write_config(tmp_path, bos_token="<s>", eos_token="</s>")
    with pytest.raises(ModelError, match="does not merge .* into the token .*, as SentencePiece would"):
        converted(tmp_path, oracle.get_vocab_size())
