"""Writes a GGUF file of a given llama shape with random weights, for speed and memory at sizes that no package carries:
`python -m zipcache_rt.random_gguf OUT.gguf [--layers 32] [--embd 4096] ... [--type q8_0]`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import _core, cli
from .quantize import need_gguf

TYPES = ("f16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")


@dataclass(frozen=True)
class Shape:
    """An 8B llama unless told otherwise."""

    layers: int = 32
    embd: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    ff: int = 14336  # of one expert, where there are experts
    experts: int = 0
    experts_used: int = 0
    vocab: int = 128256
    ctx: int = 131072


def write(path: Path, shape: Shape, type_name: str = "q8_0") -> None:
    """It has no tokenizer: it runs on token ids. Matrices of all layers hold the same random rows.

    type_name: one of TYPES. Raises ArgumentError where the package gguf is not installed.
    """
    need_gguf()
    import gguf

    kind = gguf.GGMLQuantizationType[type_name.upper()]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.embd)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_feed_forward_length(shape.ff)
    writer.add_context_length(shape.ctx)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")  # or llama.cpp does not load it
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    random = np.random.default_rng(0)
    made: dict[tuple[int, ...], NDArray[np.uint8]] = {}

    def matrix(name: str, *sizes: int) -> None:
        if sizes not in made:
            rows = (-1, sizes[-1])
            values = (random.standard_normal(sizes, np.float32) / np.sqrt(sizes[-1])).astype(np.float32)
            made[sizes] = _core.quantize(values.reshape(rows), kind, 0, name).reshape(*sizes[:-1], -1)
        writer.add_tensor(name, made[sizes], raw_dtype=kind)

    matrix("token_embd.weight", shape.vocab, shape.embd)
    writer.add_tensor("output_norm.weight", np.ones(shape.embd, np.float32))
    for i in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(shape.embd, np.float32))
        for name, n_out, n_in in (
            ("attn_q", q, shape.embd),
            ("attn_k", kv, shape.embd),
            ("attn_v", kv, shape.embd),
            ("attn_output", shape.embd, q),
        ):
            matrix(f"blk.{i}.{name}.weight", n_out, n_in)
        for name, n_out, n_in in (
            ("ffn_gate", shape.ff, shape.embd),
            ("ffn_up", shape.ff, shape.embd),
            ("ffn_down", shape.embd, shape.ff),
        ):
            if shape.experts:
                matrix(f"blk.{i}.{name}_exps.weight", shape.experts, n_out, n_in)
            else:
                matrix(f"blk.{i}.{name}.weight", n_out, n_in)
        if shape.experts:
            router = random.standard_normal((shape.experts, shape.embd), np.float32) / np.sqrt(shape.embd)
            writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", router.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.random_gguf", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="q8_0", choices=TYPES)
    for name, value in vars(Shape()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=value, help="(default: %(default)s)")
    args = parser.parse_args()
    shape = Shape(**{name: getattr(args, name) for name in vars(Shape())})
    write(args.out, shape, args.type)


if __name__ == "__main__":
    cli.run(main)
