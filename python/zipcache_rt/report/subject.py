"""A model that is reported on, with what it is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import eval as tasks
from .._core import ArgumentError, FileError
from ..eval.prompter import Prompter
from ..fidelity_data import Text
from ..model import Model, ModelInfo
from .plan import MARGIN, Size


@dataclass(frozen=True)
class Where:
    """What computes."""

    device: str = "auto"
    threads: int | None = None

    def open(self, path: Path) -> Model:
        return Model(path, device=self.device, threads=self.threads)


@dataclass(frozen=True)
class Subject:
    """Everything that results depend on, besides the policy."""

    path: Path
    sha256: str  # of the file
    info: ModelInfo
    where: Where
    size: Size  # what of it fits the model
    texts: tuple[Text, ...]
    task: tasks.Lines
    cases: tuple[str, ...]  # ids of the task's cases
    prompt_text: str  # whose saliency is shown, before the chat template
    prompt: tuple[int, ...]  # as tokens

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def of(cls, path: Path, size: Size, texts: Sequence[tuple[str, str]], where: Where) -> Subject:
        """texts: names and contents. Raises ArgumentError for a model or a text that is too short, FileError."""
        with where.open(path) as model:
            size = size.fitted(model.info)
            read = tuple(Text.of(model, name, text) for name, text in texts)
            needed = size.context + size.n_continue
            for text in read:
                if len(text.tokens) < needed:
                    raise ArgumentError(f"{text.name} has {len(text.tokens)} tokens; needed: {needed}")
            prompter = Prompter(model)
            task, cases = _lines(size, prompter, model.info.n_ctx_train)
            example = tasks.Lines(lines=(size.prompt_lines,), n_cases=1).cases(prompter)[0]
            prompt = prompter.tokens(example)[-(model.info.n_ctx_train - MARGIN) :]
            text = str(example.prompt)
            return cls(path, sha256(path), model.info, where, size, read, task, cases, text, prompt)


def _lines(size: Size, prompter: Prompter, n_ctx: int) -> tuple[tasks.Lines, tuple[str, ...]]:
    """The task with those numbers of lines that fit, and its cases."""
    fitting: list[int] = []
    ids: list[str] = []
    for n_lines in sorted(size.lines):
        cases = tasks.Lines(lines=(n_lines,), n_cases=size.n_cases).cases(prompter)
        if max(len(prompter.tokens(case)) + case.max_tokens for case in cases) + MARGIN <= n_ctx:
            fitting.append(n_lines)
            ids += [case.id for case in cases]
    return tasks.Lines(lines=tuple(fitting), n_cases=size.n_cases), tuple(ids)


def sha256(path: Path) -> str:
    """Of a file. Raises FileError."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(2**20):
                digest.update(part)
            return digest.hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def ids_sha256(ids: Sequence[int]) -> str:
    """Of token ids as little-endian int32."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()
