"""What a caller may choose. One frozen dataclass per concern."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import _core

KV_POLICIES = ("f16",)


@dataclass(frozen=True)
class KvOptions:
    """How a session keeps its keys and values. Raises ArgumentError for an unknown policy."""

    policy: str = "f16"  # f16: uncompressed

    def __post_init__(self) -> None:
        if self.policy not in KV_POLICIES:
            raise _core.ArgumentError(f"the KV policy is {self.policy!r}; accepted: {', '.join(KV_POLICIES)}")


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
