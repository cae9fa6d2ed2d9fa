"""The packages that only conversion needs."""

from __future__ import annotations

import importlib.util

from .._core import ArgumentError

PACKAGES = {"gguf": "gguf", "safetensors": "safetensors", "sentencepiece": "sentencepiece", "tokenizers": "tokenizers"}
PACKAGES["google.protobuf"] = "protobuf"


def require() -> None:
    """Raises ArgumentError that says how to get what is missing."""
    missing = [package for module, package in PACKAGES.items() if not _found(module)]
    if missing:
        raise ArgumentError(f"conversion needs {', '.join(missing)}: pip install 'zipcache-rt[convert]'")


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False
