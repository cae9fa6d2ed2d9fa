"""Tiny checkpoints as transformers saves them: random weights of every architecture, with a trained tokenizer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from helpers import trained_tokenizers

N_VOCAB = 320
N_CTX = 256


@dataclass(frozen=True)
class Case:
    """A model's class and configuration class in transformers, and what its configuration says beyond COMMON.

    vision: of a multimodal model, whose language model the rest describes."""

    model: str
    config: str
    values: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CTX,
    "attn_implementation": "eager",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
_FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 9.0]}
_EXPERTS = {"num_experts_per_tok": 2}
_GEMMA3 = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 12,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
_SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

CASES = {
    "llama": Case("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama-tied-biased": Case("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-wide-heads": Case("LlamaForCausalLM", "LlamaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    "llama-linear": Case("LlamaForCausalLM", "LlamaConfig", _rope("linear", factor=4.0)),
    "llama3": Case("LlamaForCausalLM", "LlamaConfig", {"head_dim": 16} | _LLAMA3),
    "llama-yarn": Case("LlamaForCausalLM", "LlamaConfig", {"head_dim": 16} | _YARN),
    "mistral": Case("MistralForCausalLM", "MistralConfig", {"sliding_window": None}),
    "mixtral": Case("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4} | _EXPERTS),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen2-yarn": Case(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        _rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3, beta_fast=16.0),
    ),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3moe": Case(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True} | _EXPERTS,
    ),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA3),
    "gemma3-multimodal": Case("Gemma3ForConditionalGeneration", "Gemma3Config", _GEMMA3, _SIGLIP),
    "phi3": Case("Phi3ForCausalLM", "Phi3Config"),
    "phi3-windows": Case("Phi3ForCausalLM", "Phi3Config", {"sliding_window": 20}),
    "phi3-long": Case("Phi3ForCausalLM", "Phi3Config", {"original_max_position_embeddings": 32} | _rope("longrope", **_FACTORS)),
    "phi3-short": Case(
        "Phi3ForCausalLM",
        "Phi3Config",
        {"max_position_embeddings": 1024, "original_max_position_embeddings": 256} | _rope("longrope", **_FACTORS),
    ),
}  # fmt: skip


def make_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """The model in transformers, weights large enough that logits are not flat."""
    case = CASES[name]
    values = COMMON | case.values | changes
    if case.vision:
        values = {"text_config": values, "vision_config": case.vision, "attn_implementation": "eager"}
    config = getattr(transformers, case.config)(**values)
    torch.manual_seed(seed)
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        for key, values in model.named_parameters():
            if values.ndim == 1:
                values += 0.2 * torch.randn_like(values)
            else:
                values.normal_(0, (4 if "embed" in key else 1.2) / values.shape[-1] ** 0.5)
    return model


def write(folder: Path, name: str, *, tokenizer: bool = True, dtype: Any = torch.float32, **save: Any) -> Any:
    """Saves the model with a byte-level tokenizer; save: further arguments of save_pretrained. Returns the model."""
    model = make_model(name).to(dtype)
    model.save_pretrained(folder, **save)
    if tokenizer:
        trained_tokenizers.write_byte_level(folder, "llama-bpe", N_VOCAB)
    return model


def logits(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32 [n_tokens, n_vocab]: the logits after every token."""
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].float().numpy()
    return result


def change_json(path: Path, **changes: Any) -> None:
    """Rewrites keys of a JSON file; None takes a key away."""
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values[key] = value
        if value is None:
            del values[key]
    path.write_text(json.dumps(values))
