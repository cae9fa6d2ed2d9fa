"""Whole models against llama.cpp, teacher-forced.

Where weights are quantized, both sides also quantize activations to 8 bits, and the last bit of a sum decides how they
round: llama.cpp differs from itself (flash attention on or off) by a mean KL of 0.005 on SmolLM2 Q4_1 and 0.009 on
gemma-3 Q4_K_M. So the models are compared as f16, where nothing is rounded that coarsely.
"""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from helpers import models
from helpers.compare import mean_kl, top1_agreement
from helpers.dequantize import dequantize
from helpers.llama_cpp_oracle import teacher_forced_logits
from zipcache_rt import KvOptions, Model, random_gguf

N_TOKENS = 200
TEXT = (Path(__file__).parent / "test_api.py").read_text()[:1500] + (
    "The lighthouse keeper climbed the stairs every evening before dusk. He carried a lamp, a book and a piece of bread. "
    "On clear nights he could see the boats far out, and he wrote down their lights, one by one, in a grey notebook. "
) * 2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="needs llama-cpp-python (the 'oracle' extra), which builds llama.cpp",
)


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_logits_match_llama_cpp(name: str, tmp_path: Path) -> None:
    source = models.smollm2() if name == "smollm2" else models.gemma3(tmp_path)
    path = dequantize(source, tmp_path / "f16.gguf", gguf.GGMLQuantizationType.F16)
    model = Model(path, threads=2)
    tokens = np.array(model.tokenize(TEXT)[:N_TOKENS], np.int32)
    assert len(tokens) == N_TOKENS
    expected = teacher_forced_logits(path, tokens)
    got = model.session(kv=KvOptions("f16")).score(tokens)
    print(f"{name}: mean KL {mean_kl(expected, got):.2e}, top-1 agreement {top1_agreement(expected, got):.4f}")
    assert mean_kl(expected, got) <= 1e-3
    assert top1_agreement(expected, got) >= 0.99


def test_llama_cpp_runs_random_models_too(tmp_path: Path) -> None:
    """For benches beside it. It has no tokenizer, and takes token ids as we do."""
    path = tmp_path / "random.gguf"
    random_gguf.write(path, random_gguf.Shape(2, 128, 4, 2, 32, 256, vocab=512, ctx=512), "f16")
    model = Model(path, threads=2)
    assert not model.info.has_tokenizer
    tokens = np.arange(0, 512, 8, dtype=np.int32)
    got = model.session(kv=KvOptions("f16")).score(tokens)
    assert mean_kl(teacher_forced_logits(path, tokens), got) <= 1e-3
