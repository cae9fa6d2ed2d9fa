"""A loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from numpy.typing import NDArray

from . import _core, checks, templates
from .options import KvOptions, SamplerOptions
from .session import Piece, Session, generate_together


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says of it, and how it was loaded."""

    path: str
    file_bytes: int
    architecture: str
    name: str | None
    quantization: str  # the tensor type that holds most bytes
    n_params: int
    n_vocab: int
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int  # tokens
    sliding_window: int  # tokens that sliding-window layers see; 0: no such layers
    device: str  # "cpu", "cuda:0", "metal", ...
    gpu_layers: int  # the last ones, which lie on that device where it is a GPU; the others lie on the CPU
    threads: int
    weights_mapped: int  # bytes used in place
    weights_repacked: int  # bytes copied into a faster layout
    weights_device: int  # bytes copied to the device
    has_tokenizer: bool
    add_bos: bool
    bos_token: str
    eos_token: str
    chat_template: str | None

    @property
    def has_chat_template(self) -> bool:
        return bool(self.chat_template)

    @property
    def is_split(self) -> bool:
        """Whether some layers lie on a GPU and some on the CPU."""
        return 0 < self.gpu_layers < self.n_layers

    @property
    def runs_on(self) -> str:
        """The device, and of a model that is split how much of it is there: "cuda:0 (12 of 30 layers)"."""
        return f"{self.device} ({self.gpu_layers} of {self.n_layers} layers)" if self.is_split else self.device


def _info(found: Mapping[str, Any]) -> ModelInfo:
    """The fields this version knows; the native module may tell more."""
    return ModelInfo(**{field.name: found[field.name] for field in fields(ModelInfo)})


class Model:
    """A GGUF model, ready to run; a context manager.

    path: the file. device: "cpu", "cuda" (the first GPU), "cuda:1", ..., "metal", or "auto": a GPU where there is one.
    gpu_layers: how many layers a GPU gets at most, the last ones, while the CPU runs the others; None for all, or where
    their weights do not fit, for as many as leave memory for a session. threads: None for one a core. progress: called
    with 0..1 while weights are laid out; an exception it raises stops the load. repack: on the CPU, use ggml's faster
    weight layouts where it has one.

    Raises FileError (cannot be read, not GGUF, damaged), ModelError (cannot be run here), ArgumentError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        gpu_layers: int | None = None,
        threads: int | None = None,
        progress: _core.Progress | None = None,
        repack: bool = True,
    ) -> None:
        file = checks.path(path, "path")
        checks.instance(device, str, "device")
        checks.callback(progress, "progress")
        if gpu_layers is not None:
            most = 2**31 - 1  # the file says how many there are
            gpu_layers = checks.integer(gpu_layers, "gpu_layers", 0, most, "0 or more, or None for as many as fit")
        if threads is not None:
            threads = checks.integer(threads, "threads", 1, 512, "1 to 512, or None to choose")
        layers = -1 if gpu_layers is None else gpu_layers
        self._native: _core.Model | None = _core.Model(file, device, layers, threads or 0, bool(repack), progress)
        self._info = _info(self._open.info)

    @property
    def _open(self) -> _core.Model:
        if self._native is None:
            raise _core.ArgumentError("the model is closed; accepted: an open one")
        return self._native

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the weights; they are freed once no session uses them. Later calls raise ArgumentError, and so do
        those of its sessions that need text rather than token ids."""
        self._native = None

    @property
    def info(self) -> ModelInfo:
        return self._info

    def free_memory(self) -> int:
        """Bytes that the memory of `info.device` has free now, whoever uses the rest."""
        return self._open.free_memory()

    def tokenize(self, text: str, *, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of `text`.

        add_bos None: as the model's flags say (bos and eos). special: text that looks like a control token becomes
        that token. Lone surrogates are read as U+FFFD. Raises ModelError for a model without a tokenizer.
        """
        return self._open.tokenize(checks.utf8(text, "text"), None if add_bos is None else bool(add_bos), bool(special))

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of a sequence; bytes that are no UTF-8 become U+FFFD. special: control tokens show as text.

        Raises ArgumentError for an id that the model does not have.
        """
        return self._open.detokenize(checks.token_ids(ids, "ids"), bool(special)).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """The text of one token within a sequence; bytes that are no UTF-8 become U+FFFD.

        Raises ArgumentError for an id that the model does not have, ModelError without a tokenizer.
        """
        number = checks.integer(token, "token", 0, self.info.n_vocab - 1, f"0 to {self.info.n_vocab - 1}")
        return self._open.piece(number, True).decode("utf-8", "replace")

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt that the model's own template makes of a conversation.

        messages: mappings with "role" and "content". Raises ModelError for a model without a template, or with one
        that does not render within bounds.
        """
        return templates.render(
            self.info.chat_template,
            messages,
            bos_token=self.info.bos_token,
            eos_token=self.info.eos_token,
            add_generation_prompt=add_generation_prompt,
        )

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of apply_chat_template(): a bos token that the template wrote is not added again."""
        text = self.apply_chat_template(messages)
        bos = self.info.bos_token
        return self.tokenize(text, add_bos=False if bos and text.startswith(bos) else None)

    def session(self, *, n_ctx: int | None = None, kv: KvOptions = KvOptions()) -> Session:  # noqa: B008 (frozen)
        """A new conversation.

        n_ctx: most tokens it may hold, up to what the model was trained for; None for all of that. kv: how the cache
        is kept. Raises ArgumentError.
        """
        checks.instance(kv, KvOptions, "kv")
        if n_ctx is not None:
            most = self.info.n_ctx_train
            n_ctx = checks.integer(n_ctx, "n_ctx", 1, most, f"1 to {most}, or None for all")
        return Session(self, self._open.session(n_ctx or 0, kv.to_core()))

    def score_prompt(
        self, tokens: Iterable[int], *, kv: KvOptions, progress: _core.Progress | None = None
    ) -> dict[str, NDArray[Any]]:
        """The attention that each token of a prompt gets, in every layer: saliency.measure() makes sense of it.

        kv: whose probes to take. As native score_prompt() returns it. Raises ArgumentError.
        """
        checks.instance(kv, KvOptions, "kv")
        checks.callback(progress, "progress")
        return _core.score_prompt(self._open, checks.token_array(tokens, "tokens"), kv.to_core(), progress)

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """The conversation that Session.save() wrote to a file, with the n_ctx and the KV options it had.

        It goes on as the saved one would have, to the same bit on the same machine. Its stats begin at zero. Raises
        FileError for what cannot be read, is damaged, was saved with another model, or in a format or by a KV policy
        that this version does not know.
        """
        return Session(self, self._open.load_session(checks.path(path, "path")))

    def decode_batch(self, sessions: Iterable[Session], tokens: Iterable[int]) -> None:
        """Appends tokens[i] to sessions[i], as their decode() would, in one pass: the weights are read once for all.

        sessions: different ones of this model, of any lengths, n_ctx and KV options. Logits are those of decode() but
        for rounding: products of several columns are summed in another order. Steps of the same sessions reuse their
        graph. Raises ArgumentError for sessions that do not go together, ContextError that names one that is full,
        CancelledError when one was cancelled before the step began; then every session is as it was.
        """
        opened = self._own(sessions)
        _core.decode_batch([session._open for session in opened], checks.token_ids(tokens, "tokens"))

    def generate_batch(
        self,
        prompts: Iterable[str | Iterable[int]],
        *,
        sessions: Iterable[Session] | None = None,
        max_tokens: int | None = None,
        sampler: SamplerOptions = SamplerOptions(),  # noqa: B008 (frozen)
        stop: str | Sequence[str] = (),
    ) -> Iterator[tuple[int, Piece]]:
        """Replies to several prompts at once: (number of the prompt, piece), as they come.

        sessions: those that the prompts go on in, one each; None for new ones. The rest is as Session.generate() has
        it, for each. Prompts are prefilled one after the other, then every step is one decode_batch().
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
            raise _core.ArgumentError(f"prompts is {type(prompts).__name__}; accepted: several texts or token ids")
        asked = list(prompts)
        opened = [self.session() for _ in asked] if sessions is None else self._own(sessions)
        if len(opened) != len(asked):
            raise _core.ArgumentError(f"{len(asked)} prompts got {len(opened)} sessions; accepted: one each")
        if len(set(map(id, opened))) < len(opened):
            raise _core.ArgumentError("two prompts got the same session; accepted: different ones")
        return generate_together(
            [
                session.generate(prompt, max_tokens=max_tokens, sampler=sampler, stop=stop)
                for session, prompt in zip(opened, asked, strict=True)
            ]
        )

    def _own(self, sessions: Iterable[Session]) -> list[Session]:
        """The sessions as a list, all of them this model's."""
        if not isinstance(sessions, Iterable):
            raise _core.ArgumentError(f"sessions is {type(sessions).__name__}; accepted: several of Session")
        self._open  # noqa: B018 (raises for a closed model)
        found = list(sessions)
        for i, session in enumerate(found):
            checks.instance(session, Session, f"session {i}")
            if session.model is not self:
                raise _core.ArgumentError(f"session {i} is of another model; accepted: sessions of this one")
        return found
