"""Talk to a model: `python -m zipcache_rt.chat [model.gguf]`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from . import Piece, Session, Stats, cli
from ._core import ZipCacheError

HELP = """/help   this text
/reset  forget the conversation
/stats  what the session has done and what its cache holds
/quit   leave (also Ctrl-D)
Alt-Enter begins a new line. Ctrl-C stops a reply."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.chat", description=__doc__)
    cli.add_model_options(parser)
    parser.add_argument("--prompt", help="answer this and exit")
    parser.add_argument("--system", help="the system message")
    cli.add_sampling_options(parser)
    return parser.parse_args(arguments)


def status(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Chat:
    """A conversation: its messages, and the session whose cache follows them."""

    def __init__(self, session: Session, args: argparse.Namespace) -> None:
        self.session = session
        self.args = args
        self.sampler = cli.sampler_options(args)
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.session.reset()
        self.messages = [{"role": "system", "content": self.args.system}] if self.args.system else []

    def ask(self, text: str) -> bool:
        """Streams the reply to stdout. False if Ctrl-C stopped it; what was said of it stays in the conversation."""
        self.messages.append({"role": "user", "content": text})
        before, began = self.session.stats, time.perf_counter()
        said: list[str] = []
        first: float | None = None
        whole = True
        try:
            for piece in self._reply():
                first = first or time.perf_counter() - began
                said.append(piece.text)
                print(cli.harmless(piece.text), end="", flush=True)
        except KeyboardInterrupt:
            whole = False
        except ZipCacheError:
            self.messages.pop()
            raise
        print(flush=True)
        self.messages.append({"role": "assistant", "content": "".join(said)})
        status(closing_line(before, self.session, first))
        return whole

    def _reply(self) -> Iterator[Piece]:
        long = len(str(self.messages[-1]["content"])) > 4 * cli.LONG_PREFILL
        with cli.progress_bar("Reading", shown=long) as progress:
            reply = self.session.chat(
                self.messages,
                max_tokens=self.args.max_tokens,
                sampler=self.sampler,
                stop=self.args.stop,
                progress=progress,
            )
            first = next(reply, None)
        if first:
            yield first
            yield from reply

    def command(self, line: str) -> bool:
        """Runs a /command. False: leave."""
        if line == "/quit":
            return False
        if line == "/reset":
            self.reset()
            status("The conversation is forgotten.")
        elif line == "/stats":
            status(stats_text(self.session))
        else:
            status(HELP if line == "/help" else f"unknown command {line.split()[0]}\n{HELP}")
        return True


def kv_text(session: Session) -> str:
    kv = session.kv_stats()
    size = f"KV {kv.bytes / 2**20:.1f} MiB for {kv.n_tokens} tokens"
    return f"{size} ({kv.bits:.1f} bits/element, ratio {kv.ratio:.2f})"


def stats_text(session: Session) -> str:
    done = session.stats
    return (
        f"prefill {done.prefill_tokens} tokens, {done.prefill_rate:.0f} tokens/s; "
        f"decode {done.decode_tokens} tokens, {done.decode_rate:.1f} tokens/s\n"
        f"context {session.n_past} of {session.n_ctx} tokens; {kv_text(session)}"
    )


def closing_line(before: Stats, session: Session, first: float | None) -> str:
    now = session.stats
    turn = Stats(
        now.prefill_tokens - before.prefill_tokens,
        now.prefill_seconds - before.prefill_seconds,
        now.decode_tokens - before.decode_tokens,
        now.decode_seconds - before.decode_seconds,
    )
    wait = f"first token after {first:.2f} s; " if first is not None else ""
    return (
        f"[{wait}prefill {turn.prefill_tokens} tokens at {turn.prefill_rate:.0f} tokens/s; "
        f"decode {turn.decode_tokens} at {turn.decode_rate:.1f} tokens/s; {kv_text(session)}]"
    )


def history_path() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".local" / "state"
    folder = Path(base) / "zipcache-rt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "chat_history"


def terminal_lines() -> Iterator[str]:
    """Lines a person types, with history and editing. Ctrl-C clears the line, Ctrl-D ends."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    try:
        history = FileHistory(str(history_path()))
    except OSError:
        history = None  # a read-only home is no reason not to talk
    prompt: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
    while True:
        try:
            yield prompt.prompt("> ")
        except KeyboardInterrupt:  # noqa: PERF203 (a person types slower than that)
            continue
        except EOFError:
            return


def talk(chat: Chat) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        status(f"{chat.session.model.info.name or chat.session.model.info.architecture}. /help lists the commands.")
    for line in terminal_lines() if interactive else sys.stdin:
        text = line.strip()
        if text.startswith("/"):
            if not chat.command(text):
                return
        elif text:
            try:
                chat.ask(text)
            except ZipCacheError as error:
                if not interactive:
                    raise
                status(f"error: {cli.harmless(str(error))}")


def main() -> int:
    args = parse()
    chat = Chat(cli.open_session(args), args)
    if args.prompt is not None:
        return 0 if chat.ask(args.prompt) else 130
    talk(chat)
    return 0


if __name__ == "__main__":
    cli.run(main)
