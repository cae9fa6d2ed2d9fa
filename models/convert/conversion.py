"""The main path: plan, write beside the target, verify, put in place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from .._core import ArgumentError, FileError
from ..whole_file import replacing
from .plan import Plan
from .verify import verify as verify_file
from .write import write

SLACK = 64 << 20  # bytes for metadata


def execute(plan: Plan, target: Path, *, threads: int | None, verify: bool, progress: Callable[[float], None]) -> None:
    """Writes a plan's file. What stands at `target`, or nothing, stays until the new file is whole and verified."""
    if not target.name:
        raise FileError(f"the target {target} is a folder; accepted: a file")
    with replacing(target) as part:
        _check_target(plan, target)
        write(plan, part, threads, progress)
        if verify:
            verify_file(plan, part)


def _check_target(plan: Plan, target: Path) -> None:
    if not target.parent.is_dir():
        raise FileError(f"the folder {target.parent} of the target does not exist")
    if target.is_dir():
        raise FileError(f"the target {target} is a folder; accepted: a file")
    if target.exists() and any(target.samefile(tensor.file) for step in plan.steps for tensor in step.sources[:1]):
        raise ArgumentError(f"the target {target} is a file of the checkpoint; accepted: another")
    free = shutil.disk_usage(target.parent).free
    if free < plan.n_bytes + SLACK:
        raise FileError(f"{target.parent} has {free:,} bytes free; accepted: {plan.n_bytes + SLACK:,} or more")
