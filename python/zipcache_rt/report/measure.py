"""Measures what is missing of the plan and puts it into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import cli, fidelity, saliency
from .. import eval as tasks
from .._core import CancelledError, FileError, ZipCacheError
from ..fidelity import Text
from ..fidelity_report import CONTROL, Result
from ..model import Model
from ..options import KvOptions
from . import keys
from .plan import F16, Artefact, policies
from .store import Store
from .subject import Subject
from .worker import Spec, in_fresh_process

SALIENT = 0.4  # of the tokens, as in the paper's GSM8K runs of LLaMA3-8B
CHECKED = 64  # tokens of the sessions that find out which policies run at all


class Bench:
    """Fills the store for one model. failures: policy -> why it could not be measured."""

    def __init__(self, subject: Subject, store: Store, lines: Path) -> None:
        self.subject, self.store, self.lines = subject, store, lines
        self.failures: dict[str, str] = {}

    def run(self, artefacts: Sequence[Artefact]) -> None:
        """Policies that fail are noted in `failures`. Raises FileError, and what is wrong with f16 itself."""
        with self._open() as model:
            for policy in dict.fromkeys(row.policy for artefact in artefacts for row in artefact.rows):
                self._guarded([policy], lambda group: self._check(model, group[0]))
            self._fidelity(model, self._usable(policies(artefacts, "fidelity")))
            if any("saliency" in artefact.measures for artefact in artefacts):
                self._saliency(model)
        self._lines(self._usable(policies(artefacts, "lines")))
        self._speed(self._usable(policies(artefacts, "speed")))

    def _open(self) -> Model:
        return self.subject.options.open(self.subject.path)

    def _usable(self, wanted: Sequence[str]) -> list[str]:
        return [policy for policy in wanted if policy not in self.failures]

    def _guarded(self, group: list[str], work: Callable[[list[str]], object]) -> None:
        """Works on all at once; if that fails, on each apart, so that one does not take the others along."""
        try:
            work(group)
        except (CancelledError, FileError):
            raise
        except ZipCacheError as error:
            if len(group) > 1:
                for policy in group:
                    self._guarded([policy], work)
            elif group == [F16]:
                raise
            else:
                self.failures[group[0]] = str(error)

    @staticmethod
    def _check(model: Model, policy: str) -> None:
        model.session(n_ctx=CHECKED, kv=KvOptions.parse(policy)).close()

    def _fidelity(self, model: Model, wanted: list[str]) -> None:
        for text in self.subject.texts if wanted else ():
            key = {policy: keys.fidelity(self.subject, policy, text) for policy in [*wanted, CONTROL]}
            if missing := [policy for policy in wanted if self.store.find(key[policy]) is None]:
                with cli.progress_bar(f"Fidelity, {text.name}", eta=True) as progress:
                    self._guarded(missing, lambda group: self._compare(model, group, text, key, progress))  # noqa: B023

    def _compare(
        self, model: Model, group: list[str], text: Text, key: dict[str, Any], progress: Callable[[float], None]
    ) -> None:
        size, named = self.subject.size, [policy for policy in group if policy != F16]
        made = fidelity.measure(model, named, [text], size.context, size.n_continue, progress=progress)
        for result in (made.reference, made.control, *made.results):
            self.store.add(key[result.name], _fidelity_value(result))

    def _saliency(self, model: Model) -> None:
        key = keys.saliency(self.subject, SALIENT)
        if self.store.find(key) is not None:
            return
        with cli.progress_bar("Saliency") as progress:
            found = saliency.measure(model, self.subject.prompt, progress=progress)
        value: dict[str, Any] = {"pieces": found.pieces}
        for metric in saliency.METRICS:
            value[metric] = {
                "salient": found.salient_share(metric, SALIENT).round(6).tolist(),
                "mean": found.of(metric).round(9).tolist(),
            }
        self.store.add(key, value)

    def _lines(self, wanted: list[str]) -> None:
        subject = self.subject
        if not wanted or not subject.task.lines:
            return

        def answer(group: list[str]) -> None:
            tasks.run(subject.path, subject.task, group, out=self.lines, options=subject.options, progress=progress)

        with cli.progress_bar("Line retrieval", eta=True) as progress:
            self._guarded(wanted, answer)

    def _speed(self, wanted: list[str]) -> None:
        size = self.subject.size
        # every repetition passes all policies, so that what slows the machine for a while slows them all
        missing = [
            (key, policy, context)
            for run in range(size.repeat)
            for context in size.contexts
            for policy in wanted
            if self.store.find(key := keys.speed(self.subject, policy, context, run)) is None
        ]
        total, done = sum(context for _, _, context in missing), 0
        with cli.progress_bar("Speed and memory", eta=True, shown=bool(missing)) as progress:
            for key, policy, context in missing:
                if policy not in self.failures:
                    self._guarded([policy], lambda group: self._time(group[0], context, key))  # noqa: B023
                done += context
                progress(done / total)

    def _time(self, policy: str, context: int, key: dict[str, Any]) -> None:
        info, n_decode = self.subject.info, self.subject.size.n_decode
        spec = Spec(str(self.subject.path), info.device, info.threads, policy, context, n_decode, info.gpu_layers)
        self.store.add(key, asdict(in_fresh_process(spec)))


def _fidelity_value(result: Result) -> dict[str, Any]:
    (run,) = result.runs
    return {
        "options": result.options,
        "kl": [float(f"{x:.6g}") for x in run.kl],
        "same_top": [int(x) for x in run.same_top],
        "logprobs": [float(f"{x:.6g}") for x in run.logprobs],
        "kv": asdict(run.kv),
    }
