"""A conversation whose second turn prefills only what is new: `python examples/chat.py model.gguf`."""

import sys

from zipcache_rt import Model, Session


def ask(session: Session, messages: list[dict[str, str]], text: str) -> None:
    before = session.stats.prefill_tokens
    messages.append({"role": "user", "content": text})
    reply = ""
    for piece in session.chat(messages, max_tokens=64):
        print(piece.text, end="", flush=True)
        reply += piece.text
    messages.append({"role": "assistant", "content": reply})
    print(f"\n({session.stats.prefill_tokens - before} tokens prefilled, {session.n_past} in the cache)")


def main(path: str) -> None:
    with Model(path) as model, model.session() as session:
        messages: list[dict[str, str]] = []
        ask(session, messages, "What is the capital of France?")
        ask(session, messages, "And of Italy?")


if __name__ == "__main__":
    main(*sys.argv[1:2])
