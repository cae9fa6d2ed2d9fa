"""Qwen3: norms on every query and key head, no biases."""

from __future__ import annotations

from ..config import Config
from .family import ATTENTION, FFN, HEAD_NORMS, NORMS, Family, Metadata, Shape
from .qwen2 import QWEN_DEFAULTS


def no_biases(config: Config, shape: Shape) -> Metadata:
    config.only("attention_bias", lambda x: not x, "false: GGUF's qwen3 has no biases")
    return {}


QWEN3 = Family(
    name="qwen3",
    defaults=QWEN_DEFAULTS | {"head_dim": 128},
    rules=lambda config: (*NORMS, *ATTENTION, *HEAD_NORMS, *FFN),
    metadata=no_biases,
)
