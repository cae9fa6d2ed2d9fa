"""Every architecture with tiny random f32 weights against transformers; needs the extra `oracle`."""

from pathlib import Path

import numpy as np
import pytest

from helpers import numpy_forward, tiny_models
from helpers.compare import mean_kl
from zipcache_rt import KvOptions, Model

pytest.importorskip("torch", reason="the extra 'oracle' (torch, transformers) is not installed")
pytest.importorskip("transformers", reason="the extra 'oracle' (torch, transformers) is not installed")
from helpers import transformers_forward


@pytest.mark.parametrize("name", tiny_models.SHAPES)
def test_logits_match_transformers(name: str, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES[name]
    weights = tiny_models.random_weights(shape)
    model = Model(tiny_models.write(tmp_path / "tiny.gguf", shape, weights), threads=2)
    tokens = np.random.default_rng(1).integers(0, tiny_models.N_VOCAB, 200).astype(np.int32)
    expected = transformers_forward.logits(shape, weights, tokens)
    assert mean_kl(expected, model.session(kv=KvOptions("f16")).score(tokens)) <= 1e-4
    # the NumPy forward that stands in for transformers in test_architectures.py
    assert mean_kl(expected, numpy_forward.logits(shape, weights, tokens)) <= 1e-6
    session = model.session(kv=KvOptions("f16"))
    session.prefill(tokens)
    assert mean_kl(expected[-1:], session.logits[None]) <= 1e-4
