"""Streams a continuation: `python examples/stream.py model.gguf "Once upon a time"`."""

import sys

from zipcache_rt import Model, SamplerOptions


def main(path: str, prompt: str) -> None:
    with Model(path) as model, model.session() as session:
        options = SamplerOptions(temperature=0.7, seed=1)
        for piece in session.generate(prompt, max_tokens=64, sampler=options, stop=["\n\n"]):
            print(piece.text, end="", flush=True)
        kv, stats = session.kv_stats(), session.stats
        print(f"\n{stats.decode_rate:.1f} tokens/s, KV cache {kv.bytes} bytes at {kv.bits:.1f} bits an element")


if __name__ == "__main__":
    main(*sys.argv[1:3])
