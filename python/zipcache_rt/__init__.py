"""Run GGUF models with a compressed KV cache.

>>> from zipcache_rt import Model
>>> model = Model("model.gguf")
>>> for piece in model.session().generate("The capital of France is", max_tokens=8):
...     print(piece.text, end="", flush=True)
"""

from importlib.metadata import version

from ._core import ArgumentError, CancelledError, ContextError, FileError, ModelError, ZipCacheError
from .model import Model, ModelInfo
from .options import KvOptions, SamplerOptions
from .session import Generation, KvStats, Piece, Session, Stats

__version__ = version("zipcache-rt")

__all__ = [
    "ArgumentError",
    "CancelledError",
    "ContextError",
    "FileError",
    "Generation",
    "KvOptions",
    "KvStats",
    "Model",
    "ModelError",
    "ModelInfo",
    "Piece",
    "SamplerOptions",
    "Session",
    "Stats",
    "ZipCacheError",
]
