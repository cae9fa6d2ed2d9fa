"""A conversation with a model: its cache, and what is generated from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core, checks
from .options import SamplerOptions

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Piece:
    """One generated token. `text` is whole UTF-8 and may be empty while a character or a stop string is undecided."""

    text: str
    token: int
    logprob: float  # natural log, of the model's own distribution


@dataclass(frozen=True)
class KvStats:
    """What the cache costs, counted from what is allocated."""

    bytes: int
    elements: int  # tokens that each layer sees, summed * 2 * KV heads * head_dim
    bits: float  # bytes * 8 / elements, all-in; 0 when empty
    ratio: float  # 16 / bits; 0 when empty
    n_tokens: int
    compressed_bytes: int  # of the compressed tokens: codes, parameters, order, transforms
    compressed_elements: int  # seen or not: a segment goes when its last token is no longer seen
    compressed_bits: float  # compressed_bytes * 8 / compressed_elements; 0 when none


@dataclass(frozen=True)
class Stats:
    """Work done since the session began."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float  # of batches, all that they took
    scratch_bytes: int = 0  # most that a prefill took beside the cache
    # of prefill_seconds, while Session.time_cache() is on: what compressing took, and bringing back what was compressed
    compress_seconds: float = 0.0
    dequantize_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Tokens a second."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Generation(Iterator[Piece]):
    """A reply in progress: an iterator of Piece, and a context manager.

    close(), leaving its `with`, or dropping it ends the reply; the session stays usable. What next() raises
    (CancelledError, ContextError, what a progress callback raised) leaves it where it was: next() may be called again.
    """

    def __init__(self, session: Session, core: _core.Generation) -> None:
        self._session = session
        self._core: _core.Generation | None = core
        self._finish_reason: str | None = None

    def __next__(self) -> Piece:
        if self._core is None:
            raise StopIteration
        core = self._core
        made = core.next()
        self._finish_reason = core.finish_reason
        if made is None:
            self.close()
            raise StopIteration
        return Piece(*made)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """From any thread: the step in progress, or the next one of the session, raises CancelledError."""
        self._session.cancel()

    def close(self) -> None:
        """Ends the reply. The cache keeps what it holds: the prompt and all tokens but the newest."""
        self._core = None

    @property
    def finish_reason(self) -> str | None:
        """None while it runs or when it was closed early, then "stop" (end token or stop string) or "length"
        (max_tokens, or a full context)."""
        return self._finish_reason


def generate_together(replies: Sequence[Generation]) -> Iterator[tuple[int, Piece]]:
    """The pieces of several replies as they come, each with the number of its reply. A step of all is one pass."""
    running = dict(enumerate(replies))
    while running:
        _core.decode_newest([reply._core for reply in running.values() if reply._core])
        for i, reply in list(running.items()):
            piece = next(reply, None)
            if piece is None:
                del running[i]
            else:
                yield i, piece


class Session:
    """Made by Model.session(); a context manager. Calls from several threads take turns; cancel() may come from any.

    What raises leaves the session as it was before the call, and usable.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        self.model = model
        self._native: _core.Session | None = core

    @property
    def _open(self) -> _core.Session:
        if self._native is None:
            raise _core.ArgumentError("the session is closed; accepted: an open one")
        return self._native

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the cache; its memory is freed once no Generation uses it. Later calls raise ArgumentError."""
        self._native = None

    @property
    def n_ctx(self) -> int:
        """Most tokens the cache may hold."""
        return self._open.n_ctx

    @property
    def n_past(self) -> int:
        """Tokens the cache holds."""
        return self._open.n_past

    @property
    def tokens(self) -> list[int]:
        """The ids of the tokens the cache holds, oldest first."""
        return self._open.tokens

    @property
    def logits(self) -> NDArray[np.float32]:
        """float32 [n_vocab] after the last token. ContextError before the first one and after truncate()."""
        return self._open.logits()

    def prefill(self, tokens: Iterable[int], *, progress: _core.Progress | None = None) -> None:
        """Appends one or more tokens. progress: called with 0..1; an exception it raises stops the work.

        Raises ContextError when they do not fit, ArgumentError for ids the model does not have, CancelledError.
        """
        checks.callback(progress, "progress")
        self._open.prefill(checks.token_array(tokens, "tokens"), progress)

    def decode(self, token: int) -> None:
        """Appends one token."""
        self._open.decode(checks.token_ids([token], "token")[0])

    def score(self, tokens: Iterable[int]) -> NDArray[np.float32]:
        """Appends the tokens one by one: float32 [n_tokens, n_vocab], row i = the logits after tokens[i]."""
        return self._open.score(checks.token_array(tokens, "tokens"))

    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int | None = None,
        sampler: SamplerOptions = SamplerOptions(),  # noqa: B008 (frozen)
        stop: str | Sequence[str] = (),
        progress: _core.Progress | None = None,
    ) -> Generation:
        """Appends the prompt and generates from there, token by token.

        prompt: text, or token ids. Text gets a bos token only in an empty session. max_tokens None: until the context
        is full. stop: the reply ends before any of these strings. The cache then holds all but the newest token.
        """
        if isinstance(prompt, str):
            tokens = self.model.tokenize(prompt, add_bos=None if self.n_past == 0 else False)
        else:
            tokens = checks.token_ids(prompt, "prompt")
        checks.instance(sampler, SamplerOptions, "sampler")
        checks.callback(progress, "progress")
        limit = -1
        if max_tokens is not None:
            limit = checks.integer(max_tokens, "max_tokens", 0, 2**62, "0 or more, or None")
        stops = checks.texts(stop, "stop")
        ids = np.asarray(tokens, np.int32)
        return Generation(self, _core.Generation(self._open, ids, limit, sampler.to_core(), stops, progress))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampler: SamplerOptions = SamplerOptions(),  # noqa: B008 (frozen)
        stop: str | Sequence[str] = (),
        progress: _core.Progress | None = None,
    ) -> Generation:
        """The model's reply to a conversation (mappings with "role" and "content").

        What the cache shares with the rendered conversation is kept; only the rest is prefilled.
        """
        tokens = self.model.tokenize_chat(messages)
        kept = self.tokens
        shared = 0
        while shared < min(len(kept), len(tokens) - 1) and kept[shared] == tokens[shared]:
            shared += 1
        if shared < self.least_kept:  # sliding windows have forgotten what the rest would see
            shared = 0
        # made first: an argument it refuses must not cost the cache
        reply = self.generate(tokens[shared:], max_tokens=max_tokens, sampler=sampler, stop=stop, progress=progress)
        self.truncate(shared)
        return reply

    @property
    def least_kept(self) -> int:
        """The fewest tokens that truncate() can keep, besides 0.

        0 where no layer has forgotten any. A sliding-window layer of a compressed cache drops what its window has
        passed, so the newest token kept must still find its whole window there.
        """
        return self._open.least_kept

    def kv_stats(self) -> KvStats:
        return KvStats(**self._open.kv_stats())

    @property
    def stats(self) -> Stats:
        made = self._open.stats()
        return Stats(
            int(made["prefill_tokens"]),
            made["prefill_seconds"],
            int(made["decode_tokens"]),
            made["decode_seconds"],
            int(made["scratch_bytes"]),
            made["compress_seconds"],
            made["dequantize_seconds"],
        )

    def time_cache(self, on: bool = True) -> None:
        """Whether `stats` are to tell what the cache took of a prefill's seconds. Forks begin without it.

        A GPU is then waited for twice a layer, so that short prompts take longer.
        """
        self._open.time_cache(bool(on))

    @property
    def planned_bytes(self) -> int:
        """Bytes that n_ctx tokens were planned to take at most of the memory of `model.info.device` beside the weights.

        Of a model that is split: what its layers on the GPU take.
        """
        return self._open.planned_bytes

    def fork(self) -> Session:
        """An independent copy that goes on from here."""
        return Session(self.model, self._open.fork())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all of the conversation to a file that Model.load_session() goes on from: token ids, cache, logits.

        It is written under another name in the same folder and then put in place of what was at `path`, so that a save
        that fails leaves the older file as it was. About as large as kv_stats().bytes. Raises FileError.
        """
        self._open.save(checks.path(path, "path"))

    def truncate(self, n_tokens: int) -> None:
        """Keeps the oldest n_tokens. Logits are gone unless nothing was dropped.

        Raises ContextError below least_kept, but for 0.
        """
        self._open.truncate(checks.integer(n_tokens, "n_tokens", 0, 2**62, "0 to the tokens that the cache holds"))

    def reset(self) -> None:
        """Forgets everything and frees the cache's memory."""
        self._open.reset()

    def cancel(self) -> None:
        """From any thread: the call in progress, or the next one, raises CancelledError."""
        self._open.cancel()
