"""SentencePiece's BPE as a tokenizer.json writes it: merges of characters, U+2581 for a space, bytes for the unknown.

GGUF has scores in place of merges: any two neighbours whose joint text is a token merge, best score first. So merges
can be written as scores if they leave out no such pair, and if those that make one token stand together.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ..._core import ModelError
from ..config import Config, shown
from .bpe import Tokens, add_flags, foreign_errors, load, nested, read_merges, read_tokens
from .sentence_piece import check_bytes
from .vocabulary import BYTES, SPACE, TokenType, Vocabulary

_BYTES = set(BYTES)
PROBES = [
    "Hello, world!",
    "a  b   c ",
    "don't 12345 x\ny\t\n\nz",
    "\u4f60\u597d caf\u00e9 \U0001f600 (a_b) #1",
    "i",
    ".",
]


def read(path: Path, spec: Config, config: Config) -> Vocabulary:
    model = spec.child("model")
    tokens = read_tokens(model)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        model.only(key, lambda x: not x, "null: GGUF's SentencePiece has none")
    model.only("byte_fallback", lambda x: x is True, "true: GGUF's SentencePiece spells unknown characters as bytes")
    merges = read_merges(model, tokens)
    unknown = model.text("unk_token") if model.get("unk_token") is not None else None
    tokenizer = load(path)
    with foreign_errors(path):
        prefix, notices = _spaces(tokenizer, spec, tokens)
    texts = tokens.by_id()
    types = [_type(text, unknown) for text in texts]
    check_bytes([text or "" for text in texts], types, path.name)
    scores = _scores(merges, path.name)
    added = {entry.text("content") for entry in spec.objects("added_tokens")}
    _check_complete(set(merges), tokens, {*_BYTES, *added, unknown}, path.name)
    return Vocabulary(
        model="llama",
        tokens=texts,
        types=types,
        source=path.name,
        scores=[scores.get(text or "", 0.0) for text in texts],
        flags={**add_flags(tokenizer, config), "add_space_prefix": prefix},
        notices=notices,
    )


def _type(text: str | None, unknown: str | None) -> TokenType:
    if text is None:
        return TokenType.UNUSED
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if text in _BYTES else TokenType.NORMAL


def _scores(merges: list[tuple[str, str]], source: str) -> dict[str, float]:
    """Token -> minus the rank of its merges."""
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    latest = -1
    for token, own in ranks.items():  # in the order of their first merges
        if own[0] < latest:
            raise ModelError(
                f"{source} has merges for {shown(token)} among those for other tokens; accepted: together, as"
                " SentencePiece has them"
            )
        latest = own[-1]
    return {token: -float(own[0] + 1) for token, own in ranks.items()}


def _check_complete(merges: set[tuple[str, str]], tokens: Tokens, whole: set[str | None], source: str) -> None:
    """whole: tokens that never come of a merge."""
    for token in tokens.ids:
        if token in whole:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens and (left, right) not in merges:
                raise ModelError(
                    f"{source} does not merge {shown(left)} and {shown(right)} into the token {shown(token)}, as"
                    " SentencePiece would; accepted: the merges of a SentencePiece model"
                )


def _spaces(tokenizer: Tokenizer, spec: Config, tokens: Tokens) -> tuple[bool, list[str]]:
    """Whether text gets a space in front, found out by asking; spaces must become U+2581, and nothing else change."""
    prefix: str | None = None
    cuts = False
    for probe in PROBES:
        parts = _pieces(tokenizer, probe)
        got, plain = "".join(parts), probe.replace(" ", SPACE)
        if prefix is None and got in (plain, SPACE + plain):
            prefix = got[: len(got) - len(plain)]
        if prefix is None or got != prefix + plain:
            raise ModelError(
                f"tokenizer.json makes {shown(got)} of {shown(probe)}; accepted: {SPACE} for spaces, perhaps one in"
                " front, and no other change"
            )
        cuts = cuts or len(parts) > 1
        if not all(part.startswith(SPACE) for part in parts[1:]):
            raise ModelError(
                f"tokenizer.json cuts {shown(probe)} into {shown(parts)}; accepted: cuts before {SPACE}, or none"
            )
    across = next((text for text in tokens.ids if SPACE in text[1:]), None) if cuts else None
    if across is not None:
        raise ModelError(
            f"tokenizer.json cuts before {SPACE}, yet has the token {shown(across)}; accepted: one of both"
        )
    return bool(prefix), _space_notices(tokenizer, spec) if prefix else []


def _space_notices(tokenizer: Tokenizer, spec: Config) -> list[str]:
    notices = []
    if "".join(_pieces(tokenizer, " a")) != SPACE + SPACE + "a":
        notices.append("text that begins with a space gets no second one in the checkpoint; GGUF adds it")
    parts = nested(spec.child("pre_tokenizer"), "pretokenizers")
    if any(part.get("prepend_scheme") == "first" for part in parts):
        notices.append("the checkpoint puts a space before the whole text only; GGUF also after every special token")
    return notices


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
