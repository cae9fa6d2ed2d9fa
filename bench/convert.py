"""Time, memory and speed of a conversion, on a checkpoint of random weights in eight shards.

python bench/convert.py [--gb 2] [--type f16 q8_0 ...] [--threads N] [--folder DIR]

Each run is a process of its own. Its memory is bounded while it writes; verification then maps the new file and runs
it, so that all of it counts as resident: its peak is shown apart.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common import in_fresh_process, numbers_table, peak_bytes

N_SHARDS = 8
EMBD, FF, HEADS, KV_HEADS, VOCAB = 2048, 8192, 32, 8, 32000
FIXED = 300e6  # bytes that the bound of memory allows beside the tensors


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    kv = EMBD // HEADS * KV_HEADS
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, EMBD), "model.norm.weight": (EMBD,)}
    made["lm_head.weight"] = (VOCAB, EMBD)
    for i in range(layers):
        p = f"model.layers.{i}."
        made |= {p + f"{name}.weight": (EMBD,) for name in ("input_layernorm", "post_attention_layernorm")}
        made |= {p + f"self_attn.{name}_proj.weight": (EMBD, EMBD) for name in "qo"}
        made |= {p + f"self_attn.{name}_proj.weight": (kv, EMBD) for name in "kv"}
        made |= {p + f"mlp.{name}_proj.weight": (FF, EMBD) for name in ("gate", "up")}
        made[p + "mlp.down_proj.weight"] = (EMBD, FF)
    return made


def write(folder: Path, gigabytes: float) -> tuple[int, int]:
    """A llama of about so many bytes in f16. Returns all its bytes, and those of its largest tensor."""
    fixed, one = (sum(2 * int(np.prod(s)) for s in shapes(n).values()) for n in (0, 1))
    layers = max(1, round((gigabytes * 1e9 - fixed) / (one - fixed)))
    made = shapes(layers)
    random = np.random.default_rng(0)
    values = (random.standard_normal(VOCAB * EMBD, np.float32) / 50).astype(np.float16)
    names = list(made)
    index = {}
    for shard in range(N_SHARDS):
        file = f"model-{shard + 1:05}-of-{N_SHARDS:05}.safetensors"
        own = names[shard * len(names) // N_SHARDS : (shard + 1) * len(names) // N_SHARDS]
        save_file({name: values[: int(np.prod(made[name]))].reshape(made[name]) for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": EMBD,
        "intermediate_size": FF,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    sizes = [2 * int(np.prod(shape)) for shape in made.values()]
    return sum(sizes), max(sizes)


def write_tokenizer(folder: Path) -> None:
    words = [*pre_tokenizers.ByteLevel.alphabet(), "ab", *(f"word{i}" for i in range(VOCAB - 257))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def child(folder: Path, kind: str, threads: int, verify: bool) -> None:
    from zipcache_rt.convert import convert

    began = time.perf_counter()
    convert(folder, folder / "out.gguf", type=kind, threads=threads, verify=verify)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_bytes()}))
    (folder / "out.gguf").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2)
    parser.add_argument("--type", nargs="+", default=["f16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "VERIFY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), args.type[0], args.threads, args.child[1] == "True")
        return
    numbers = ("seconds", "MB/s", "peak MB", "with verification: seconds", "peak MB")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        total, largest = write(Path(name), args.gb)
        bound = (3 * largest + FIXED) / 1e6
        table = numbers_table(
            f"{total / 1e6:,.0f} MB of f16 in {N_SHARDS} shards; bound of memory {bound:,.0f} MB", ("type",), numbers
        )
        for kind in args.type:
            runs = [
                in_fresh_process(__file__, "--child", name, verify, "--type", kind, "--threads", args.threads)
                for verify in (False, True)
            ]
            plain, verified = ((run["seconds"], f"{run['seconds']:.1f}", f"{run['peak'] / 1e6:,.0f}") for run in runs)
            table.add_row(kind, plain[1], f"{total / 1e6 / plain[0]:,.0f}", plain[2], *verified[1:])
    from zipcache_rt import cli

    console = Console(width=120)
    console.print(f"{cli.machine()}; {args.threads} threads", markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
