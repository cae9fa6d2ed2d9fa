"""What a family of models is made of, as data: see llama.py for the plainest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..._core import ModelError
from ..checkpoint import Checkpoint
from ..config import Config
from ..recipe import Part, Recipe

Metadata = dict[str, bool | int | float | str]  # by key, without the architecture's prefix


@dataclass(frozen=True)
class Shape:
    """A model's dimensions, as its configuration states them."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx: int  # tokens
    norm_epsilon: float
    tied: bool  # the embedding is the output matrix too
    n_experts: int = 0
    n_experts_used: int = 0
    n_expert_ff: int = 0

    def size(self, word: str) -> int:
        """A dimension by the word that tables use."""
        sizes = {
            "embd": self.n_embd,
            "q": self.n_heads * self.head_dim,
            "kv": self.n_kv_heads * self.head_dim,
            "qkv": (self.n_heads + 2 * self.n_kv_heads) * self.head_dim,
            "head": self.head_dim,
            "ff": self.n_ff,
            "2ff": 2 * self.n_ff,
            "vocab": self.n_vocab,
        }
        return sizes[word]


@dataclass(frozen=True)
class Rule:
    """One tensor of a layer: its name there and here (without ".weight"), its shape in words of Shape.size()."""

    target: str
    source: str
    shape: tuple[str, ...]
    kind: str = "weight"  # or "bias"
    rope_pairs: bool = False  # rows are reordered to neighbouring RoPE pairs
    plus: float = 0  # added to every element


NORMS = (
    Rule("attn_norm", "input_layernorm", ("embd",)),
    Rule("ffn_norm", "post_attention_layernorm", ("embd",)),
)
HEAD_NORMS = (
    Rule("attn_q_norm", "self_attn.q_norm", ("head",)),
    Rule("attn_k_norm", "self_attn.k_norm", ("head",)),
)
ATTENTION = (
    Rule("attn_q", "self_attn.q_proj", ("q", "embd")),
    Rule("attn_k", "self_attn.k_proj", ("kv", "embd")),
    Rule("attn_v", "self_attn.v_proj", ("kv", "embd")),
    Rule("attn_output", "self_attn.o_proj", ("embd", "q")),
)
QKV_BIASES = (
    Rule("attn_q", "self_attn.q_proj", ("q",), "bias"),
    Rule("attn_k", "self_attn.k_proj", ("kv",), "bias"),
    Rule("attn_v", "self_attn.v_proj", ("kv",), "bias"),
)
FFN = (
    Rule("ffn_gate", "mlp.gate_proj", ("ff", "embd")),
    Rule("ffn_up", "mlp.up_proj", ("ff", "embd")),
    Rule("ffn_down", "mlp.down_proj", ("embd", "ff")),
)


@dataclass(frozen=True)
class Experts:
    """Names of a layer's experts: one matrix each ({} is the expert), or, fused, all of them in two tensors, as
    transformers saves them when told not to keep the original format."""

    gate: str
    up: str
    down: str
    router: str
    fused_gate_up: str = "mlp.experts.gate_up_proj"  # [n_experts, 2 * n_expert_ff, n_embd], the gate first
    fused_down: str = "mlp.experts.down_proj"  # [n_experts, n_embd, n_expert_ff]
    fused_router: str = "mlp.gate.weight"


def _nothing(config: Config, shape: Shape) -> Metadata:
    return {}


@dataclass(frozen=True)
class Family:
    """A family: tables of names, and what its configuration must and may say."""

    name: str  # general.architecture
    defaults: dict[str, Any]  # of transformers' configuration class
    rules: Callable[[Config], tuple[Rule, ...]]
    metadata: Callable[[Config, Shape], Metadata] = _nothing  # also refuses what GGUF cannot say
    rope_types: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    activation: str = "hidden_act"  # the key
    activations: tuple[str, ...] = ("silu", "swish")
    has_windows: bool = False  # the GGUF form knows sliding windows
    norm_plus: float = 0  # added to the last norm
    experts: Experts | None = None
    expert_ff: str = "intermediate_size"  # the key
    n_experts: tuple[str, ...] = ("num_local_experts",)  # the keys it may have
    text_config: bool = False  # the language model is a part of a multimodal one
    roots: tuple[tuple[str, str], ...] = (("model.", "lm_head"),)  # (what layers and norms begin with, output matrix)
    ignored: tuple[str, ...] = field(default=(".rotary_emb.inv_freq",))  # parts of names that need not be converted


def read_shape(config: Config, family: Family) -> Shape:
    n_embd = config.integer("hidden_size")
    n_heads = config.integer("num_attention_heads", 1, 1 << 16)
    n_kv_heads = config.integer("num_key_value_heads", 1, 1 << 16) if config.get("num_key_value_heads") else n_heads
    if n_heads % n_kv_heads:
        config.refuse("num_key_value_heads", f"a divisor of the {n_heads} heads")
    if config.get("head_dim") is None and n_embd % n_heads:
        config.refuse("hidden_size", f"a multiple of the {n_heads} heads")
    head_dim = config.integer("head_dim", 2, 1 << 16) if config.get("head_dim") is not None else n_embd // n_heads
    if head_dim % 2:
        raise ModelError(f"{config.name('head_dim')} is {head_dim}; accepted: an even number")
    config.only(family.activation, lambda x: x in family.activations, " or ".join(family.activations))
    n_experts = config.integer(config.first(*family.n_experts), 2, 1 << 16) if family.experts else 0
    return Shape(
        n_layers=config.integer("num_hidden_layers", 1, 4096),
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=config.integer("intermediate_size"),
        n_vocab=config.integer("vocab_size"),
        n_ctx=config.integer("max_position_embeddings", 1, 1 << 30),
        norm_epsilon=config.number("rms_norm_eps", 0, 1),
        tied=config.flag("tie_word_embeddings"),
        n_experts=n_experts,
        n_experts_used=config.integer("num_experts_per_tok", 1, n_experts) if family.experts else 0,
        n_expert_ff=config.integer(family.expert_ff) if family.experts else 0,
    )


def recipes(family: Family, config: Config, shape: Shape, checkpoint: Checkpoint) -> Iterator[Recipe]:
    """Every tensor of the GGUF file but RoPE factors, in the order it will have there."""
    root, output = _root(family, checkpoint)
    yield _whole("token_embd.weight", root + "embed_tokens.weight", (shape.n_vocab, shape.n_embd))
    yield _whole("output_norm.weight", root + "norm.weight", (shape.n_embd,), plus=family.norm_plus)
    if not shape.tied:
        yield _whole("output.weight", output + ".weight", (shape.n_vocab, shape.n_embd))
    rules = family.rules(config)
    for i in range(shape.n_layers):
        yield from (_from_rule(rule, i, root, shape) for rule in rules)
        if family.experts:
            yield from _expert_recipes(family.experts, i, root, shape, checkpoint)


def _root(family: Family, checkpoint: Checkpoint) -> tuple[str, str]:
    found = [pair for pair in family.roots if pair[0] + "embed_tokens.weight" in checkpoint]
    return (found or family.roots)[0]


def _whole(target: str, source: str, shape: tuple[int, ...], *, head_dim: int = 0, plus: float = 0) -> Recipe:
    n_rows = 1
    for n in shape if len(shape) == 1 else shape[:-1]:
        n_rows *= n
    return Recipe(target, shape, (Part(source, 0, n_rows, head_dim, plus),))


def _from_rule(rule: Rule, layer: int, root: str, shape: Shape) -> Recipe:
    return _whole(
        f"blk.{layer}.{rule.target}.{rule.kind}",
        f"{root}layers.{layer}.{rule.source}.{rule.kind}",
        tuple(shape.size(word) for word in rule.shape),
        head_dim=shape.head_dim if rule.rope_pairs else 0,
        plus=rule.plus,
    )


def _expert_recipes(names: Experts, layer: int, root: str, shape: Shape, checkpoint: Checkpoint) -> list[Recipe]:
    prefix, n, ff, embd = f"{root}layers.{layer}.", shape.n_experts, shape.n_expert_ff, shape.n_embd
    fused = prefix + names.fused_gate_up in checkpoint
    router = prefix + (names.fused_router if fused else names.router)
    out = [_whole(f"blk.{layer}.ffn_gate_inp.weight", router, (n, embd))]
    for target, name, offset in (("gate", names.gate, 0), ("up", names.up, ff)):
        if fused:
            parts = tuple(Part(prefix + names.fused_gate_up, 2 * ff * e + offset, ff) for e in range(n))
        else:
            parts = tuple(Part(prefix + name.format(e), 0, ff) for e in range(n))
        out.append(Recipe(f"blk.{layer}.ffn_{target}_exps.weight", (n, ff, embd), parts))
    if fused:
        parts = (Part(prefix + names.fused_down, 0, n * embd),)
    else:
        parts = tuple(Part(prefix + names.down.format(e), 0, embd) for e in range(n))
    return [*out, Recipe(f"blk.{layer}.ffn_down_exps.weight", (n, embd, ff), parts)]
