"""A vocabulary as GGUF keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ..._core import ModelError
from ..config import shown
from .added import AddedToken

PREFIX = "tokenizer.ggml."
SPACE = "\u2581"  # SentencePiece's
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class TokenType(IntEnum):
    """As GGUF and SentencePiece number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Tokenizer:
    """metadata: GGUF keys. notices: what the file will do otherwise than the checkpoint, a sentence each."""

    metadata: dict[str, Any]
    notices: list[str]


@dataclass
class Vocabulary:
    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece
    tokens: list[str | None]  # [n_tokens]; None: no token has this id
    types: list[TokenType]  # [n_tokens]
    source: str  # the file's name
    pre: str | None = None  # name of the pre-tokenizer, byte-level
    merges: Sequence[str] = ()  # best first, byte-level
    scores: list[float] = field(default_factory=list)  # [n_tokens], SentencePiece
    flags: dict[str, bool] = field(default_factory=dict)  # add_bos_token, ...
    special: dict[str, int] = field(default_factory=dict)  # "bos", ...: ids that the vocabulary itself knows
    notices: list[str] = field(default_factory=list)

    def add(self, added: Sequence[AddedToken]) -> None:
        """Tokens beyond the base vocabulary, and those of it that are matched as a whole."""
        for token in added:
            self._grow(token)
            self.tokens[token.id] = token.content
            if self.types[token.id] not in (TokenType.UNKNOWN, TokenType.BYTE):
                self.types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        stripping = [token.content for token in added if token.lstrip or token.rstrip]
        if stripping:
            names = ", ".join(map(shown, stripping[:3])) + (", ..." if len(stripping) > 3 else "")
            self.notices.append(f"{names} swallow spaces beside them in the checkpoint; GGUF keeps those spaces")
        whole_words = [token for token in added if token.single_word]
        if whole_words:
            raise ModelError(
                f"the added token {shown(whole_words[0].content)} of {self.source} is matched as a single word only;"
                " accepted: single_word false"
            )

    def _grow(self, token: AddedToken) -> None:
        if token.id > len(self.tokens) + (1 << 20):
            raise ModelError(
                f"the added token {shown(token.content)} has the id {token.id}, far from the {len(self.tokens)} of"
                f" {self.source}; accepted: the next ones"
            )
        while len(self.tokens) <= token.id:
            self.tokens.append(None)
            self.types.append(TokenType.UNUSED)
            if self.model == "llama":
                self.scores.append(-1000.0)

    def check(self, n_vocab: int) -> None:
        """Whether it fits an embedding of so many rows."""
        if len(self.tokens) > n_vocab:
            raise ModelError(
                f"{self.source} has {len(self.tokens)} tokens; accepted: up to the {n_vocab} rows of the embedding"
            )
        if 2 * len(self.tokens) < n_vocab:
            raise ModelError(
                f"{self.source} has {len(self.tokens)} tokens for the {n_vocab} rows of the embedding; accepted: half"
                " of them at least"
            )
        counts = Counter(token for token in self.tokens if token is not None)
        double = next((token for token, n in counts.items() if n > 1), None)
        if double is not None:
            raise ModelError(f"{self.source} gives {counts[double]} ids to the token {shown(double)}; accepted: one")
        for token in counts:
            if not encodable(token):
                raise ModelError(f"the token {shown(token)} of {self.source} is no valid Unicode")

    def pad(self, n_vocab: int) -> None:
        """Names for rows of the embedding that have no token."""
        known = set(self.tokens)
        self.scores += [-1000.0] * (n_vocab - len(self.tokens) if self.model == "llama" else 0)
        self.types += [TokenType.UNUSED] * (n_vocab - len(self.tokens))
        self.tokens += [None] * (n_vocab - len(self.tokens))
        for i, token in enumerate(self.tokens):
            if token is None:
                name = f"[PAD{i}]"
                while name in known:
                    name = f"[{name}]"
                self.tokens[i] = name
                self.types[i] = TokenType.UNUSED

    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if token is not None}

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "model": self.model,
            "pre": self.pre or "default",
            "tokens": [self._spelled(i) for i in range(len(self.tokens))],
            "token_type": [int(kind) for kind in self.types],
        }
        if self.model == "gpt2":
            values["merges"] = list(self.merges)
        else:
            values["scores"] = self.scores
        return {PREFIX + key: value for key, value in (values | self.flags).items()}

    def _spelled(self, i: int) -> str:
        """GGUF spells the spaces of SentencePiece's user-defined tokens as such."""
        token = self.tokens[i] or ""
        spaces = self.model == "llama" and self.types[i] == TokenType.USER_DEFINED
        return token.replace(SPACE, " ") if spaces else token


def encodable(text: str) -> bool:
    """Whether the text is Unicode; JSON can spell half a surrogate pair."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
