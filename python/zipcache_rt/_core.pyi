"""The native module. `zipcache_rt` wraps it; nothing here is promised to stay."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[float], None]  # called with 0..1; an exception it raises stops the work and is raised again

class ZipCacheError(Exception): ...
class FileError(ZipCacheError): ...
class ModelError(ZipCacheError): ...
class ContextError(ZipCacheError): ...
class ArgumentError(ZipCacheError): ...
class CancelledError(ZipCacheError): ...

def inspect(path: str, n_ctx: int, repack: bool, kv: KvOptions) -> dict[str, Any]:
    """{"version", "file_bytes", "metadata": {key: value, arrays longer than 8 as (type, count)},
    "tensors": [(name, type name, shape, bytes)],
    "plan": {"n_ctx", "weights_mapped", "weights_repacked", "kv_bytes", "scratch_bytes"}}"""

def ggml_build() -> dict[str, Any]:
    """{"version", "commit", "source": "wheel" | "source", "features": {"AVX2": True, ...},
    "kernels": "ref" | "avx2" | "avx512" | "vnni" | "neon" | "dotprod"}"""

def cuda_devices() -> dict[str, Any]:
    """{"descriptions": of cuda:0, cuda:1, ..., "missing": why there are none, or ""}"""

def find_device(name: str) -> dict[str, Any]:
    """{"name": of the device that Model would take, but for models that it cannot run, "description", "free", "total":
    bytes of its memory}. Raises ArgumentError for one that is not there."""

def quantize(values: NDArray[np.float32], type: int, threads: int, name: str) -> NDArray[np.uint8]:
    """[n_rows, n_columns] -> [n_rows, bytes of a row] in ggml's type of that number; threads: 0 for one a core."""

def score_prompt(
    model: Model, tokens: NDArray[np.int32], options: KvOptions, progress: Progress | None
) -> dict[str, NDArray[Any]]:
    """{"probes": int64 [n_probes] rising, "score": float32 [n_layers, n_kv_heads, n_tokens]: the attention that a token
    got from the probes, summed over them and the heads of its group, "seen": float32 [n_layers, n_tokens]: probes that
    see it}. Of the options those of the probes count."""

def bench_attend_kv(
    *,
    layout: str,
    head_dim: int,
    n_kv_heads: int,
    n_heads: int,
    n_tokens: int,
    k_bits: int,
    v_bits: int,
    n_copies: int,
    n_passes: int,
) -> dict[str, Any]:
    """Times attend_kv on one thread over n_copies equal caches of random rows, n_passes times.

    layout: auto, zipcache, blocks (of 32 channels, as q4_0 and q8_0), or f16: an uncompressed window.
    {"bytes": that a run reads, "attend", "copy", "read": seconds of a run for each pass: attention, memcpy of the same
    bytes, their sum; "rounding": relative rms error of the kernel beside its reference, "quantization": of that
    reference beside attention over the rows as they were}"""

class KvTrial:
    """One layer of a cache on a device ("cpu", "cuda", ...: as Model takes it) over given rows, without a model.

    norms: [n_heads, head_dim] above 0, how strongly each channel of the output is read: what the squared columns of an
    output projection sum to. sliding_window: newest tokens that are seen, 0: all. Raises ArgumentError for a policy or
    heads that the device does not have. Rows are f16 as their bits; n tokens are k, v [n_kv_heads, n, head_dim],
    q [n, n_heads, head_dim]."""

    def __init__(
        self, *, kv: KvOptions, device: str, norms: NDArray[np.float32], n_kv_heads: int, sliding_window: int
    ) -> None: ...
    def prefill(self, k: NDArray[np.uint16], v: NDArray[np.uint16], q: NDArray[np.float32]) -> None:
        """Appends tokens that come together, as a prompt."""
    def decode(self, k: NDArray[np.uint16], v: NDArray[np.uint16], q: NDArray[np.float32]) -> NDArray[np.float32]:
        """Appends tokens one by one: the attention of each, [n, n_heads, head_dim]."""
    def rows(self) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """k, v [n_kv_heads, n_rows, head_dim] that the cache holds, dequantized, oldest first. Through a sliding window
        the newest token saw the last `sliding_window` of them, without one all."""
    def truncate(self, n_tokens: int) -> None: ...
    def stats(self) -> dict[str, Any]:
        """As Session.kv_stats()."""

class Model:
    def __init__(
        self, path: str, device: str, gpu_layers: int, threads: int, repack: bool, progress: Progress | None
    ) -> None:
        """gpu_layers: the last layers, those that a GPU gets; -1: as many as fit. threads: 0 for one a core."""
    @property
    def info(self) -> dict[str, Any]: ...
    def free_memory(self) -> int: ...
    def tokenize(self, text: bytes, add_bos: bool | None, special: bool) -> list[int]: ...
    def detokenize(self, ids: list[int], special: bool) -> bytes: ...
    def piece(self, token: int, special: bool) -> bytes: ...
    def is_end(self, token: int) -> bool: ...
    def session(self, n_ctx: int, kv: KvOptions) -> Session: ...
    def load_session(self, path: str) -> Session: ...

class KvOptions:
    def __init__(
        self,
        *,
        policy: str,
        bits: float,
        ratio: float,
        high_bits: int,
        low_bits: int,
        saliency: str,
        probes: str,
        random_probes: float,
        recent_probes: float,
        keys: str,
        values: str,
        rotate: bool,
        per_head: bool,
        group: int,
        heavy: float,
        newest: float,
        rank: int,
        window_rank: int,
        outliers: float,
        window: int,
        recent: int,
        seed: int,
    ) -> None: ...

class SamplerOptions:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        penalty_last_n: int,
        logit_bias: list[tuple[int, float]],
        seed: int,
    ) -> None: ...

class Session:
    n_ctx: int
    n_past: int
    tokens: list[int]  # what the cache holds, oldest first
    least_kept: int  # what truncate() takes besides 0: so many tokens, or more
    def prefill(self, tokens: NDArray[np.int32], progress: Progress | None) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def decode(self, token: int) -> None: ...
    def score(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]: ...
    def kv_stats(self) -> dict[str, Any]:
        """{"bytes", "elements", "bits", "ratio", "n_tokens", "compressed_bytes", "compressed_elements",
        "compressed_bits"}"""
    def stats(self) -> dict[str, float]:
        """{"prefill_tokens", "prefill_seconds", "decode_tokens", "decode_seconds", "scratch_bytes", "compress_seconds",
        "dequantize_seconds"} since the session began"""
    def time_cache(self, on: bool) -> None: ...
    @property
    def planned_bytes(self) -> int: ...
    def fork(self) -> Session: ...
    def save(self, path: str) -> None: ...
    def truncate(self, n_tokens: int) -> None: ...
    def reset(self) -> None: ...
    def cancel(self) -> None:
        """From any thread: the call in progress, or the next one, raises CancelledError; the session stays usable."""

class Generation:
    """One reply in progress. Prefills `tokens` on the first next()."""

    def __init__(
        self,
        session: Session,
        tokens: NDArray[np.int32],
        max_tokens: int,
        sampler: SamplerOptions,
        stop: list[str],
        progress: Progress | None,
    ) -> None: ...
    def next(self) -> tuple[str, int, float] | None:
        """(text, token, logprob), or None at the end. Text may be empty while it is undecided."""
    @property
    def finish_reason(self) -> str | None: ...

def decode_batch(sessions: list[Session], tokens: list[int]) -> None:
    """Appends tokens[i] to sessions[i], all in one pass."""

def decode_newest(replies: list[Generation]) -> None:
    """The newest tokens of the replies reach their caches in one pass; next() of each then has only to sample."""
