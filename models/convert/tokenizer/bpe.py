"""What both kinds of BPE in a tokenizer.json share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from ..._core import FileError, ModelError, ZipCacheError
from ..config import MOST, Config, shown

DEEPEST = 16  # sequences in sequences


class Tokens:
    """The base vocabulary: text -> id, as the file has it."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids

    def __contains__(self, text: str) -> bool:
        return text in self.ids

    def by_id(self) -> list[str | None]:
        """[highest id + 1]; None where no token has the id."""
        out: list[str | None] = [None] * (max(self.ids.values(), default=-1) + 1)
        for text, i in self.ids.items():
            out[i] = text
        return out


def nested(part: Config, key: str, depth: int = 0) -> Iterator[Config]:
    """The parts of a normalizer or pre-tokenizer, sequences opened."""
    if depth > DEEPEST:
        raise ModelError(f"{part.name('type')} is nested deeper than {DEEPEST} sequences")
    if part.get("type") == "Sequence":
        for inner in part.objects(key):
            yield from nested(inner, key, depth + 1)
    else:
        yield part


def read_tokens(model: Config) -> Tokens:
    model.only("type", lambda x: x == "BPE", "BPE: GGUF has no place here for other models")
    table = model.child("vocab")
    ids = {text: table.integer(text, 0, MOST) for text in table.keys()}  # noqa: SIM118 (no mapping)
    if not ids:
        model.refuse("vocab", "tokens and their ids")
    if len(set(ids.values())) != len(ids):
        raise ModelError(f"{model.name('vocab')} gives one id to two tokens; accepted: one token an id")
    if max(ids.values()) > 4 * len(ids) + 1024:
        raise ModelError(
            f"{model.name('vocab')} has the id {max(ids.values())} among {len(ids)} tokens; accepted: few gaps"
        )
    return Tokens(ids)


def read_merges(model: Config, tokens: Tokens) -> list[tuple[str, str]]:
    """Best first, as pairs or, in older files, as text with a space between."""
    given = model.get("merges")
    if not isinstance(given, list) or not given:  # llama.cpp loads no vocabulary without merges
        model.refuse("merges", "a list of pairs, one at least")
    out = []
    for i, merge in enumerate(given):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(x, str) and x and " " not in x for x in pair)
        ):
            raise ModelError(f"{model.name('merges')}[{i}] is {shown(merge)}; accepted: two tokens without spaces")
        left, right = pair
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise ModelError(f"{model.name('merges')}[{i}] is {shown(merge)}; accepted: tokens that make a token")
        out.append((left, right))
    return out


def load(path: Path) -> Tokenizer:
    """The tokenizer itself, to be asked how it behaves."""
    with foreign_errors(path):
        return Tokenizer.from_file(str(path))


@contextmanager
def foreign_errors(path: Path) -> Iterator[None]:
    """The library raises plain Exception for files that it cannot use, and panics, which Python does not take for
    exceptions, on some others."""
    try:
        yield
    except ZipCacheError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FileError(
                f"{path} is no tokenizer that the tokenizers package can use: {str(error)[:200]}"
            ) from error
        raise


def add_flags(tokenizer: Tokenizer, config: Config) -> dict[str, bool]:
    """Whether bos and eos are added: the configuration's word, else what the tokenizer does."""
    with foreign_errors(Path("tokenizer.json")):
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    at = next((i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain), None)
    before, after = (at, len(whole) - len(plain) - at) if at is not None else (2, 2)
    if before > 1 or after > 1:
        raise ModelError(
            f"the post-processor of tokenizer.json makes {whole} of the tokens {plain}; accepted: at most one token"
            " before them, and one after"
        )
    return {
        "add_bos_token": config.flag("add_bos_token", before == 1),
        "add_eos_token": config.flag("add_eos_token", after == 1),
    }
