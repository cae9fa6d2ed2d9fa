"""One layer of our cache over given rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipcache_rt import KvOptions, _core

Rows = dict[str, NDArray[Any]]  # k, v [n_kv_heads, n, head_dim] f16, q [n, n_heads, head_dim] f32
Turns = list[tuple[int, int]]  # tokens that come together, then tokens that come one by one; n in all


def tried(kv: str, rows: Rows, turns: Turns, sliding_window: int = 0) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Attention of the tokens that came one by one [n_decoded, n_heads, head_dim], and kv_stats."""
    k, v, q = rows["k"], rows["v"], rows["q"]
    trial = _core.KvTrial(
        kv=KvOptions.parse(kv).to_core(),
        device="cpu",
        norms=np.ones(q.shape[1:], np.float32),
        n_kv_heads=len(k),
        sliding_window=sliding_window,
    )

    def part(first: int, n: int) -> tuple[NDArray[Any], ...]:
        sides = (np.ascontiguousarray(side[:, first : first + n]).view(np.uint16) for side in (k, v))
        return (*sides, q[first : first + n])

    at, out = 0, [np.empty((0, *q.shape[1:]), np.float32)]
    for together, apart in turns:
        if together:
            trial.prefill(*part(at, together))
        if apart:
            out.append(trial.decode(*part(at + together, apart)))
        at += together + apart
    return np.concatenate(out), trial.stats()
