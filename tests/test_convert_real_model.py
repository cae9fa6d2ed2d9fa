"""SmolLM2 there and back: its weights as a checkpoint, converted, beside the file they came from."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from zipcache_rt.convert import convert

from helpers import gguf_checkpoint
from helpers.dequantize import dequantize
from zipcache_rt import KvOptions, Model

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
