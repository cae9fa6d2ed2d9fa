"""A model that is reported on, with what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import eval as tasks
from .._core import ArgumentError
from ..eval.prompter import Prompter
from ..fidelity_data import Text
from ..hashes import file_sha256
from ..model import ModelInfo
from .plan import MARGIN, Size


@dataclass(frozen=True)
class Subject:
    """Everything that results depend on, besides the policy."""

    path: Path
    sha256: str  # of the file
    info: ModelInfo
    options: tasks.RunOptions  # of every run; without the chat template, so that base models answer too
    size: Size  # what of it fits the model
    texts: tuple[Text, ...]
    task: tasks.Lines
    cases: tuple[str, ...]  # ids of the task's cases
    prompt_text: str  # whose saliency is shown
    prompt: tuple[int, ...]  # as tokens

    @property
    def prompt_name(self) -> str:
        """Of the file that holds the prompt."""
        return f"prompt-{self.name}.txt"

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def of(cls, path: Path, size: Size, texts: Sequence[tuple[str, str]], options: tasks.RunOptions) -> Subject:
        """texts: names and contents. Raises ArgumentError for a model or a text that is too short, FileError."""
        with options.open(path) as model:
            size = size.fitted(model.info)
            read = tuple(Text.of(model, name, text) for name, text in texts)
            needed = size.context + size.n_continue
            for text in read:
                if len(text.tokens) < needed:
                    raise ArgumentError(f"{text.name} has {len(text.tokens)} tokens; needed: {needed}")
            prompter = Prompter(model, options.template)
            task, cases = _lines(size, prompter, model.info.n_ctx_train)
            example = tasks.Lines(lines=(size.prompt_lines,), n_cases=1).cases(prompter)[0]
            prompt = prompter.tokens(example)[-(model.info.n_ctx_train - MARGIN) :]
            prompt_text = model.detokenize(prompt, special=False)
            return cls(path, file_sha256(path), model.info, options, size, read, task, cases, prompt_text, prompt)


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
