"""How fast a device reads prompts and decodes at depth, each figure in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import cli
from .._core import ZipCacheError
from ..eval import RunOptions
from ..report.worker import Spec, in_fresh_process
from .part import Check, Part


@dataclass(frozen=True)
class Size:
    policies: tuple[str, ...]
    depths: Sequence[int]  # tokens of prompt
    n_decode: int  # tokens behind each

    def fitted(self, n_ctx: int) -> Size:
        return replace(self, depths=[depth for depth in self.depths if depth + self.n_decode <= n_ctx])


def test(path: Path, options: RunOptions, size: Size, progress: Callable[[float], None]) -> Part:
    """options: where, and the threads. size: what of it fits the model. A run that fails is a failed check; how fast it
    is, is not judged."""
    device, threads = options.device, options.threads or os.cpu_count() or 1
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    wanted = [(depth, policy) for depth in size.depths for policy in size.policies]
    for i, (depth, policy) in enumerate(wanted):
        name = f"{policy} at {depth}"
        try:
            spec = Spec(str(path), device, threads, policy, depth, size.n_decode, options.gpu_layers)
            made = in_fresh_process(spec)
        except ZipCacheError as error:
            checks.append(Check(name, False, str(error)))
            continue
        checks.append(Check(name, True))
        rates = {"prefill": depth / made.prefill_seconds, "decode": size.n_decode / made.decode_seconds}
        rows.append({"policy": policy, "depth": depth, "tokens_per_second": rates, **asdict(made)})
        progress((i + 1) / len(wanted))
    return Part("speed", checks, {"n_decode": size.n_decode, "threads": threads, "rows": rows}, [_table(rows, device)])


def _table(rows: list[dict[str, Any]], device: str) -> Table:
    heads = ("prompt", "prefill", "decode", "KV, MiB", "bits")
    table = cli.policy_table(f"Speed on {device}, tokens/s", heads)
    for row in rows:
        rates = row["tokens_per_second"]
        speeds = (f"{rates['prefill']:,.0f}", f"{rates['decode']:,.1f}")
        table.add_row(
            row["policy"], f"{row['depth']:,}", *speeds, f"{row['kv_bytes'] / 2**20:,.1f}", f"{row['kv_bits']:.2f}"
        )
    return table
