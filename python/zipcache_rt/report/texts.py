"""Text to measure on that every Python brings along: the language reference's prose, and a module's source."""

from __future__ import annotations

import argparse
import inspect
import random
from pydoc_data.topics import topics

from ..model import Model


def own() -> dict[str, str]:
    """By name. They differ between versions of Python, so reports keep their hashes."""
    return {"python-reference.txt": reference(), "python-argparse.txt": inspect.getsource(argparse)}


def reference() -> str:
    return "\n".join(topics[name] for name in sorted(topics))


def reference_ids(model: Model, n: int) -> list[int]:
    """Token ids [n] of the reference, repeated to length; random ones for a model without a tokenizer."""
    if not model.info.has_tokenizer:
        source = random.Random(0)
        return [source.randrange(model.info.n_vocab) for _ in range(n)]
    ids = model.tokenize(reference()[: 16 * n], special=False)
    while len(ids) < n:
        ids += ids
    return ids[:n]
