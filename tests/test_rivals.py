"""The rivals of ZipCache as policies of our cache: they compute what their papers' formulas give, and cost what these
count."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import rivals
from helpers.trials import Rows, Turns, tried

ONE_PROMPT = [(400, 250)]
TURNS = [(330, 150), (60, 120)]  # a second prompt, smaller than a window
CASES: list[tuple[str, rivals.Rival, Turns]] = [
    ("kivi", rivals.Kivi(2), TURNS),
    ("kivi:4", rivals.Kivi(4), TURNS),
    ("kivi:2,group=64,recent=64", rivals.Kivi(2, group=64, window=128, recent=64), ONE_PROMPT),
    ("kivi:4,window=32,recent=0", rivals.Kivi(4, window=32, recent=0), TURNS),
    # a prompt that only fills the window is not scored by ours: one prompt
    ("mikv", rivals.Mikv(), ONE_PROMPT),
    ("mikv,ratio=0.3,high_bits=8,low_bits=3", rivals.Mikv(0.3, 8, 3), ONE_PROMPT),
    ("h2o", rivals.H2o(), ONE_PROMPT),
    ("h2o,heavy=0.35,newest=0.05", rivals.H2o(0.35, 0.05), TURNS),
    ("h2o,window=16", rivals.H2o(window=16), TURNS),
    ("snapkv", rivals.SnapKv(), ONE_PROMPT),
    ("snapkv,heavy=0.5", rivals.SnapKv(0.5), [(330, 150), (200, 20)]),
    ("gear", rivals.Gear(4), TURNS),
    ("gear:2", rivals.Gear(2), TURNS),
    ("gear:2,rank=0,window_rank=0,outliers=0", rivals.Gear(2, 0, 0, 0), ONE_PROMPT),
    ("gear:2,rank=16,window_rank=1,outliers=0.1", rivals.Gear(2, 16, 1, 0.1), ONE_PROMPT),
]
NAMES = [f"{kv} {turns}" for kv, _, turns in CASES]
SHAPES = [(2, 6, 64), (1, 4, 128), (3, 3, 192)]  # KV heads, heads, head_dim
EXACT = 1e-5  # sums of some hundred 32-bit products of unit scale
APPROXIMATED = 5e-4  # power iterations of 32 bits, and f16 factors
WORKER = """
import pickle, sys
from helpers.trials import tried
pickle.dump([tried(*job)[0] for job in pickle.load(sys.stdin.buffer)], sys.stdout.buffer)
"""


def rows_of(shape: tuple[int, int, int], n: int, seed: int = 0) -> Rows:
    """Keys have biases of their channels, some of them large."""
    n_kv_heads, n_heads, dim = shape
    random = np.random.default_rng(seed)
    bias = random.standard_normal(dim) * np.where(random.random(dim) < 0.1, 8, 1)
    return {
        "k": (random.standard_normal((n_kv_heads, n, dim)) + bias).astype(np.float16),
        "v": random.standard_normal((n_kv_heads, n, dim)).astype(np.float16),
        "q": (random.standard_normal((n, n_heads, dim)) * np.where(np.abs(bias) > 3, 0.2, 1)).astype(np.float32),
    }


def length(turns: Turns) -> int:
    return sum(map(sum, turns))


@pytest.fixture(scope="module")
def by_reference() -> list[list[NDArray[np.float32]]]:
    """Every case and shape by the kernels of ZIPCACHE_CPU=ref, which a process reads once."""
    jobs = [(kv, rows_of(shape, length(turns)), turns) for kv, _, turns in CASES for shape in SHAPES]
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        check=True,
        input=pickle.dumps(jobs),
        stdout=subprocess.PIPE,
        env=os.environ | {"ZIPCACHE_CPU": "ref", "PYTHONPATH": str(Path(__file__).parent)},
    )
    results = pickle.loads(done.stdout)
    return [results[i : i + len(SHAPES)] for i in range(0, len(results), len(SHAPES))]


@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_attention_is_that_of_the_paper(case: int, by_reference: list[list[NDArray[np.float32]]]) -> None:
    kv, rival, turns = CASES[case]
    for shape, exact in zip(SHAPES, by_reference[case], strict=True):
        rows = rows_of(shape, length(turns))
        expected = rival.run(rows["k"], rows["v"], rows["q"], turns)
        assert np.abs(exact - expected).max() <= (APPROXIMATED if kv.startswith("gear") else EXACT)
        # the vector kernels round queries and probabilities that meet codes to 8 bits
        got, _ = tried(kv, rows, turns)
        error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
        assert error <= (EXACT if kv.startswith(("h2o", "snapkv")) else 0.05)


# All-in bits of an element by the formulas: codes, and 32 bits for every pair of parameters; two bits of order a token.
def kivi_bits(bits: int, group: int) -> float:
    return bits + 32 / group


def tokenwise_bits(ratio: float, high: int, low: int, width: int) -> float:
    return ratio * high + (1 - ratio) * low + 32 / width + 2 / (2 * width)


def gear_bits(bits: int, rank: int, share: float, n: int, heads: int, dim: int) -> float:
    width = heads * dim
    parameters = (32 / n + 32 / width) / 2  # of K, of V
    low_rank = rank * 16 * (n + dim) / (n * dim)
    k, v = 2 * rivals.rounded(share / 2 * n) / n, 2 * rivals.rounded(share / 2 * width) / width
    return bits + parameters + low_rank + 32 * (k + v) / 2


def kept_bits(share: float, width: int, scores: bool) -> float:
    return 16 * share + (2 + 32 * scores) / (2 * width)


@pytest.mark.parametrize(
    ("kv", "turns", "bits"),
    [
        ("kivi:2", [(4224, 0)], kivi_bits(2, 32)),
        ("kivi:4", [(4224, 0)], kivi_bits(4, 32)),
        ("kivi:2,group=64", [(4224, 0)], kivi_bits(2, 64)),
        ("mikv,probes=recent", [(4096, 0)], tokenwise_bits(0.6, 4, 2, 512)),
        ("mikv,ratio=0.25,probes=recent", [(4096, 0)], tokenwise_bits(0.25, 4, 2, 512)),
        ("h2o,probes=recent", [(4096, 0)], kept_bits(0.4, 512, True)),
        ("h2o,heavy=0.1,newest=0.1,probes=recent", [(4096, 0)], kept_bits(0.2, 512, True)),
        ("snapkv", [(4096, 0)], kept_bits(0.2 + 32 / 4096, 512, False)),
        ("gear", [(4096, 0)], gear_bits(4, 4, 0.02, 4096, 4, 128)),
        ("gear:2,rank=8,outliers=0.05", [(4096, 0)], gear_bits(2, 8, 0.05, 4096, 4, 128)),
    ],
)
def test_bytes_are_those_of_the_formulas(kv: str, turns: Turns, bits: float) -> None:
    rows = rows_of((4, 4, 128), length(turns))
    _, stats = tried(kv, rows, turns)
    assert stats["compressed_elements"] == 2 * 512 * (4096 if kv.startswith("kivi") else length(turns))
    # beside them: tables, a tier's last block, whole pages
    assert bits <= stats["compressed_bits"] <= bits * 1.01 + 0.03


def test_evicted_tokens_free_their_bytes_while_decoding() -> None:
    rows = rows_of((4, 4, 128), 1400)
    per_token = 2 * 512 * 2
    for n, kept in ((400, 0.4), (800, 0.4), (1400, 0.4)):
        _, stats = tried(
            "h2o,probes=recent",
            {"k": rows["k"][:, :n].copy(), "v": rows["v"][:, :n].copy(), "q": rows["q"][:n]},
            [(300, n - 300)],
        )
        compressed = stats["compressed_elements"] // 1024
        assert compressed == n - 100  # the last window is still open
        assert stats["compressed_bytes"] == pytest.approx(kept * compressed * per_token, rel=0.05)
