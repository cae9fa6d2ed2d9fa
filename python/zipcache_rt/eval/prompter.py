"""Prompts as the model's tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..model import Model

if TYPE_CHECKING:
    from .case import Case

UNLIKE = ("\N{SNOWMAN}", "7")  # prompts that share no beginning


class Prompter:
    """Turns cases into token ids. template: use the model's chat template; None: where it has one."""

    def __init__(self, model: Model, template: bool | None = None) -> None:
        self.model = model
        self.template = model.info.has_chat_template if template is None else template

    def tokens(self, case: Case) -> tuple[int, ...]:
        """Raises ModelError for a model without a tokenizer or, where one is asked for, without a template."""
        if not isinstance(case.prompt, str):
            return case.prompt
        if not self.template:
            return tuple(self.model.tokenize(_plain(case), special=False))
        turns = [(role, text) for shot in case.shots for role, text in zip(("user", "assistant"), shot, strict=True)]
        messages = [{"role": role, "content": text} for role, text in [*turns, ("user", case.prompt)]]
        return tuple(self.model.tokenize_chat(messages))

    def shared(self, case: Case) -> int:
        """How many of its first tokens its shots alone decide."""
        if not case.shots:
            return 0
        first, *others = (self.tokens(replace(case, prompt=prompt)) for prompt in (case.prompt, *UNLIKE))
        pairs = (zip(first, other, strict=False) for other in others)
        return min(next((i for i, (a, b) in enumerate(pair) if a != b), 0) for pair in pairs)


def _plain(case: Case) -> str:
    """The shots and the prompt as one text that the answer goes on from."""
    lead = f"\n{case.lead}" if case.lead else ""
    return "".join(f"{prompt}{lead} {reply}\n\n" for prompt, reply in case.shots) + f"{case.prompt}{lead}"
