"""Converted checkpoints of every architecture: this runtime and llama.cpp against transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from helpers.compare import mean_kl
from helpers.llama_cpp_oracle import teacher_forced_logits
from zipcache_rt import KvOptions, Model
from zipcache_rt.convert import convert

pytest.importorskip("torch", reason="the extra 'oracle' (torch, transformers) is not installed")
pytest.importorskip("transformers", reason="the extra 'oracle' (torch, transformers) is not installed")
from helpers import checkpoints

N_TOKENS = 64
TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, checkpoints.N_VOCAB, N_TOKENS).astype(np.int32)


@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("name", checkpoints.CASES)
def test_logits_match_transformers(name: str, kind: str, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, name)
    file = tmp_path / "model.gguf"
    convert(tmp_path, file, type=kind)
    tokens = random_tokens()
    expected = checkpoints.logits(model, tokens)
    got = Model(file, threads=2).session(n_ctx=2 * N_TOKENS, kv=KvOptions("f16")).score(tokens)
    print(f"{name} {kind}: mean KL {mean_kl(expected, got):.1e}")
    assert mean_kl(expected, got) <= TOLERANCE[kind]
    assert same_top(expected, got)


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs llama-cpp-python (the 'oracle' extra), which builds llama.cpp")
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("name", checkpoints.CASES)
def test_llama_cpp_runs_the_file(name: str, kind: str, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, name)
    file = tmp_path / "model.gguf"
    convert(tmp_path, file, type=kind, verify=False)
    tokens = random_tokens()
    expected = checkpoints.logits(model, tokens)
    got = teacher_forced_logits(file, tokens)
    print(f"{name} {kind}, llama.cpp: mean KL {mean_kl(expected, got):.1e}")
    assert mean_kl(expected, got) <= TOLERANCE[kind]
    assert same_top(expected, got)


def same_top(expected: np.ndarray, got: np.ndarray) -> bool:
    """Whether the best token is the same; of two that transformers has within a hundredth, either."""
    chosen = np.take_along_axis(expected, got.argmax(-1)[:, None], -1)[:, 0]
    return bool((chosen >= expected.max(-1) - 0.01).all())
