"""Checkpoints as transformers saves them, to GGUF: `python -m zipcache_rt.convert HF_DIR OUT.gguf --type f16`.

>>> from zipcache_rt.convert import convert
>>> notices = convert("SmolLM2-135M", "smollm2.gguf", type="f16")

Needs the extra `convert`. Reading order: conversion.py (the main path), plan.py, architectures/, recipe.py,
checkpoint.py, tokenizer/.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .. import checks
from . import extra

__all__ = ["convert"]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    type: str = "f16",
    threads: int | None = None,
    verify: bool = True,
    progress: Callable[[float], None] | None = None,
) -> list[str]:
    """Converts the checkpoint in the folder `source` to the GGUF file `target`.

    type: of the matrices, as zipcache_rt.quantize knows them; vectors stay f32. threads: to quantize with, None for one
    a core. verify: reopen the file, compare samples, run a few tokens. progress: called
    with 0..1. Returns what the file will do otherwise than the checkpoint, a sentence each; mostly nothing.

    Raises FileError (cannot be read or written, damaged), ModelError (has no place in GGUF, or does not fit together),
    ArgumentError (the type, a package that is missing). The target appears whole or not at all.
    """
    folder, file = Path(checks.path(source, "source")), Path(checks.path(target, "target"))
    checks.instance(type, str, "type")
    checks.callback(progress, "progress")
    if threads is not None:
        threads = checks.integer(threads, "threads", 1, 512, "1 to 512, or None for one a core")
    extra.require()
    from .conversion import execute
    from .plan import make_plan

    plan = make_plan(folder, type)
    execute(plan, file, threads=threads, verify=bool(verify), progress=progress or (lambda done: None))
    return list(plan.notices)
