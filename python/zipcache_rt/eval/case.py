"""What a task is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .prompter import Prompter

Metric = Literal["accuracy", "perplexity"]
Json = Any  # what json.dumps() takes and json.loads() gives back


@dataclass(frozen=True)
class Case:
    """One question, or one stretch of text to predict."""

    id: str  # unique in its task; a question keeps its id however many are asked
    prompt: str | tuple[int, ...]  # text, or token ids that are taken as they are
    group: str = ""  # cases that are also summed up apart, such as "40 lines"
    shots: tuple[tuple[str, str], ...] = ()  # solved examples before it: (prompt, reply)
    lead: str = ""  # how the answer begins; used only without a chat template
    stop: tuple[str, ...] = ()  # texts that end a reply; used only without a chat template
    max_tokens: int = 64  # of the reply
    expected: Json = None  # what the task's score() compares with
    kept_back: Json = None  # what else score() needs and no record repeats
    continuation: tuple[int, ...] = ()  # token ids to predict after the prompt, instead of replying


class Task(Protocol):
    """A source of cases that can score replies. Worker processes get a copy: it must be picklable."""

    @property
    def name(self) -> str:
        """As on the command line and in the records."""

    @property
    def metric(self) -> Metric:
        """accuracy: scores are 0..1. perplexity: cases have continuations, scores are mean natural logs."""

    @property
    def options(self) -> Mapping[str, Json]:
        """What its replies depend on and no case's id tells: seeds, how many shots, ..."""

    def cases(self, prompter: Prompter) -> list[Case]:
        """The same cases for the same task and model. Raises ArgumentError and FileError."""

    def score(self, case: Case, reply: str) -> float | None:
        """0 (wrong) to 1 (right), or None where that cannot be told. Not called for continuations."""
