"""Which of the pre-tokenizers that GGUF can name a checkpoint's is: the one that cuts the same words.

Files spell the same rules in many ways, so they are compared by what they do to probes: texts made to tell the known
ones apart, and seeded random ones against those that nobody thought of.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from tokenizers import Regex, pre_tokenizers

from ..._core import ModelError
from ..config import shown

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"{1,3}", "")
N_RANDOM_PROBES = 400

PROBES = [
    "Hello, world! It's 2024; we've paid $1,234.56 (don't ask).",
    "I'LL SHE'S THEY'RE you'd I'm we'Ve 'tis",
    "0 12 345 6789 01234567 3.14159 1e10 \u0663\u0664\u0665\u0666 \u00bd\u2460\u2167",
    "a1b22c333d4444 x=1;y=22;z=333",
    "    indented\n\tif (x) {\n\t\treturn;\n\t}\n",
    "trailing  \n\n  \r\n \n x   ",
    "camelCase snake_case kebab-case CONST_VALUE __init__ #include <stdio.h>",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "na\u00efve caf\u00e9 e\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \u0430\u0431\u0432 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f600\U0001f468\u200d\U0001f469 \u2764\ufe0f !!! ??? ... --- /* c */ // d",
    "\u00a0nbsp \u2003em\u3000ideographic\u200bzero\u2028line",
    " a  b   c\n d\n\ne \n\n f\r\ng",
]
_ALPHABETS = [
    "abcXYZ", "0123456789", " ", " \t\n\r\u00a0\u3000", ".,;:!?'\"()[]{}<>/#$%&*-_=+~",
    "\u00e9\u00fc\u0436\u03b1\u0645", "\u4f60\u65e5\ud55c", "\u0663\u00bd\u2167",
    "\U0001f600\u2764\ufe0f\u0301\u094d", "'s't're've'm'll'd",
]  # fmt: skip

# GGUF's name -> (what it does, a whole word that is a token is not merged)
_KNOWN: dict[str, tuple[str, bool]] = {
    "gpt-2": ("", False),
    "smollm": ("digits", False),
    "llama-bpe": (LLAMA3, True),
    "smaug-bpe": (LLAMA3, False),
    "qwen2": (QWEN2, False),
}


def alphabet() -> list[str]:
    """The 256 characters that stand for bytes."""
    return list(pre_tokenizers.ByteLevel.alphabet())


def recognize(given: Any, ignore_merges: bool, source: str) -> str:
    """The GGUF name. Raises ModelError with the first probe that the likeliest one cuts otherwise."""
    cuts = [_cut(given, probe) for probe in _probes()]
    best, agreed = "", -1
    for name, (rules, ignores) in _KNOWN.items():
        if ignores != ignore_merges:
            continue
        same = next((i for i, probe in enumerate(_probes()) if _cut(_build(rules), probe) != cuts[i]), len(cuts))
        if same == len(cuts):
            return name
        if same > agreed:
            best, agreed = name, same
    probe = _probes()[agreed]
    raise ModelError(
        f"the pre-tokenizer of {source} is none that GGUF can name here ({', '.join(_KNOWN)}; ignore_merges is"
        f" {str(ignore_merges).lower()}): it cuts {shown(probe)} into {shown(cuts[agreed])}, unlike {best}"
    )


def _cut(rules: Any, text: str) -> list[str]:
    return [piece for piece, _ in rules.pre_tokenize_str(text)]


def _build(rules: str) -> Any:
    if not rules:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rules == "digits":
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rules), "isolated"), spelled])


@cache
def _probes() -> list[str]:
    source = random.Random(0)
    made = []
    for _ in range(N_RANDOM_PROBES):
        runs = ("".join(source.choices(source.choice(_ALPHABETS), k=source.randint(1, 5))) for _ in range(8))
        made.append("".join(runs))
    return PROBES + made
