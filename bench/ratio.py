"""How many bytes a cache takes: measured beside the paper's formula, on the KV shape of an 8B model.

python bench/ratio.py [--kv zipcache auto q4_0] [--context 4096] [--kv-heads 8] [--head-dim 128]

One layer of random weights; keys and values are random, so only bytes are looked at.
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from common import numbers_table
from zipcache_rt import KvOptions, Model, cli
from zipcache_rt.random_gguf import Shape, write

N_VOCAB = 512


def formula(options: KvOptions, n_tokens: int, channels: int) -> float:
    """The paper's ratio for one sequence (its section 3.2, with b = 1): 16-bit elements over codes, a (min, scale) pair
    for each channel of either subset of keys, one for each token's values, and the normalizer c."""
    codes = options.ratio * options.high_bits + (1 - options.ratio) * options.low_bits
    parameters = 2 * 2 * channels + 2 * n_tokens + channels
    elements = 2 * n_tokens * channels
    return 16 * elements / (codes * elements + 16 * parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=["zipcache", "auto", "q8_0", "q4_0"], metavar="POLICY")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    args = parser.parse_args()
    shape = Shape(1, 256, 4 * args.kv_heads, args.kv_heads, args.head_dim, 256, N_VOCAB, args.context + 8)
    title = f"{args.context} tokens, {args.kv_heads} KV heads, head_dim {args.head_dim}, one layer"
    table = numbers_table(title, ("KV",), ("bits", "ratio", "paper's ratio", "bits, all", "ratio, all", "bytes"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write(path, shape)
        model = Model(path)
        for word in args.kv:
            options = KvOptions.parse(word)
            session = model.session(kv=options)
            session.prefill([i * 7919 % N_VOCAB for i in range(args.context)])
            kv = session.kv_stats()
            paper = formula(options, args.context, args.kv_heads * args.head_dim)
            table.add_row(
                word,
                f"{kv.compressed_bits:.3f}",
                f"{16 / kv.compressed_bits:.3f}" if kv.compressed_bits else "-",
                f"{paper:.3f}" if options.policy == "zipcache" else "-",
                f"{kv.bits:.3f}",
                f"{kv.ratio:.3f}",
                f"{kv.bytes:,}",
            )
    console = Console(width=110)
    console.print(cli.machine())
    console.print(table)
    console.print("bits: of compressed tokens, everything counted; all: with the uncompressed window and the probes")


if __name__ == "__main__":
    main()
