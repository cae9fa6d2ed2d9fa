"""Damaged and hostile model files: typed errors, and a process that lives on."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_models
from zipcache_rt import FileError, Model, ModelError, ZipCacheError

SHAPE = tiny_models.SHAPES["llama"]


def small(path: Path, **changes: object) -> Path:
    return tiny_models.write(path, SHAPE, tiny_models.random_weights(SHAPE), vocabulary=True, **changes)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small(tmp_path_factory.mktemp("valid") / "small.gguf").read_bytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b"", "empty"),
        (lambda b: b"GGML" + b[4:], "not a GGUF file"),
        (lambda b: b[:4] + b[4:8][::-1] + b[8:], "big-endian"),
        (lambda b: b[:4] + b"\x01\0\0\0" + b[8:], "version 1; accepted: 2 and 3"),
        (lambda b: b[:4] + b"\x63\0\0\0" + b[8:], "version 99; accepted: 2 and 3"),
        (lambda b: b[:8] + b"\xff" * 8 + b[16:], "number of tensors"),
        (lambda b: b[:16] + b"\xff" * 7 + b"\x0f" + b[24:], "number of metadata entries"),
        (lambda b: b[: len(b) // 2], "truncated"),
        (lambda b: b[:-1], "truncated"),
        (lambda b: b.replace(b"general.architecture", b"general.architectur\xff"), "UTF-8"),
        (lambda b: b.replace(b"attn_norm.weight", b"ffn_norm.weight\0"), "truncated|no tensor|type|dimension"),
    ],
)
def test_damaged_bytes(damage: object, says: str, valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(valid))  # type: ignore[operator]
    with pytest.raises((FileError, ModelError), match=says):
        Model(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"llama__block_count": None}, "no key llama.block_count"),
        ({"llama__block_count": 0}, "llama.block_count is 0; accepted: 1 to"),
        ({"llama__block_count": 3}, "no tensor blk.2."),
        ({"llama__block_count": "two"}, "llama.block_count"),
        ({"llama__embedding_length": 64}, r"token_embd.weight has the shape \[32, 96, 1, 1\]; accepted: \[64, 96\]"),
        ({"llama__attention__head_count": 3}, "no multiple of the 2 KV heads"),
        ({"llama__attention__key_length": 10}, "differs from the key length|shape"),
        ({"llama__rope__dimension_count": 7}, "rope.dimension_count is 7; accepted: an even number"),
        ({"llama__rope__scaling__type": "spiral"}, "'spiral'; accepted: none, linear, yarn, longrope"),
        ({"llama__context_length": 2**31}, "context_length is 2147483648"),
        ({"tokenizer__ggml__bos_token_id": 5000}, "bos_token_id' is 5000; accepted: a token id below 96"),
    ],
)
def test_contradictions(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    path = small(tmp_path / "bad.gguf", **changes)
    with pytest.raises(ModelError, match=says):
        Model(path)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("mixtral", {"llama__expert_count": 0}, "no tensor blk.0.ffn_gate.weight"),
        ("mixtral", {"llama__expert_count": None}, "no tensor blk.0.ffn_gate.weight"),
        ("mixtral", {"llama__expert_count": 9}, r"ffn_gate_inp.weight has the shape .*; accepted: \[32, 9\]"),
        ("mixtral", {"llama__expert_count": 2**31}, "llama.expert_count is 2147483648; accepted: 0 to 512"),
        ("mixtral", {"llama__expert_count": "eight"}, "llama.expert_count"),
        ("mixtral", {"llama__expert_used_count": None}, "no key llama.expert_used_count"),
        ("mixtral", {"llama__expert_used_count": 0}, "llama.expert_used_count is 0; accepted: 1 to 8"),
        ("mixtral", {"llama__expert_used_count": 9}, "llama.expert_used_count is 9; accepted: 1 to 8"),
        (
            "mixtral",
            {"llama__feed_forward_length": 40},
            r"ffn_gate_exps.weight has the shape .*; accepted: \[32, 40, 8\]",
        ),
        ("llama", {"llama__expert_count": 4, "llama__expert_used_count": 2}, "no tensor blk.0.ffn_gate_inp.weight"),
        ("qwen3moe", {"qwen3moe__expert_count": 0}, "qwen3moe.expert_count is missing or 0; accepted: 1 or more"),
        ("qwen3moe", {"qwen3moe__expert_count": None}, "qwen3moe.expert_count is missing or 0"),
        (
            "qwen3moe",
            {"qwen3moe__expert_feed_forward_length": None},
            r"ffn_gate_exps.weight.* accepted: \[32, 28, 24\]",
        ),
        ("qwen3moe", {"qwen3moe__expert_weights_norm": "yes"}, "qwen3moe.expert_weights_norm.* a boolean"),
    ],
)
def test_contradictions_about_experts(name: str, changes: dict[str, object], says: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES[name]
    path = tiny_models.write(tmp_path / "bad.gguf", shape, tiny_models.random_weights(shape), **changes)
    with pytest.raises(ModelError, match=says):
        Model(path)


@pytest.mark.parametrize(
    ("tensor", "change", "says"),
    [
        ("ffn_down_exps", lambda w: w[:, :, :-1], r"ffn_down_exps.weight has the shape \[47, 32, 8, 1\]; accepted: \[48, 32, 8\]"),
        ("ffn_up_exps", lambda w: w[:-1], "ffn_up_exps.weight has the shape"),
        ("ffn_up_exps", lambda w: w[0], "ffn_up_exps.weight has the shape"),
        ("ffn_gate_exps", lambda w: w.astype(np.int32), "ffn_gate_exps.weight is i32"),
        ("ffn_gate_inp", lambda w: w.T, "ffn_gate_inp.weight has the shape"),
        ("ffn_gate_inp", lambda w: w.astype(np.int8), "ffn_gate_inp.weight is i8"),
        ("ffn_gate_inp", lambda w: None, "no tensor blk.1.ffn_gate_inp.weight"),
    ],
)  # fmt: skip
def test_expert_tensors_that_do_not_fit(tensor: str, change: object, says: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES["mixtral"]
    weights = tiny_models.random_weights(shape)
    changed = change(weights.pop(f"blk.1.{tensor}.weight"))  # type: ignore[operator]
    if changed is not None:
        weights[f"blk.1.{tensor}.weight"] = np.ascontiguousarray(changed)
    with pytest.raises(ModelError, match=says):
        Model(tiny_models.write(tmp_path / "bad.gguf", shape, weights))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_router_of_no_numbers_does_not_end_the_process(value: float, tmp_path: Path) -> None:
    shape = dataclasses.replace(tiny_models.SHAPES["qwen3moe"], n_experts=200, n_experts_used=150)
    weights = tiny_models.random_weights(shape)
    weights["blk.0.ffn_gate_inp.weight"][::3] = value
    session = Model(tiny_models.write(tmp_path / "nan.gguf", shape, weights), threads=2).session()
    session.prefill(list(range(90)))
    session.decode(3)
    assert session.logits.shape == (tiny_models.N_VOCAB,)


def test_a_model_without_a_tokenizer_runs_on_ids(tmp_path: Path) -> None:
    path = tiny_models.write(tmp_path / "mute.gguf", SHAPE, tiny_models.random_weights(SHAPE))
    model = Model(path)
    with pytest.raises(ModelError, match="no tokenizer"):
        model.tokenize("a")
    assert [piece.text for piece in model.session().generate([1, 2], max_tokens=3)] == ["", "", ""]


def test_a_weight_of_a_type_that_cannot_be_multiplied(tmp_path: Path) -> None:
    weights = tiny_models.random_weights(SHAPE)
    weights["blk.0.ffn_up.weight"] = weights["blk.0.ffn_up.weight"].astype(np.int32)  # type: ignore[assignment]
    with pytest.raises(ModelError, match="blk.0.ffn_up.weight is i32"):
        Model(tiny_models.write(tmp_path / "int.gguf", SHAPE, weights))


def test_missing_and_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot open"):
        Model(tmp_path / "none.gguf")
    with pytest.raises(FileError, match="not a regular file"):
        Model(tmp_path)


def mutate(data: bytes, seed: int) -> bytes:
    source = random.Random(seed)
    out = bytearray(data)
    header = 6000  # where the structure is; the rest are weights
    for _ in range(source.randint(1, 4)):
        at = source.randrange(min(header, len(out)) if source.random() < 0.9 else len(out))
        kind = source.randrange(6)
        if kind == 0:
            out[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            out[at] = source.randrange(256)
        elif kind == 2:
            del out[at : at + source.randint(1, 16)]
        elif kind == 3:
            out[at:at] = source.randbytes(source.randint(1, 16))
        elif kind == 4:
            value = source.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, source.getrandbits(64)])
            out[at : at + 8] = value.to_bytes(8, "little")
        else:
            out = out[: source.randrange(len(out) + 1)] or bytearray(b"G")
    return bytes(out)


def run_mutations(valid: Path, first: int, last: int) -> None:
    """In a process of its own: load what loads, decode a token, expect nothing but ZipCacheError."""
    data = valid.read_bytes()
    path = valid.with_name(f"mutated-{first}.gguf")
    loaded = 0
    for seed in range(first, last):
        print(f"seed {seed}", flush=True)
        path.write_bytes(mutate(data, seed))
        try:
            session = Model(path, threads=1).session()
            session.prefill([1, 2, 3])
            session.decode(4)
            session.model.tokenize("ab <|im_end|>")
            loaded += 1
        except ZipCacheError:
            pass
    print(f"loaded {loaded}")


def test_a_thousand_mutations(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "valid.gguf"
    path.write_bytes(valid)
    code = "import sys; from pathlib import Path; from test_bad_files import run_mutations as r; "
    code += "r(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    for first in range(0, 1000, 250):
        command = [sys.executable, "-c", code, str(path), str(first), str(first + 250)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-40:]} {done.stderr[-2000:]}"
        assert "loaded" in done.stdout
