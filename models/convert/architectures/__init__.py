"""The families of models, by the class that a checkpoint's configuration names."""

from __future__ import annotations

from ..._core import ModelError
from ..config import Config, shown
from . import gemma3, llama, mixtral, phi3, qwen2, qwen3, qwen3moe
from .family import Family

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": llama.LLAMA,
    "MistralForCausalLM": llama.MISTRAL,
    "MixtralForCausalLM": mixtral.MIXTRAL,
    "Qwen2ForCausalLM": qwen2.QWEN2,
    "Qwen3ForCausalLM": qwen3.QWEN3,
    "Qwen3MoeForCausalLM": qwen3moe.QWEN3MOE,
    "Gemma3ForCausalLM": gemma3.GEMMA3,
    "Gemma3ForConditionalGeneration": gemma3.GEMMA3_MULTIMODAL,
    "Phi3ForCausalLM": phi3.PHI3,
}


def find_family(config: Config) -> Family:
    """Raises ModelError that lists the known ones."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or names[0] not in FAMILIES:
        raise ModelError(f"{config.name('architectures')} is {shown(names)}; accepted: one of {', '.join(FAMILIES)}")
    return FAMILIES[names[0]]
