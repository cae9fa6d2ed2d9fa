"""What the benchmarks share. Imports neither engine: both bring ggml under the same library names."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

LIMIT_FROM = 512  # tokens after which a rate is believed


def too_slow(began: float, done: float, total: int, limit: float) -> bool:
    """Whether `total` tokens will take more than `limit` seconds, at the rate of the `done` ones since `began`."""
    return done >= min(LIMIT_FROM, total) and (time.perf_counter() - began) * total > limit * done


def peak_bytes() -> int:
    """Most resident memory of this process since it began."""
    path = Path("/proc/self/status")  # ru_maxrss would begin at the parent's peak on Linux
    lines = path.read_text().splitlines() if path.exists() else []
    status = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return status or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(script: str, *args: object) -> dict[str, Any]:
    """The JSON object that a Python script prints last."""
    done = subprocess.run([sys.executable, script, *map(str, args)], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{Path(script).name} {' '.join(map(str, args))} failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def numbers_table(title: str, labels: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for name in labels:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
