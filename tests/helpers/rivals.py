"""KIVI, MiKV, H2O, SnapKV and GEAR in plain NumPy, float64, from the formulas of their papers; knows nothing of our formats.

A rival reads the rows of one layer: k, v [n_kv_heads, n, head_dim], q [n, n_heads, head_dim]. What it keeps of old tokens
are rows again, as they would come back from its codes; parameters of quantizers are f16, as all of them store them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)


def quantized(x: Array, bits: int, axis: tuple[int, ...]) -> Array:
    """Asymmetric uniform; what lies along `axis` shares (min, scale). scale = (max - min) / (2^b - 1).

    Rows of f16 often lie just between two codes: such ties fall as 32-bit arithmetic has them.
    """
    low = half(x.min(axis, keepdims=True))
    scale = half((x.max(axis, keepdims=True) - low) / (2**bits - 1))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0).astype(np.float32)
    steps = (x - low).astype(np.float32) * inverse
    return np.clip(np.floor(steps + np.float32(0.5)), 0, 2**bits - 1) * scale + low


def rounded(x: float) -> int:
    return math.floor(x + 0.5)


def most(scores: Array, n: int) -> NDArray[np.intp]:
    """The n with the largest scores, older ones first among equals; rising."""
    return np.sort(np.argsort(-scores, kind="stable")[:n])


class Rival:
    """window: tokens compressed together while decoding. recent: newest tokens that stay uncompressed."""

    window = 100
    recent = 0
    whole = 1  # tokens are compressed in multiples of it
    eager = False  # compresses after every prompt, once it has begun to

    def run(
        self, k: NDArray[np.float16], v: NDArray[np.float16], q: NDArray[np.float32], turns: list[tuple[int, int]]
    ) -> Array:
        """turns: tokens that come as a prompt, and tokens decoded behind them. [n_decoded, n_heads, head_dim]"""
        self.k, self.v, self.q = (x.astype(np.float64) for x in (k, v, q))
        self.position: NDArray[np.intp] = np.arange(0)  # of what is kept of compressed tokens
        self.kept_k = self.kept_v = self.k[:, :0]
        self.done = self.n = 0  # tokens that are compressed, that have come
        self.begin()
        out = []
        for together, apart in turns:
            if together:
                self.n += together
                self.attended([self.attention(t) for t in range(self.n - together, self.n)])
                if self.n - self.done >= self.window + self.recent or (self.eager and self.done):
                    self.compress((self.n - self.recent - self.done) // self.whole * self.whole, together)
            for _ in range(apart):
                if self.n - self.done >= self.window + self.recent:
                    self.compress(self.window, 0)
                self.n += 1
                p = self.attention(self.n - 1)
                self.attended([p])
                values = np.repeat(self.seen()[1], self.q.shape[1] // len(self.k), 0)
                out.append(np.einsum("hj,hjd->hd", p, values))
        return np.array(out)

    def seen(self) -> tuple[Array, Array, NDArray[np.intp]]:
        """Keys, values and positions of all there is: kept rows, then uncompressed ones."""
        return (
            np.concatenate([self.kept_k, self.k[:, self.done : self.n]], 1),
            np.concatenate([self.kept_v, self.v[:, self.done : self.n]], 1),
            np.concatenate([self.position, np.arange(self.done, self.n)]),
        )

    def attention(self, token: int) -> Array:
        """Probabilities [n_heads, rows] of a token over all there is up to it."""
        keys, _, position = self.seen()
        keys = np.repeat(keys, self.q.shape[1] // len(self.k), 0)
        logits = np.einsum("hd,hjd->hj", self.q[token], keys) / math.sqrt(keys.shape[-1])
        logits[:, position > token] = -np.inf
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    def begin(self) -> None:
        pass

    def attended(self, rows: list[Array]) -> None:
        """Each [n_heads, rows] over what seen() gives now."""

    def compress(self, n: int, prompt: int) -> None:
        """The oldest n uncompressed tokens. prompt: how many came as one just now; 0 while decoding."""
        k, v = self.stored(slice(self.done, self.done + n), prompt)
        self.kept_k, self.kept_v = np.concatenate([self.kept_k, k], 1), np.concatenate([self.kept_v, v], 1)
        self.position = np.append(self.position, np.arange(self.done, self.done + n))
        self.done += n

    def stored(self, tokens: slice, prompt: int) -> tuple[Array, Array]:
        """Keys and values of these tokens as the cache has them. Of each rival that does not override compress()."""
        raise NotImplementedError


class Kivi(Rival):
    """K: a channel over `group` tokens. V: a token over `group` channels."""

    recent = 128

    def __init__(self, bits: int, group: int = 32, window: int = 64, recent: int = 128) -> None:
        self.bits, self.group, self.window, self.recent, self.whole = bits, group, window, recent, group

    def stored(self, tokens: slice, prompt: int) -> tuple[Array, Array]:
        k, v = self.k[:, tokens], self.v[:, tokens]
        heads, n, dim = k.shape
        by_channel = quantized(k.reshape(heads, n // self.group, self.group, dim), self.bits, (2,))
        by_token = quantized(v.reshape(heads, n, dim // self.group, self.group), self.bits, (3,))
        return by_channel.reshape(k.shape), by_token.reshape(v.shape)


class Mikv(Rival):
    """Tokenwise in two precisions, by accumulated attention; keys times sqrt(max |q_c| / max |k_c|) of the first prompt."""

    def __init__(self, ratio: float = 0.6, high: int = 4, low: int = 2) -> None:
        self.ratio, self.high, self.low = ratio, high, low

    def begin(self) -> None:
        self.rows: list[Array] = []  # attention over uncompressed tokens since the last compression
        self.balancer: Array | None = None

    def attended(self, rows: list[Array]) -> None:
        n_open = self.n - self.done
        self.rows += [row.sum(0)[-n_open:] for row in rows]

    def stored(self, tokens: slice, prompt: int) -> tuple[Array, Array]:
        k, v = self.k[:, tokens], self.v[:, tokens]
        heads, n, dim = k.shape
        if self.balancer is None:
            q = self.q[self.n - prompt : self.n].reshape(prompt, heads, -1, dim)
            self.balancer = np.sqrt(np.abs(q).max((0, 2)) / np.abs(k).max(1))[:, None]  # [heads, 1, dim]
        score = sum(np.pad(row, (0, n))[:n] for row in self.rows)
        self.rows = []
        important = np.zeros(n, bool)
        important[most(score, rounded(self.ratio * n))] = True

        def tokenwise(x: Array) -> Array:
            return np.where(important[:, None], quantized(x, self.high, (0, 2)), quantized(x, self.low, (0, 2)))

        return tokenwise(k * self.balancer) / self.balancer, tokenwise(v)


class H2o(Rival):
    """Keeps the newest tokens and those with the largest accumulated attention; shares are of all that have come."""

    eager = True

    def __init__(self, heavy: float = 0.2, newest: float = 0.2, window: int = 100) -> None:
        self.heavy, self.newest, self.window = heavy, newest, window

    def begin(self) -> None:
        self.score: Array = np.zeros(0)  # of each token, summed over heads and rows

    def attended(self, rows: list[Array]) -> None:
        self.score = np.pad(self.score, (0, self.n - len(self.score)))
        for row in rows:
            self.score[self.seen()[2]] += row.sum(0)

    def compress(self, n: int, prompt: int) -> None:
        keys, values, position = self.seen()
        is_new = position >= self.n - rounded(self.newest * self.n)
        heavy = most(np.where(is_new, -1, self.score[position]), rounded(self.heavy * self.n))
        stay = np.union1d(heavy[~is_new[heavy]], np.flatnonzero(is_new))
        self.kept_k, self.kept_v, self.position = keys[:, stay], values[:, stay], position[stay]
        self.done = self.n


class SnapKv(Rival):
    """Of a prompt: its newest 32 tokens, and those that these attend to most, pooled over 7. All decoded tokens."""

    observed = 32
    pool = 7

    def __init__(self, heavy: float = 0.2) -> None:
        self.heavy = heavy

    def attended(self, rows: list[Array]) -> None:
        self.rows = rows[-self.observed :]

    def compress(self, n: int, prompt: int) -> None:
        tokens = np.arange(self.done, self.done + n)
        if prompt:
            score = sum(row.sum(0)[-n:] for row in self.rows)
            reach = self.pool // 2
            pooled = np.array([score[max(0, i - reach) : i + reach + 1].max() for i in range(n)])
            chosen = most(pooled[: -self.observed], rounded(self.heavy * n))
            tokens = tokens[np.append(chosen, np.arange(n - self.observed, n))]
        self.kept_k = np.concatenate([self.kept_k, self.k[:, tokens]], 1)
        self.kept_v = np.concatenate([self.kept_v, self.v[:, tokens]], 1)
        self.position = np.append(self.position, tokens)
        self.done += n


class Gear(Rival):
    """Uniform codes, K by channel, V by token over all heads; the error's best low-rank part; outliers as they are."""

    window = 64

    def __init__(self, bits: int, rank: int = 4, window_rank: int = 2, outliers: float = 0.02) -> None:
        self.bits, self.rank, self.window_rank, self.outliers = bits, rank, window_rank, outliers

    def stored(self, tokens: slice, prompt: int) -> tuple[Array, Array]:
        heads, n, dim = self.k[:, tokens].shape
        channels = self.k[:, tokens].transpose(0, 2, 1).reshape(heads * dim, n)
        each_token = self.v[:, tokens].transpose(1, 0, 2).reshape(n, heads * dim)
        k, k_mark = (x.reshape(heads, dim, n).transpose(0, 2, 1) for x in self.coded(channels))
        v, v_mark = (x.reshape(n, heads, dim).transpose(1, 0, 2) for x in self.coded(each_token))
        rank = self.rank if n > self.window else self.window_rank
        return self.corrected(self.k[:, tokens], k, k_mark, rank), self.corrected(self.v[:, tokens], v, v_mark, rank)

    def coded(self, vectors: Array) -> tuple[Array, Array]:
        """Codes of rows that share parameters, which the largest and smallest have no say in; and a mark at these."""
        n = vectors.shape[1]
        each = min(rounded(self.outliers / 2 * n), (n - 1) // 2)
        order = np.argsort(vectors, 1, kind="stable")
        mark = np.zeros(vectors.shape, bool)
        np.put_along_axis(mark, np.concatenate([order[:, :each], order[:, n - each :]], 1), True, 1)
        low = np.where(mark, np.inf, vectors).min(1, keepdims=True)
        high = np.where(mark, -np.inf, vectors).max(1, keepdims=True)
        return quantized(np.clip(vectors, low, high), self.bits, (1,)), mark

    def corrected(self, x: Array, codes: Array, mark: Array, rank: int) -> Array:
        """Each head apart. The part is found by three power iterations, begun with the longest rows of the error."""
        out = codes.copy()
        for head, error in enumerate(np.where(mark, 0, x - codes)):
            longest = np.argsort(-(error**2).sum(1), kind="stable")[:rank]
            basis = np.linalg.qr(error[longest].T)[0]  # [dim, rank]
            for _ in range(3):
                basis = np.linalg.qr(error.T @ (error @ basis))[0]
            out[head] += half(error @ basis) @ half(basis).T
        return out + np.where(mark, half(x - out), 0)
