"""A loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from . import _core, templates
from .options import KvOptions
from .session import Session


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
    device: str
    threads: int
    weights_mapped: int  # bytes used in place
    weights_repacked: int  # bytes copied into a faster layout
    has_tokenizer: bool
    add_bos: bool
    bos_token: str
    eos_token: str
    chat_template: str | None


def token_ids(ids: Iterable[int], name: str) -> list[int]:
    """Plain ints from any iterable of integers (NumPy's too). ArgumentError names what is no int32."""
    values = []
    if isinstance(ids, (str, bytes)):
        raise _core.ArgumentError(f"{name} is {type(ids).__name__}; accepted: token ids")
    for value in ids:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise _core.ArgumentError(f"{name} holds {value!r}; accepted: integers")
        number = value.__index__()
        if not -(2**31) <= number < 2**31:
            raise _core.ArgumentError(f"{name} holds {number}; accepted: token ids of the model")
        values.append(number)
    return values


class Model:
    """A GGUF model, ready to run.

    path: the file. device: "auto" or "cpu". threads: None for one a core. progress: called with 0..1 while weights are
    laid out; an exception it raises stops the load. repack: use ggml's faster weight layouts where it has one.

    Raises FileError (cannot be read, not GGUF, damaged), ModelError (cannot be run here), ArgumentError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        progress: _core.Progress | None = None,
        repack: bool = True,
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not 1 <= threads <= 512):
            raise _core.ArgumentError(f"threads is {threads!r}; accepted: 1 to 512, or None to choose")
        self._core = _core.Model(os.fspath(path), device, threads or 0, repack, progress)
        known = {field.name for field in fields(ModelInfo)}
        self._info = ModelInfo(**{key: value for key, value in self._core.info.items() if key in known})

    @property
    def info(self) -> ModelInfo:
        return self._info

    def tokenize(self, text: str, *, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of `text`.

        add_bos None: as the model's flags say (bos and eos). special: text that looks like a control token becomes
        that token. Lone surrogates are read as U+FFFD. Raises ModelError for a model without a tokenizer.
        """
        return self._core.tokenize(_utf8(text), add_bos, special)

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of a sequence; bytes that are no UTF-8 become U+FFFD. special: control tokens show as text.

        Raises ArgumentError for an id that the model does not have.
        """
        return self._core.detokenize(token_ids(ids, "ids"), special).decode("utf-8", "replace")

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

    def session(self, *, n_ctx: int | None = None, kv: KvOptions = KvOptions()) -> Session:  # noqa: B008 (frozen)
        """A new conversation. n_ctx: most tokens it may hold; None for what the model was trained for."""
        if n_ctx is not None and (isinstance(n_ctx, bool) or n_ctx < 1):
            raise _core.ArgumentError(f"n_ctx is {n_ctx!r}; accepted: 1 to {self.info.n_ctx_train}, or None for all")
        return Session(self, self._core.session(n_ctx or 0, kv.policy))


def _utf8(text: str) -> bytes:
    if not isinstance(text, str):
        raise _core.ArgumentError(f"text is {type(text).__name__}; accepted: str")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
