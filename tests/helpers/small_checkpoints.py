"""A small llama checkpoint written without PyTorch, for what is not about logits: tokenizers, damage, shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

N_EMBD, N_FF, N_HEADS, N_KV_HEADS, N_LAYERS = 16, 32, 2, 1, 2
Tensors = dict[str, NDArray[Any]]


def config(n_vocab: int, **changes: Any) -> dict[str, Any]:
    values = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": N_HEADS,
        "num_hidden_layers": N_LAYERS,
        "num_key_value_heads": N_KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": n_vocab,
    }
    return values | changes


def tensors(n_vocab: int, seed: int = 0) -> Tensors:
    """float32, [n_out, n_in]."""
    random = np.random.default_rng(seed)
    head_dim = N_EMBD // N_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (n_vocab, N_EMBD),
        "model.norm.weight": (N_EMBD,),
        "lm_head.weight": (n_vocab, N_EMBD),
    }
    for i in range(N_LAYERS):
        p = f"model.layers.{i}."
        shapes |= {p + f"{name}.weight": (N_EMBD,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {p + f"self_attn.{name}_proj.weight": (N_EMBD, N_EMBD) for name in "qo"}
        shapes |= {p + f"self_attn.{name}_proj.weight": (N_KV_HEADS * head_dim, N_EMBD) for name in "kv"}
        shapes |= {p + f"mlp.{name}_proj.weight": (N_FF, N_EMBD) for name in ("gate", "up")}
        shapes[p + "mlp.down_proj.weight"] = (N_EMBD, N_FF)
    return {
        name: (random.standard_normal(shape) + (len(shape) == 1)).astype(np.float32) for name, shape in shapes.items()
    }


def write(folder: Path, n_vocab: int, *, n_shards: int = 0, **changes: Any) -> Tensors:
    """config.json and weights: one file, or so many shards with an index. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(n_vocab)
    (folder / "config.json").write_text(json.dumps(config(n_vocab, **changes)))
    if not n_shards:
        save_file(made, folder / "model.safetensors", {"format": "pt"})
        return made
    names = [f"model-{i + 1:05}-of-{n_shards:05}.safetensors" for i in range(n_shards)]
    index = {name: names[i % n_shards] for i, name in enumerate(made)}
    for file in names:
        save_file({name: made[name] for name in made if index[name] == file}, folder / file, {"format": "pt"})
    text = json.dumps({"metadata": {"total_size": sum(t.nbytes for t in made.values())}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return made
