"""SmolLM2 there and back: its weights as a checkpoint, converted, beside the file they came from."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from helpers import gguf_checkpoint
from helpers.compare import log_softmax
from helpers.dequantize import dequantize
from zipcache_rt import KvOptions, Model
from zipcache_rt.convert import convert
from zipcache_rt.quantize import Plan, quantize_file

N_TOKENS = 2000
READMES = [Path(__file__).parent.parent / name for name in ("README.md", "native/README.md")]
TEXT = (
    "The lighthouse keeper climbed the stairs every evening before dusk. He carried a lamp, a book and a piece of bread. "
    "On clear nights he could see the boats far out, and he wrote down their lights, one by one, in a grey notebook. "
)


@pytest.fixture(scope="module")
def checkpoint(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    gguf_checkpoint.write(folder, smollm2_path)
    return folder


def test_f16_is_the_same_model(checkpoint: Path, smollm2: Model, smollm2_path: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, tmp_path / "converted.gguf") == []
    plain = dequantize(smollm2_path, tmp_path / "f16.gguf", gguf.GGMLQuantizationType.F16)
    converted, expected = Model(tmp_path / "converted.gguf", threads=2), Model(plain, threads=2)
    tokens = expected.tokenize(TEXT)
    assert converted.tokenize(TEXT) == tokens == smollm2.tokenize(TEXT)
    f16 = KvOptions("f16")
    logits = [model.session(kv=f16).score(np.array(tokens, np.int32)) for model in (converted, expected)]
    assert np.array_equal(*logits)
    for name in ("bos_token", "eos_token", "chat_template", "n_ctx_train", "add_bos"):
        assert getattr(converted.info, name) == getattr(smollm2.info, name)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def perplexity(path: Path) -> float:
    model = Model(path, threads=2)
    tokens = np.array(model.tokenize("\n".join(readme.read_text() for readme in READMES))[: N_TOKENS + 1], np.int32)
    assert len(tokens) == N_TOKENS + 1
    scores = log_softmax(model.session(kv=KvOptions("f16")).score(tokens[:-1]))
    return float(np.exp(-scores[np.arange(N_TOKENS), tokens[1:]].mean()))


def test_quantized_types(checkpoint: Path, tmp_path: Path) -> None:
    """The same bytes as by way of an f16 file, and a perplexity like its own."""
    f16 = tmp_path / "f16.gguf"
    convert(checkpoint, f16)
    expected = perplexity(f16)
    for kind, most in (("q8_0", 0.005), ("q4_k_m", 0.1)):
        direct, later = tmp_path / f"{kind}.gguf", tmp_path / f"later-{kind}.gguf"
        convert(checkpoint, direct, type=kind, threads=2)
        quantize_file(Plan.of(f16, kind), later, threads=2)
        ours, theirs = tensors(direct), tensors(later)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        got = perplexity(direct)
        print(f"{kind}: perplexity {got:.3f}, f16 {expected:.3f}, {got / expected - 1:+.2%}")
        assert abs(got / expected - 1) <= most
