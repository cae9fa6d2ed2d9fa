"""Under which keys results are stored: all that they depend on."""

from __future__ import annotations

from ..fidelity_data import Text
from ..hashes import ids_sha256
from .store import Key
from .subject import Subject


def fidelity(subject: Subject, policy: str, text: Text) -> Key:
    size = subject.size
    ids = ids_sha256(text.tokens[: size.context + size.n_continue])
    return _key(subject, "fidelity", policy) | {"ids": ids, "context": size.context, "continue": size.n_continue}


def saliency(subject: Subject, ratio: float) -> Key:
    return _key(subject, "saliency", "") | {"ids": ids_sha256(subject.prompt), "ratio": ratio}


def speed(subject: Subject, policy: str, context: int, run: int) -> Key:
    rest = {"threads": subject.info.threads, "context": context, "n_decode": subject.size.n_decode, "run": run}
    return _key(subject, "speed", policy) | rest


def _key(subject: Subject, kind: str, policy: str) -> Key:
    return {"kind": kind, "model": subject.sha256, "device": subject.info.runs_on, "policy": policy}
