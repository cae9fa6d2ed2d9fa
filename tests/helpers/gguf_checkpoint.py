"""A llama GGUF file as the checkpoint it could have come from: dequantized to f16, with its tokenizer."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

from helpers import tokenizer_oracles

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def write(folder: Path, source: Path) -> None:
    reader = gguf.GGUFReader(source)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    made = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    heads = keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]
    state: dict[str, NDArray[Any]] = {}
    for name, values in made.items():
        stem, kind = name.rsplit(".", 1)
        part = stem.rsplit(".", 1)[-1]
        if part in ("attn_q", "attn_k"):
            values = halves(values, heads[part == "attn_k"])
        layer = f"model.layers.{stem.split('.')[1]}." if stem.startswith("blk.") else ""
        state[f"{layer}{NAMES[part]}.{kind}"] = values.astype(np.float32 if values.ndim == 1 else np.float16)
    save_file(state, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"],
        "max_position_embeddings": keys["llama.context_length"],
        "num_attention_heads": heads[0],
        "num_hidden_layers": keys["llama.block_count"],
        "num_key_value_heads": heads[1],
        "rms_norm_eps": keys["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": keys["llama.rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in made,
        "vocab_size": len(keys["tokenizer.ggml.tokens"]),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_oracles.byte_level(source).save(str(folder / "tokenizer.json"))
    tokens = keys["tokenizer.ggml.tokens"]
    described = {
        "bos_token": tokens[keys["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[keys["tokenizer.ggml.eos_token_id"]],
        "chat_template": keys["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def halves(matrix: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows of every head from neighbouring RoPE pairs to first and second half, as checkpoints have them."""
    pairs = matrix.reshape(n_heads, -1, 2, matrix.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(matrix.shape)
