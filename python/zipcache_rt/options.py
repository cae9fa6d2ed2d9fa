"""What a caller may choose. One frozen dataclass per concern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from . import _core

KV_POLICIES = ("auto", "zipcache", "uniform", "kivi", "mikv", "h2o", "snapkv", "gear", "q8_0", "q4_0", "f16")
SALIENCIES = ("normalized", "accumulated", "recent", "random")
PROBES = ("random+recent", "random", "recent", "special", "all", "newest32")
KEY_GRANULARITIES = ("channelwise", "groupwise", "tokenwise")
VALUE_GRANULARITIES = ("cst", "groupwise", "tokenwise", "channelwise")


@dataclass(frozen=True)
class KvOptions:
    """How a session keeps its keys and values. Raises ArgumentError for what is out of range, when it is made.

    policy:
      auto      our own: balanced and rotated keys and values, bits for each token by water-filling to a budget
      zipcache  the paper (arXiv 2405.14256): salient tokens in 4 bits, regular ones in 2, channelwise keys, CST values
      uniform   the same number of bits for every token
      kivi      arXiv 2402.02750: keys by channel over 32 tokens, values by token over 32 channels, the newest 128 exact
      mikv      arXiv 2402.18096: tokens that got most attention in 4 bits, others in 2, tokenwise; keys balanced
      h2o       arXiv 2306.14048: the newest 20 % of the tokens and the 20 % that got most attention stay, others go
      snapkv    arXiv 2404.14469: of a prompt its newest 32 tokens stay and what they attend to most; all decoded ones
      gear      arXiv 2403.05527: 4 bits, a low-rank correction of their error, and the outliers as they are
      q8_0, q4_0  blocks of 32 channels, as llama.cpp stores them
      f16       uncompressed
    """

    policy: str = "auto"
    bits: float | None = None  # auto: all-in bits of compressed tokens (3.3); uniform, gear (4), kivi (2): of a code
    ratio: float = 0.6  # zipcache, mikv: the share of salient tokens
    high_bits: int = 4  # zipcache, mikv: bits of salient tokens
    low_bits: int = 2  # zipcache, mikv: bits of regular tokens
    saliency: str = "normalized"  # auto, zipcache: how tokens are ranked: normalized, accumulated, recent, random
    # whose attention is scored: random+recent, random, recent, special, all, newest32. None: mikv, h2o: all, for their
    # score is a sum over all rows; snapkv: newest32, what it observes; else random+recent. special: as many as random
    # and recent ones together, drawn from a prompt's control tokens and punctuation; a window, whose probes are chosen
    # before its tokens are known, has random+recent
    probes: str | None = None
    random_probes: float = 0.05  # the share of tokens that are random probes
    recent_probes: float = 0.05  # the share of tokens that are recent probes
    keys: str = "channelwise"  # zipcache, uniform: what shares a scale: channelwise, groupwise (32), tokenwise
    values: str = "cst"  # zipcache, uniform: cst, groupwise (32), tokenwise, channelwise
    rotate: bool = False  # q8_0, q4_0, uniform, zipcache: store keys and values through a Walsh-Hadamard matrix
    per_head: bool = False  # zipcache, mikv: rank the tokens of each KV head apart
    group: int = 32  # kivi: tokens of a channel, and channels of a token, that share parameters: 32, 64
    heavy: float = 0.2  # h2o, snapkv: the share of tokens that stay for the attention they got
    newest: float = 0.2  # h2o: the share of tokens that stay because they are the newest
    rank: int = 4  # gear: of the correction of a prompt
    window_rank: int = 2  # gear: of the correction of a window
    outliers: float = 0.02  # gear: the share of elements that are kept as they are
    window: int | None = None  # tokens that stay uncompressed until as many have come (100; kivi, gear: 64)
    recent: int | None = None  # newest tokens that are never compressed (auto: 64, kivi: 128, else 0)
    seed: int = 0  # of the random probes

    def __post_init__(self) -> None:
        for name, known in (
            ("policy", KV_POLICIES),
            ("saliency", SALIENCIES),
            ("probes", PROBES),
            ("keys", KEY_GRANULARITIES),
            ("values", VALUE_GRANULARITIES),
        ):
            value = getattr(self, name)
            if value not in known and not (name == "probes" and value is None):
                name = "KV policy" if name == "policy" else f"KV option {name}"
                raise _core.ArgumentError(f"the {name} is {value!r}; accepted: {', '.join(known)}")
        self.to_core()
        for name, value in (("bits", self.bits), ("window", self.window), ("recent", self.recent)):
            if value is not None and (value < 0 or (value == 0 and name == "bits")):
                accepted = "above 0" if name == "bits" else "0 or more"
                raise _core.ArgumentError(f"the KV option {name} is {value}; accepted: {accepted}, or None")

    @classmethod
    def parse(cls, text: str) -> KvOptions:
        """Options from one word, as --kv takes it: NAME[:BITS][,OPTION=VALUE]...

        >>> KvOptions.parse("auto:2.8")
        >>> KvOptions.parse("zipcache,ratio=0.4,saliency=random")
        """
        head, *rest = text.split(",")
        policy, colon, bits = head.partition(":")
        kinds = {f.name: str(f.type) for f in fields(cls)}
        values: dict[str, Any] = {"policy": policy}
        for part in [*([f"bits={bits}"] if colon else []), *rest]:
            name, _, value = part.partition("=")
            if name not in kinds or name == "policy" or not value:
                known = ", ".join(k for k in kinds if k != "policy")
                raise _core.ArgumentError(f"the KV option is {part!r}; accepted: OPTION=VALUE with one of {known}")
            values[name] = _value(name, value, kinds[name])
        return cls(**values)

    def __str__(self) -> str:
        """The word that parse() makes these options from."""
        bits = f":{float(self.bits)!r}".removesuffix(".0") if self.bits is not None else ""
        rest = [
            f",{f.name}={str(value).lower() if isinstance(value, bool) else value}"
            for f in fields(self)
            if f.name not in ("policy", "bits") and (value := getattr(self, f.name)) != f.default
        ]
        return self.policy + bits + "".join(rest)

    def to_core(self) -> _core.KvOptions:
        try:
            return _core.KvOptions(
                policy=self.policy,
                bits=0.0 if self.bits is None else self.bits,
                ratio=self.ratio,
                high_bits=self.high_bits,
                low_bits=self.low_bits,
                saliency=self.saliency,
                probes="" if self.probes is None else self.probes,
                random_probes=self.random_probes,
                recent_probes=self.recent_probes,
                keys=self.keys,
                values=self.values,
                rotate=self.rotate,
                per_head=self.per_head,
                group=self.group,
                heavy=self.heavy,
                newest=self.newest,
                rank=self.rank,
                window_rank=self.window_rank,
                outliers=self.outliers,
                window=-1 if self.window is None else self.window,
                recent=-1 if self.recent is None else self.recent,
                seed=self.seed,
            )
        except (OverflowError, TypeError, ValueError) as error:
            raise _core.ArgumentError(f"a KV option has a wrong type or does not fit: {self}") from error


def _value(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return text if kind.startswith("str") else int(text) if kind.startswith("int") else float(text)
    except (KeyError, ValueError) as error:
        raise _core.ArgumentError(f"the KV option {name} is {text!r}; accepted: a {kind}") from error


@dataclass(frozen=True)
class SamplerOptions:
    """How the next token is chosen.

    Applied in this order: logit bias, penalties, top-k, top-p, min-p, temperature, draw. Values out of range raise
    ArgumentError when a generation begins.
    """

    temperature: float = 0.8  # 0: greedy (the most probable token, lowest id on ties)
    top_k: int = 40  # keep the k most probable tokens; 0: all
    top_p: float = 0.95  # keep the smallest set whose probability is at least p; 1: all
    min_p: float = 0.05  # drop tokens less probable than min_p times the best one; 0: none
    repetition_penalty: float = 1.0  # > 1 divides positive and multiplies negative logits of tokens seen lately
    presence_penalty: float = 0.0  # subtracted once for each token seen lately
    frequency_penalty: float = 0.0  # subtracted for every time it was seen lately
    penalty_last_n: int = 64  # how many of the newest tokens count as lately; -1: all, 0: none
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token -> added to its logit; -inf forbids it
    seed: int = 0  # same seed, same logits, same tokens

    def to_core(self) -> _core.SamplerOptions:
        try:
            return _core.SamplerOptions(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                penalty_last_n=self.penalty_last_n,
                logit_bias=list(self.logit_bias.items()),
                seed=self.seed,
            )
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise _core.ArgumentError(f"a sampler option has a wrong type or does not fit: {self}") from error
