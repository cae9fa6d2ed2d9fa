"""Every architecture with tiny random f32 weights, against plain NumPy, and prefill against decode."""

from pathlib import Path

import numpy as np
import pytest

from helpers import numpy_forward, tiny_models
from helpers.compare import mean_kl, top1_agreement
from zipcache_rt import KvOptions, Model, ModelError

N_TOKENS = 64


@pytest.mark.parametrize("name", tiny_models.SHAPES)
def test_logits_match_numpy(name: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES[name]
    weights = tiny_models.random_weights(shape)
    model = Model(tiny_models.write(tmp_path / "tiny.gguf", shape, weights), threads=2)
    tokens = np.random.default_rng(1).integers(0, tiny_models.N_VOCAB, N_TOKENS).astype(np.int32)
    expected = numpy_forward.logits(shape, weights, tokens)
    decoded = model.session().score(tokens)
    assert mean_kl(expected, decoded) <= 1e-4
    assert top1_agreement(expected, decoded) >= 0.98
    for n in (1, 2, 13, N_TOKENS):  # 13: one more than the sliding windows
        session = model.session()
        session.prefill(tokens[:n])
        assert mean_kl(expected[n - 1 : n], session.logits[None]) <= 1e-4
    session = model.session()
    session.prefill(tokens[:20])
    session.prefill(tokens[20:45])
    assert mean_kl(expected[44:], np.vstack([session.logits, session.score(tokens[45:])])) <= 1e-4


@pytest.mark.parametrize("name", ["gemma3", "qwen3moe"])
def test_prefill_in_chunks_matches_numpy(name: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES[name]
    weights = tiny_models.random_weights(shape)
    path = tiny_models.write(tmp_path / "tiny.gguf", shape, weights, **{f"{name}__context_length": 2048})
    tokens = np.random.default_rng(2).integers(0, tiny_models.N_VOCAB, 1100).astype(np.int32)  # three chunks of 512
    session = Model(path, threads=2).session()
    session.prefill(tokens)
    assert mean_kl(numpy_forward.logits(shape, weights, tokens)[-1:], session.logits[None]) <= 1e-4


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_behind_a_compressed_cache(name: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES[name]
    model = Model(tiny_models.write(tmp_path / "tiny.gguf", shape, tiny_models.random_weights(shape)), threads=2)
    tokens = np.random.default_rng(3).integers(0, tiny_models.N_VOCAB, 250).astype(np.int32)
    logits = []
    for kv in ("f16", "uniform:8"):
        session = model.session(kv=KvOptions.parse(kv))
        session.prefill(tokens[:130])
        logits.append(session.score(tokens[130:]))
    assert session.kv_stats().compressed_bits < 16
    assert 0 < mean_kl(*logits) <= 0.02


def test_an_unknown_architecture_names_the_known_ones(tmp_path: Path) -> None:
    shape = tiny_models.Shape("mamba")
    path = tiny_models.write(tmp_path / "tiny.gguf", shape, tiny_models.random_weights(shape))
    with pytest.raises(ModelError, match="'mamba'; accepted: llama, qwen2, qwen3, qwen3moe, gemma3, phi3"):
        Model(path)
