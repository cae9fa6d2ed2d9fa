"""Converted checkpoints of every architecture: this runtime and llama.cpp against transformers."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from helpers.compare import mean_kl
from helpers.llama_cpp_oracle import teacher_forced_logits
from zipcache_rt import FileError, KvOptions, Model, ModelError
from zipcache_rt.convert import convert

pytest.importorskip("torch", reason="the extra 'oracle' (torch, transformers) is not installed")
pytest.importorskip("transformers", reason="the extra 'oracle' (torch, transformers) is not installed")
import torch
from safetensors.torch import load_file

from helpers import checkpoints

N_TOKENS = 64
TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, checkpoints.N_VOCAB, N_TOKENS).astype(np.int32)


Converted = Callable[[str, str], tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Makes a case's file of a type, once, and the logits that transformers computes."""

    @cache
    def make(name: str, kind: str) -> tuple[Path, np.ndarray]:
        folder = tmp_path_factory.mktemp(name)
        model = checkpoints.write(folder, name)
        convert(folder, folder / "model.gguf", type=kind)
        return folder / "model.gguf", checkpoints.logits(model, random_tokens())

    return make


@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("name", checkpoints.CASES)
def test_logits_match_transformers(name: str, kind: str, converted: Converted) -> None:
    file, expected = converted(name, kind)
    session = Model(file, threads=2).session(n_ctx=2 * N_TOKENS, kv=KvOptions("f16"))
    check(expected, session.score(random_tokens()), kind)


# llama.cpp lets every layer of phi3 see everything
@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs llama-cpp-python (the 'oracle' extra), which builds llama.cpp")
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in checkpoints.CASES if name != "phi3-windows"])
def test_llama_cpp_computes_the_same(name: str, kind: str, converted: Converted) -> None:
    file, expected = converted(name, kind)
    check(expected, teacher_forced_logits(file, random_tokens()), kind)


def check(expected: np.ndarray, got: np.ndarray, kind: str) -> None:
    """The best token is the same, or one that transformers has within a hundredth of the logits' spread."""
    assert mean_kl(expected, got) <= TOLERANCE[kind]
    chosen = np.take_along_axis(expected, got.argmax(-1)[:, None], -1)[:, 0]
    assert (chosen >= expected.max(-1) - 0.01 * expected.std()).all()


def tensors_of(folder: Path, kind: str = "f32") -> dict[str, np.ndarray]:
    convert(folder, folder / "model.gguf", type=kind)
    return {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "mixtral", "qwen3moe"])
def test_all_forms_of_a_checkpoint_are_one_model(name: str, tmp_path: Path) -> None:
    forms = {"whole": {}, "shards": {"max_shard_size": "60KB"}, "as in memory": {"save_original_format": False}}
    made = {}
    for form, options in forms.items():
        (tmp_path / form).mkdir()
        model = checkpoints.write(tmp_path / form, name, **options)
        made[form] = tensors_of(tmp_path / form)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for form, mapped in (("pickle", True), ("old pickle", False)):
        folder = tmp_path / form
        shutil.copytree(tmp_path / "whole", folder)
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=mapped)
        made[form] = tensors_of(folder)
    assert all(same(tensors, made["whole"]) for tensors in made.values())
    fused = any("gate_up_proj" in key for key in load_file(tmp_path / "as in memory" / "model.safetensors"))
    assert fused == (name in ("mixtral", "qwen3moe"))
    del model


def test_pickles_run_no_code(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match="pytorch_model.bin is no file of weights alone"):
        convert(tmp_path, tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "qwen2", dtype=dtype)
    got = tensors_of(tmp_path, kind)
    state = {name: values.float().numpy() for name, values in load_file(tmp_path / "model.safetensors").items()}
    embedding, norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
    if kind == "bf16":
        rounded = torch.from_numpy(embedding).bfloat16().view(torch.uint8).numpy()
        assert np.array_equal(got["token_embd.weight"], rounded)
    else:
        assert np.array_equal(got["token_embd.weight"], embedding.astype("float32" if kind == "f32" else "float16"))
    assert np.array_equal(got["output_norm.weight"], norm)


def test_a_mistral_with_windows_has_the_context_of_one(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "mistral")
    checkpoints.change_json(tmp_path / "config.json", sliding_window=40)
    (notice,) = convert(tmp_path, tmp_path / "model.gguf")
    assert "the context is 40 tokens" in notice
    assert Model(tmp_path / "model.gguf").info.n_ctx_train == 40


@pytest.mark.parametrize("name", ["gemma3", "llama3", "mistral"])
def test_the_older_spelling_of_rope(name: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, name)
    expected = metadata_of(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    local = rope.get("sliding_attention", {"rope_theta": None})["rope_theta"]
    rope = rope.get("full_attention", rope)
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_local_base_freq": local}
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert metadata_of(tmp_path) == expected


def metadata_of(folder: Path) -> dict[str, object]:
    convert(folder, folder / "model.gguf")
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()} | {
        tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name.startswith("rope")
    }


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gemma3", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar in config.json is 24; accepted: 16"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types in config.json .*; accepted: full_attention in every layer 6"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping in config.json is 30.0; accepted: null"),
        ("qwen3", {"attention_bias": True}, "attention_bias in config.json is True; accepted: false"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob in config.json is False; accepted: true"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers in config.json is \\[0\\]; accepted: an empty list"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "num_experts_per_tok in config.json is 9; accepted: an integer of 1 to 4"),
        ("mixtral", {"num_local_experts": 5}, "lacks the tensor model.layers.0.block_sparse_moe.experts.4.w1.weight|gate.weight has the shape"),
        ("phi3-long", {"rope_parameters": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}}, "long_factor in config.json is \\[1.0\\]; accepted: 4 numbers"),
        ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}}, "high_freq_factor in config.json is 1.0; accepted: more than"),
        ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate in config.json is False"),
    ],
)  # fmt: skip
def test_what_gguf_cannot_say(name: str, changes: dict[str, object], says: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, name)
    checkpoints.change_json(tmp_path / "config.json", **changes)
    with pytest.raises(ModelError, match=says):
        convert(tmp_path, tmp_path / "model.gguf")
