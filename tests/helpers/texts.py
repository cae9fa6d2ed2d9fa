"""Random and adversarial strings for tokenizers."""

import random

_ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " ",
    " \t\n\r\x0b\x0c\x85\xa0\u2003\u3000\u200b",
    ".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`",
    "àéîõüßÿñçøæœŁžğ",
    "абвгдежзийклмнопАБВГ",
    "αβγδεζηθΑΒΓΔ",
    "你好世界漢字日本語テスト한국어",
    "العربيةעבריתहिन्दीไทยதமிழ்",
    "٠١٢٣४५६௧௨Ⅷ½²①",
    "😀😂🤷🏽‍♀️👨‍👩‍👧‍👦🏳️‍🌈🇫🇷❤️",
    "é\u0301\u0327\u0489ạ\u0323",
    "\x00\x01\x1b\x7f\u0080\ufeff\ufffd\u2028\U000e0041\U0010ffff",
]
_WORDS = [
    "don't", "I'LL", "we've", "it's", "'S", "'re", "THE", "the", " the", "hello", "  indented", "\n\n", "\r\n", "\n \n", "   ",
    "1234567", "3.14", "x=1;", "https://example.org/a?b=c", "foo_bar", "CamelCase", "naïve", "\t\tif (x) {", "aaaaaaaaaaaa",
    "<|im_start|>", "<|im_end|>", "<|endoftext|", "<|im_", "start_of_turn>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<0x0A>",
    "</s>", "▁", "▁the", "<unk>", "[INST]", "Ġ", "ʼn", "ǅ", "ﬁ", "Å", "İ",
]  # fmt: skip


def random_text(source: random.Random) -> str:
    parts = []
    for _ in range(source.randint(1, 8)):
        kind = source.random()
        if kind < 0.35:
            parts.append(source.choice(_WORDS))
        elif kind < 0.9:
            alphabet = source.choice(_ALPHABETS)
            parts.append("".join(source.choice(alphabet) for _ in range(source.randint(1, 8))))
        else:  # any assigned or unassigned code point but the surrogates
            code = source.choice([source.randint(0, 0xD7FF), source.randint(0xE000, 0x10FFFF)])
            parts.append(chr(code))
    return source.choice(["", " "]).join(parts)


def random_texts(n: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return ["", " ", "\n", "a" * 1000, " " * 1000] + [random_text(source) for _ in range(n - 5)]
