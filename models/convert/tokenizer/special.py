"""Which tokens begin and end texts and turns."""

from __future__ import annotations

from typing import Any

from ..._core import ModelError
from ..config import Config, shown
from .vocabulary import PREFIX, Vocabulary

KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>")
MESSAGE_END = "<|eom_id|>"


def special_metadata(
    vocabulary: Vocabulary, config: Config, names: Config, model_config: Config, generation: Config
) -> tuple[dict[str, int], list[str]]:
    """GGUF keys, and notices.

    A token is found by name in the tokenizer's files, else by id in the model's, else as SentencePiece has it.
    """
    ids = vocabulary.ids()
    found: dict[str, int] = {}
    notices = []
    for name, key in KEYS.items():
        text = _text(config, name) or _text(names, name)
        if text is None:
            number = _first_id(model_config, f"{name}_token_id", len(ids))
            number = vocabulary.special.get(name) if number is None else number
        elif text in ids:
            number = ids[text]
        elif name in ("unk", "pad"):
            number = None
            notices.append(f"the {name} token {shown(text)} is not in the vocabulary and was left out")
        else:
            raise ModelError(
                f"the {name} token {shown(text)} of {config.name(name + '_token')} is not in {vocabulary.source}"
            )
        if number is not None:
            found[key] = number
    eos = found.get("eos_token_id")
    found |= _turn_ends(ids, eos, [*_ids(generation, "eos_token_id"), *_ids(model_config, "eos_token_id")])
    for flag, key in (("add_bos_token", "bos_token_id"), ("add_eos_token", "eos_token_id")):
        if vocabulary.flags.get(flag) and key not in found:
            raise ModelError(f"{config.name(flag)} is true, but no file says which token that is")
    return {PREFIX + key: value for key, value in found.items()}, notices


def _text(config: Config, name: str) -> str | None:
    """A token's name: text, or an object with its content."""
    key = f"{name}_token"
    value = config.get(key)
    if value is None or value == "":
        return None
    return config.child(key).text("content") if isinstance(value, dict) else config.text(key)


def _ids(config: Config, key: str) -> list[Any]:
    value = config.get(key)
    return value if isinstance(value, list) else [value]


def _first_id(config: Config, key: str, n_vocab: int) -> int | None:
    value = _ids(config, key)[:1]
    if not value or value[0] is None or value[0] == -1:
        return None
    if isinstance(value[0], bool) or not isinstance(value[0], int) or not 0 <= value[0] < n_vocab:
        config.refuse(key, f"a token id below {n_vocab}, or a list of them")
    return value[0]


def _turn_ends(ids: dict[str, int], eos: int | None, ends: list[Any]) -> dict[str, int]:
    """A chat's own end of turn where it is not eos: by name, one that the configuration lists as an end first."""
    known = [ids[name] for name in TURN_ENDS if name in ids and ids[name] != eos]
    known.sort(key=lambda number: number not in ends)
    found = {"eot_token_id": known[0]} if known else {}
    return found | ({"eom_token_id": ids[MESSAGE_END]} if MESSAGE_END in ids else {})
