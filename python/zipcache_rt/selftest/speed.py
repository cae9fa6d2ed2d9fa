"""How fast a device reads prompts and decodes at depth, each figure in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from .._core import ZipCacheError
from ..report.worker import Spec, in_fresh_process
from .part import Check, Part

POLICIES = ("f16", "zipcache", "auto")


def test(
    path: Path, device: str, threads: int, depths: Sequence[int], n_decode: int, progress: Callable[[float], None]
) -> Part:
    """depths: tokens of prompt. A run that fails is a failed check; how fast it is, is not judged."""
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    wanted = [(depth, policy) for depth in depths for policy in POLICIES]
    for i, (depth, policy) in enumerate(wanted):
        name = f"{policy} at {depth}"
        try:
            made = in_fresh_process(Spec(str(path), device, threads, policy, depth, n_decode))
        except ZipCacheError as error:
            checks.append(Check(name, False, str(error)))
            continue
        rates = {"prefill": depth / made.prefill_seconds, "decode": n_decode / made.decode_seconds}
        rows.append({"policy": policy, "depth": depth, "tokens_per_second": rates, **asdict(made)})
        checks.append(Check(name, True))
        progress((i + 1) / len(wanted))
    return Part(
        "speed", checks, {"n_decode": n_decode, "threads": threads, "rows": rows}, [_table(rows, device, n_decode)]
    )


def _table(rows: list[dict[str, Any]], device: str, n_decode: int) -> Table:
    table = Table(title=f"Speed on {device}: tokens/s, one run each; {n_decode} tokens decoded behind the prompt")
    table.add_column("policy", no_wrap=True)
    for head in ("prompt", "prefill", "decode", "KV, MiB", "bits"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        rates = row["tokens_per_second"]
        speeds = (f"{rates['prefill']:,.0f}", f"{rates['decode']:,.1f}")
        table.add_row(
            row["policy"], f"{row['depth']:,}", *speeds, f"{row['kv_bytes'] / 2**20:,.1f}", f"{row['kv_bits']:.2f}"
        )
    return table
