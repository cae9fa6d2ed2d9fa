"""One layer of a cache over random rows, on any device: what its operators make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..options import KvOptions

HEAD_DIMS = (64, 80, 96, 128, 256)
IN_BLOCKS = ("kivi", "q8_0", "q4_0")  # policies whose heads are whole blocks of 32 channels
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """All that a run depends on."""

    policy: str
    n_kv_heads: int
    group: int  # query heads of a KV head
    head_dim: int
    sliding_window: int  # 0: none
    turns: tuple[tuple[int, int], ...]  # tokens that come together, then one by one
    dropped: int  # newest tokens that are then forgotten, before one more turn of a few
    seed: int  # of the rows

    @classmethod
    def draw(cls, policy: str, random: Random, longest: int) -> Case:
        """longest: tokens of a prompt."""
        dims = [dim for dim in HEAD_DIMS if dim % 32 == 0 or not policy.startswith(IN_BLOCKS)]
        turns = [(random.randint(1, longest), random.randint(1, 160)) for _ in range(random.randint(1, 2))]
        sliding = random.choice((0, 0, 0, random.randint(1, 300)))
        return cls(
            policy,
            n_kv_heads=random.randint(1, 4),
            group=random.randint(1, 8),
            head_dim=random.choice(dims),
            sliding_window=sliding,
            turns=tuple(turns),
            dropped=0 if sliding else random.choice((0, random.randint(1, sum(turns[0]) - 1))),
            seed=random.getrandbits(32),
        )


@dataclass(frozen=True)
class Rows:
    """Tokens: k, v [n_kv_heads, n, head_dim], q [n, n_heads, head_dim]."""

    k: Halves
    v: Halves
    q: Floats

    def part(self, first: int, last: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16], Floats]:
        """As KvTrial takes them."""
        k, v = (np.ascontiguousarray(side[:, first:last]).view(np.uint16) for side in (self.k, self.v))
        return k, v, self.q[first:last]


def rows_of(case: Case, n: int) -> Rows:
    """Keys have biases of their channels, some of them large, and values scales of theirs, as models have them."""
    random = np.random.default_rng(case.seed)
    dim, shape = case.head_dim, (case.n_kv_heads, n, case.head_dim)
    bias = random.standard_normal(dim) * np.where(random.random(dim) < 0.1, 8, 1)
    k = (random.standard_normal(shape) + bias).astype(np.float16)
    v = (random.standard_normal(shape) * np.exp(0.5 * random.standard_normal(dim))).astype(np.float16)
    q = random.standard_normal((n, case.n_kv_heads * case.group, dim)) * np.where(np.abs(bias) > 3, 0.2, 1)
    return Rows(k, v, q.astype(np.float32))


@dataclass(frozen=True)
class Look:
    """A cache after a turn."""

    tokens: NDArray[np.int64]  # [n_tokens] rows of the case that it has taken in
    q: Floats  # [n_heads, head_dim] of the newest token
    out: Floats  # [n_heads, head_dim] its attention
    k: Halves  # [n_kv_heads, n_rows, head_dim] the newest of the tokens, dequantized
    v: Halves


@dataclass(frozen=True)
class Outcome:
    looks: list[Look] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)  # of compressed tokens, all-in, at each look


def run(case: Case, device: str) -> Outcome:
    """Raises what KvTrial raises."""
    turns = list(case.turns)
    if case.dropped:
        turns.append((0, 3))
    rows = rows_of(case, sum(map(sum, turns)))
    norms = np.exp(np.random.default_rng(case.seed + 1).standard_normal(rows.q.shape[1:])).astype(np.float32)
    trial = _core.KvTrial(
        kv=KvOptions.parse(case.policy).to_core(),
        device=device,
        norms=norms,
        n_kv_heads=case.n_kv_heads,
        sliding_window=case.sliding_window,
    )
    made, held, at = Outcome(), np.arange(0), 0
    for i, (together, apart) in enumerate(turns):
        if case.dropped and i == len(case.turns):
            held = held[: max(1, len(held) - case.dropped)]
            trial.truncate(len(held))
        middle, end = at + together, at + together + apart
        if together:
            trial.prefill(*rows.part(at, middle))
        out = trial.decode(*rows.part(middle, end))[-1]
        held, at = np.concatenate([held, np.arange(at, end)]), end
        k, v = (side.view(np.float16) for side in trial.rows())
        made.looks.append(Look(held, rows.q[end - 1], out, k, v))
        made.bits.append(trial.stats()["compressed_bits"])
    return made


def attention(look: Look, sliding_window: int) -> NDArray[np.float64]:
    """[n_heads, head_dim] of the newest token over the rows that it saw, in plain float64."""
    n_heads, dim = look.q.shape
    k, v = (
        np.repeat(side[:, -sliding_window:].astype(np.float64), n_heads // len(side), 0) for side in (look.k, look.v)
    )
    logits = np.einsum("hd,hnd->hn", look.q.astype(np.float64), k) / np.sqrt(dim)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray[np.float64] = np.einsum("hn,hnd->hd", weights / weights.sum(1, keepdims=True), v)
    return result
