"""Chat templates: a model file's Jinja, run as the untrusted text it is.

Rendering is sandboxed (no attribute that leads out of the values given) and bounded: in the steps its loops take and
in the text it makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ._core import ArgumentError, ModelError

MAX_STEPS = 100_000  # iterations of all loops and calls together
MAX_CHARACTERS = 16_000_000
MAX_TEMPLATE_CHARACTERS = 1_000_000


class _Environment(ImmutableSandboxedEnvironment):
    """One rendering. Counts every loop step and call, and refuses operators that make huge values."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self._steps = 0
        self.filters["_counted"] = lambda items: list(self._counted(items))
        self.filters["tojson"] = _tojson
        self.filters.pop("center")  # makes text of any width
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def _count(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ModelError(f"the model's chat template takes more than {MAX_STEPS} steps")

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._count()
            yield item

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return template

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._count()  # macros that call themselves
        return super().call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if not numbers or (operator == "**" and abs(right) > 64):
            raise jinja2.exceptions.SecurityError(f"'{operator}' on {type(left).__name__} and {type(right).__name__}")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _raise_exception(message: str) -> None:
    raise ArgumentError(f"the model's chat template refuses the conversation: {message}")


def _bounded(parts: Iterable[str]) -> Iterator[str]:
    n_characters = 0
    for part in parts:
        n_characters += len(part)
        if n_characters > MAX_CHARACTERS:
            raise ModelError(f"the model's chat template makes more than {MAX_CHARACTERS} characters")
        yield part


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ArgumentError(f"message {i} is {message!r}; accepted: a mapping with 'role' and 'content'")


def render(template: str | None, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
    """The prompt for a conversation. names: what else the template may use (bos_token, add_generation_prompt, ...).

    Raises ModelError when there is no template, or it is malformed, reaches for what it must not, or exceeds its
    bounds; ArgumentError for messages without role or content, or that the template itself refuses.
    """
    if not template:
        raise ModelError("the model has no chat template (tokenizer.chat_template); use generate() with plain text")
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ModelError(f"the model's chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters")
    _check(messages)
    try:
        compiled = _Environment().from_string(template)
        return "".join(_bounded(compiled.generate(messages=[dict(m) for m in messages], **names)))
    except jinja2.exceptions.SecurityError as error:
        raise ModelError(f"the model's chat template reaches for something it must not: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the model's chat template is malformed (line {error.lineno}): {error.message}") from error
    except (ArgumentError, ModelError):
        raise
    except Exception as error:  # whatever untrusted code raises
        raise ModelError(f"the model's chat template fails: {type(error).__name__}: {error}") from error
