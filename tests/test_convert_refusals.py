"""Checkpoints that are wrong, incomplete or hostile: a typed error that names what was wrong, and no file left."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from helpers import small_checkpoints, trained_tokenizers
from zipcache_rt import ArgumentError, FileError, Model, ModelError, ZipCacheError
from zipcache_rt.convert import convert

N_VOCAB = 300
N_MUTATIONS = 500
Change = Callable[[Path], None]


def write(folder: Path, n_vocab: int = N_VOCAB, **options: Any) -> Path:
    small_checkpoints.write(folder, n_vocab, **options)
    trained_tokenizers.write_byte_level(folder, "gpt-2", n_vocab)
    return folder


def in_json(file: str, *keys: Any, value: Any = None) -> Change:
    """Sets what stands under the keys; ... takes it away."""

    def change(folder: Path) -> None:
        whole = json.loads((folder / file).read_text())
        at = whole
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        if value is ...:
            del at[keys[-1]]
        (folder / file).write_text(json.dumps(whole))

    return change


def in_text(file: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def in_weights(edit: Callable[[small_checkpoints.Tensors], None]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return change


def in_bytes(file: str, edit: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / file).write_bytes(edit((folder / file).read_bytes())) and None


def in_tokenizer(edit: Callable[[Tokenizer], None]) -> Change:
    def change(folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        edit(tokenizer)
        tokenizer.save(str(folder / "tokenizer.json"))

    return change


def without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


CONFIG = "config.json"
CASES: dict[str, tuple[Change, type[ZipCacheError], str]] = {
    "no config": (without(CONFIG), FileError, "config.json is missing"),
    "no JSON": (in_text(CONFIG, "{", "["), FileError, "config.json is no JSON"),
    "no object": (lambda folder: (folder / CONFIG).write_text("[]") and None, FileError, "holds \\[\\]; accepted: an object"),
    "deep": (lambda folder: (folder / CONFIG).write_text("[" * 200_000) and None, FileError, "config.json is no JSON"),
    "NaN": (in_text(CONFIG, "1e-05", "NaN"), FileError, "NaN"),
    "no UTF-8": (in_bytes(CONFIG, lambda data: data + b"\xff"), FileError, "config.json is no JSON"),
    "family": (in_json(CONFIG, "architectures", value=["BertModel"]), ModelError, "'BertModel'.*accepted: one of LlamaForCausalLM, Mistral"),
    "families": (in_json(CONFIG, "architectures", value=7), ModelError, "architectures in config.json is 7"),
    "layers": (in_json(CONFIG, "num_hidden_layers", value="two"), ModelError, "num_hidden_layers in config.json is 'two'; accepted: an integer of 1 to 4096"),
    "more layers": (in_json(CONFIG, "num_hidden_layers", value=3), ModelError, "lacks the tensor model.layers.2.input_layernorm.weight"),
    "huge": (in_text(CONFIG, '"hidden_size": 16', f'"hidden_size": 1{"0" * 3000}'), ModelError, "hidden_size in config.json is int"),
    "too huge": (in_text(CONFIG, '"hidden_size": 16', f'"hidden_size": 1{"0" * 6000}'), FileError, "config.json is no JSON"),
    "true": (in_json(CONFIG, "hidden_size", value=True), ModelError, "hidden_size in config.json is True"),
    "heads": (in_json(CONFIG, "num_key_value_heads", value=3), ModelError, "a divisor of the 2 heads"),
    "activation": (in_json(CONFIG, "hidden_act", value="relu"), ModelError, "hidden_act in config.json is 'relu'; accepted: silu or swish"),
    "FFN biases": (in_json(CONFIG, "mlp_bias", value=True), ModelError, "biases of the FFN"),
    "RoPE type": (in_json(CONFIG, "rope_scaling", value={"type": "dynamic", "factor": 2.0}), ModelError, "'dynamic'; accepted: default, linear, llama3, yarn"),
    "RoPE factor": (in_json(CONFIG, "rope_scaling", value={"type": "linear", "factor": 1e400}), FileError, "no JSON|Infinity"),
    "RoPE list": (in_json(CONFIG, "rope_scaling", value=[1]), ModelError, "rope_scaling in config.json is \\[1\\]; accepted: an object"),
    "RoPE share": (in_json(CONFIG, "partial_rotary_factor", value=0.5), ModelError, "partial_rotary_factor in config.json is 0.5"),
    "quantized": (in_json(CONFIG, "quantization_config", value={"bits": 4}), ModelError, "quantization_config in config.json is {'bits': 4}"),
    "shape": (in_json(CONFIG, "intermediate_size", value=48), ModelError, "mlp.gate_proj.weight has the shape \\[32, 16\\]; accepted: \\[48, 16\\]"),
    "tied": (in_json(CONFIG, "vocab_size", value=299), ModelError, "embed_tokens.weight has the shape \\[300, 16\\]; accepted: \\[299, 16\\]"),
    "no weights": (without("model.safetensors"), FileError, "has no weights; accepted: model.safetensors, pytorch_model.bin"),
    "missing tensor": (in_weights(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), ModelError, "lacks the tensor model.layers.1.mlp.up_proj.weight \\[32, 16\\]"),
    "extra tensor": (in_weights(lambda t: t.update({"model.layers.0.extra": np.zeros(3)})), ModelError, "holds 'model.layers.0.extra', which llama has no place for"),
    "turned tensor": (in_weights(lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros((16, 32), np.float32)})), ModelError, "up_proj.weight has the shape \\[16, 32\\]; accepted: \\[32, 16\\]"),
    "flat tensor": (in_weights(lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros(512, np.float32)})), ModelError, "up_proj.weight has the shape \\[512\\]; accepted: \\[32, 16\\]"),
    "f64": (in_weights(lambda t: t.update({"model.norm.weight": np.ones(16)})), ModelError, "model.norm.weight is F64; accepted: F32, F16, BF16"),
    "NaN weight": (in_weights(lambda t: t["model.layers.0.mlp.up_proj.weight"].__setitem__((3, 4), np.nan)), ModelError, "blk.0.ffn_up.weight holds a value that is not finite"),
    "large weight": (in_weights(lambda t: t["model.layers.0.mlp.up_proj.weight"].__setitem__((3, 4), 7e4)), ModelError, "blk.0.ffn_up.weight holds 70000, beyond f16's 65504"),
    "header length": (in_bytes("model.safetensors", lambda data: b"\xff" * 8 + data[8:]), FileError, "is no safetensors file"),
    "header": (in_bytes("model.safetensors", lambda data: data.replace(b"dtype", b"dtyp\xff", 1)), FileError, "is no safetensors file"),
    "cut": (in_bytes("model.safetensors", lambda data: data[:-100]), FileError, "is no safetensors file"),
    "empty": (in_bytes("model.safetensors", lambda data: b""), FileError, "is no safetensors file"),
    "no tokenizer": (without("tokenizer.json"), FileError, "has no tokenizer; accepted: tokenizer.json or tokenizer.model"),
    "tokenizer too large": (in_tokenizer(lambda t: t.add_tokens(["<more>"])), ModelError, "has 301 tokens; accepted: up to the 300 rows"),
    "tokenizer too small": (lambda folder: write(folder) and small_checkpoints.write(folder, 1000) and None, ModelError, "has 300 tokens for the 1000 rows"),
    "unigram": (in_json("tokenizer.json", "model", value={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}), ModelError, "model.type in tokenizer.json is 'Unigram'; accepted: BPE"),
    "pre-tokenizer": (in_tokenizer(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]))), ModelError, "none that GGUF can name here.*unlike gpt-2"),
    "space in front": (in_tokenizer(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))), ModelError, "add_prefix_space"),
    "normalizer": (in_tokenizer(lambda t: setattr(t, "normalizer", normalizers.Lowercase())), ModelError, "\\['Lowercase'\\]; accepted: none, or NFC"),
    "whole words": (in_tokenizer(lambda t: t.add_special_tokens([AddedToken("Ġa", single_word=True)])), ModelError, "'Ġa' .*matched as a single word only"),
    "merge": (in_json("tokenizer.json", "model", "merges", 0, value=["a", "zzz"]), ModelError, "merges in tokenizer.json\\[0\\].*accepted: tokens that make a token"),
    "merge of three": (in_json("tokenizer.json", "model", "merges", 0, value=["a", "b", "c"]), ModelError, "accepted: two tokens without spaces"),
    "token id": (in_json("tokenizer.json", "model", "vocab", "a", value=-1), ModelError, "model.vocab.a in tokenizer.json is -1"),
    "token ids": (in_json("tokenizer.json", "model", "vocab", "a", value=10**9), ModelError, "model.vocab.a in tokenizer.json is 1000000000"),
    "two tokens": (in_json("tokenizer.json", "model", "vocab", "a", value=20), ModelError, "one id to two tokens"),
    "surrogate": (in_json("tokenizer.json", "added_tokens", 0, "content", value="\ud800"), ZipCacheError, "Unicode|no tokenizer"),
    "bos": (in_json("tokenizer_config.json", "bos_token", value="<none>"), ModelError, "the bos token '<none>'.*is not in tokenizer.json"),
    "bos number": (in_json("tokenizer_config.json", "bos_token", value=3), ModelError, "bos_token in tokenizer_config.json is 3; accepted: text"),
    "template": (in_json("tokenizer_config.json", "chat_template", value={"a": 1}), ModelError, "chat_template in tokenizer_config.json"),
    "template's characters": (in_json("tokenizer_config.json", "chat_template", value="\udfff"), ModelError, "no valid Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    change, error, says = CASES[name]
    folder = write(tmp_path / "model")
    change(folder)
    before = sorted(folder.iterdir())
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=says):
        convert(folder, out / "model.gguf")
    assert list(out.iterdir()) == [] and sorted(folder.iterdir()) == before


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("model-00002-of-00003.safetensors"), "model-00002-of-00003.safetensors is missing"),
        (in_text(INDEX, "model-00002-of", "../model-00002-of"), "'../model-00002-of-00003.safetensors' is no plain file name"),
        (in_text(INDEX, "model-00002-of", "/etc/model-00002-of"), "'/etc/model-00002-of-00003.safetensors' is no plain file name"),
        (in_text(INDEX, "model-00002-of", "sub/model-00002-of"), "is no plain file name"),
        (in_text(INDEX, "model-00002-of-00003.safetensors", "tokenizer.json"), "names the shard 'tokenizer.json'; accepted: \\*.safetensors"),
        (in_json(INDEX, "weight_map", value={}), "names no tensors"),
        (in_json(INDEX, "weight_map", value=[1]), "weight_map in model.safetensors.index.json is \\[1\\]; accepted: an object"),
        (in_json(INDEX, "weight_map", "model.norm.weight", value=4), "weight_map.model.norm.weight in .* is 4; accepted: text"),
        (in_json(INDEX, "weight_map", "model.norm.weight", value=...), "holds model.norm.weight, which the index does not name"),
        (in_json(INDEX, "weight_map", "other", value="model-00002-of-00003.safetensors"), "lacks other, which the index says it holds"),
        (lambda folder: link_out(folder, "model-00002-of-00003.safetensors"), "is a link to .*; accepted: links inside"),
        (lambda folder: link_out(folder, CONFIG), "is a link to .*; accepted: links inside"),
    ],
)  # fmt: skip
def test_shards(change: Change, says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", n_shards=3)
    change(folder)
    with pytest.raises((FileError, ModelError), match=says):
        convert(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def link_out(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


def test_links_of_a_hugging_face_cache(tmp_path: Path) -> None:
    folder = write(tmp_path / "snapshots" / "abc")
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(tmp_path / "blobs" / str(i))
        path.symlink_to(Path("../../blobs") / str(i))
    convert(folder, tmp_path / "model.gguf")
    assert Model(tmp_path / "model.gguf").info.n_vocab == N_VOCAB


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("none/model.gguf", FileError, "the folder .*none of the target does not exist"),
        ("folder", FileError, "is a folder; accepted: a file"),
        ("model/model.safetensors", ArgumentError, "is a file of the checkpoint"),
    ],
)
def test_targets(target: str, error: type[ZipCacheError], says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=says):
        convert(folder, tmp_path / target)


def test_arguments(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with pytest.raises(ArgumentError, match="the type is 'q9'; accepted: f32, f16, bf16, q8_0"):
        convert(folder, tmp_path / "model.gguf", type="q9")
    with pytest.raises(ArgumentError, match="threads is 0"):
        convert(folder, tmp_path / "model.gguf", threads=0)
    with pytest.raises(FileError, match="is no folder"):
        convert(folder / CONFIG, tmp_path / "model.gguf")


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path) -> None:
    folder, out = write(tmp_path / "model"), tmp_path / "model.gguf"
    out.write_text("older")

    def interrupt(done: float) -> None:
        assert len(list(tmp_path.glob(".model.gguf.*.part"))) == 1
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, out, progress=interrupt)
    assert out.read_text() == "older" and not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_verification_finds_a_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zipcache_rt.convert import write as writing

    def wrong(*arguments: Any) -> np.ndarray:
        made = encode(*arguments)
        return made[::-1] if arguments[-1] == "blk.1.ffn_down.weight" else made

    encode = writing.encode
    monkeypatch.setattr(writing, "encode", wrong)
    folder, out = write(tmp_path / "model"), tmp_path / "model.gguf"
    with pytest.raises(ModelError, match="rows 0 to 15 of tensor blk.1.ffn_down.weight differ"):
        convert(folder, out, type="q8_0")
    assert not out.exists()
    convert(folder, out, type="q8_0", verify=False)
    assert out.exists()


def mutate(data: bytes, source: random.Random, structure: int) -> bytes:
    """Damage in the first `structure` bytes mostly: bits, bytes, cuts, and words of JSON that change its meaning."""
    out = bytearray(data)
    words = [b"null", b"-1", b"0", b"1e308", b"NaN", b"[]", b"{}", b'"x"', b"true", b"99999999999999999999", b"\\ud800"]
    for _ in range(source.randint(1, 4)):
        at = source.randrange(max(1, min(structure, len(out))))
        kind = source.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([source.randrange(256)])
        elif kind == 1:
            del out[at : at + source.randint(1, 16)]
        elif kind == 2:
            out[at:at] = source.randbytes(source.randint(1, 8))
        elif kind == 3 and b":" in out[at:]:
            begin = out.index(b":", at) + 1
            end = next((i for i in range(begin, len(out)) if out[i] in b",}]"), len(out))
            out[begin:end] = source.choice(words)
        elif kind == 4:
            out[at:at] = out[max(0, at - 20) : at]
        else:
            out = out[: source.randrange(len(out) + 1)]
    return bytes(out)


TARGETS = [
    ("model-00001-of-00002.safetensors", 1500),
    (INDEX, 1 << 30),
    (CONFIG, 1 << 30),
    ("tokenizer.json", 1 << 30),
    ("tokenizer_config.json", 1 << 30),
    ("tokenizer.model", 1 << 30),
]


def run_mutations(folder: Path, first: int, last: int) -> None:
    """In a process of its own: convert what converts, expect nothing but ZipCacheError and no other file."""
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = folder.parent / f"out{first}"
    out.mkdir()
    n_converted = 0
    for seed in range(first, last):
        print(f"seed {seed}", flush=True)
        source = random.Random(seed)
        name, structure = TARGETS[seed % len(TARGETS)]
        for other, data in good.items():
            (folder / other).write_bytes(mutate(data, source, structure) if other == name else data)
        if name == "tokenizer.model":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").write_text("{}")
        try:
            convert(folder, out / "model.gguf")
            n_converted += 1
            (out / "model.gguf").unlink()
        except ZipCacheError:
            pass
        assert not list(out.iterdir())
    print(f"converted {n_converted}")


def test_mutations(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from test_convert_refusals import run_mutations as r; "
    code += "r(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    folder = write(tmp_path / "model", 600, n_shards=2)
    (folder / "tokenizer.model").write_bytes(trained_tokenizers.sentence_piece(600))
    command = [sys.executable, "-c", code, str(folder), "0", str(N_MUTATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0, f"{done.stdout[-40:]} {done.stderr[-3000:]}"
    assert "converted" in done.stdout
    print(done.stdout.splitlines()[-1])
