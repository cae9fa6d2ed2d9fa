"""HumanEval: Python functions from their docstrings (arXiv 2107.03374)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import checks
from . import data_files
from .case import Case, Json, Metric
from .prompter import Prompter
from .run_code import Limits, passes

REQUEST = "Complete this Python function. Reply with the whole function in one block of code.\n\n```python\n{prompt}```"
_BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class HumanEval:
    """pass@1 where run_code is set; else completions are kept unscored."""

    data: Path  # JSON lines with task_id, prompt, entry_point, test
    run_code: bool = False  # runs what the model wrote: limited in time and memory, otherwise free to do as it likes
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    n_cases: int = 2**31
    max_tokens: int = 512
    name: ClassVar[str] = "humaneval"
    metric: ClassVar[Metric] = "accuracy"

    @property
    def options(self) -> Mapping[str, Json]:
        return {"data": self.data.name, "max_tokens": self.max_tokens}

    def cases(self, prompter: Prompter) -> list[Case]:
        checks.integer(self.max_tokens, "max_tokens", 1, 2**31, "1 or more")
        if self.run_code:
            self.limits.check()
        items = data_files.objects(self.data, checks.integer(self.n_cases, "cases", 1, 2**31, "1 or more"))
        return [self._case(item, prompter.template) for item in items]

    def _case(self, item: data_files.Item, template: bool) -> Case:
        prompt, name = item.get("prompt", str), item.get("entry_point", str)
        return Case(
            id=item.get("task_id", str),
            prompt=REQUEST.format(prompt=prompt) if template else prompt,
            stop=("\ndef ", "\nclass ", "\nif ", "\nprint(", "\nassert ", "\n#", "\n@", "\n```"),
            max_tokens=self.max_tokens,
            expected=name,
            kept_back={"prompt": prompt, "test": item.get("test", str)},
        )

    def score(self, case: Case, reply: str) -> float | None:
        if not self.run_code:
            return None
        given, name = case.kept_back, case.expected
        whole = f"{completed(given['prompt'], name, reply)}\n\n{given['test']}\n\ncheck({name})\n"
        return float(passes(whole, self.limits))


def completed(prompt: str, name: str, reply: str) -> str:
    """The program that a reply makes of a prompt: it holds the whole function, or goes on where the prompt ends."""
    header = re.compile(rf"^def {re.escape(name)}\b", re.MULTILINE)
    blocks = _BLOCK.findall(reply)
    code = next((block for block in blocks if header.search(block)), blocks[0] if blocks else reply)
    return f"{prompt}\n\n{code}" if header.search(code) else prompt + code
