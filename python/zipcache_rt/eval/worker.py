"""One case at a time: what each process of a run does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..model import Model
from ..options import KvOptions, SamplerOptions
from ..session import Session
from ..teacher_forced import Given, log_probs
from ..work import PREFILL_WEIGHT, Work
from .case import Case, Task
from .record import Record

GREEDY = SamplerOptions(temperature=0)


@dataclass(frozen=True)
class Prepared:
    """A case as tokens."""

    case: Case
    tokens: tuple[int, ...]  # of the prompt
    shared: int  # of its first tokens: kept for the cases that begin with them too
    stop: tuple[str, ...]

    @property
    def n_continue(self) -> int:
        return len(self.case.continuation) or self.case.max_tokens

    @property
    def needed(self) -> int:
        """Tokens that a session must hold."""
        return len(self.tokens) + self.n_continue

    @property
    def work(self) -> float:
        """What answering adds to a Work, at most."""
        return PREFILL_WEIGHT * len(self.tokens) + self.n_continue


class Worker:
    """A model, and the sessions that cases begin with."""

    def __init__(self, model: Model, task: Task, n_ctx: int) -> None:
        self._model, self._task, self._n_ctx = model, task, n_ctx
        self._begun: dict[tuple[str, tuple[int, ...]], Session] = {}

    def answer(self, prepared: Prepared, blank: Record, told: Work) -> Record:
        """The blank record of a case and a policy, filled. Raises what the model and told.tell raise."""
        end = told.done + prepared.work
        begun = self._begin(prepared, blank.policy, told)
        seconds = begun.stats.prefill_seconds if begun else 0.0
        with begun.fork() if begun else self._session(blank.policy) as session:
            fill = self._predict if prepared.case.continuation else self._reply
            record = fill(session, prepared, blank, told)
            stats, kv = session.stats, session.kv_stats()
        told.reach(end)
        return replace(
            record,
            prefill_seconds=seconds + stats.prefill_seconds,
            decode_seconds=stats.decode_seconds,
            decode_tokens=stats.decode_tokens,
            kv_bytes=kv.bytes,
            kv_bits=kv.bits,
            kv_ratio=kv.ratio,
            compressed_bits=kv.compressed_bits,
            threads=self._model.info.threads,
        )

    def _session(self, policy: str) -> Session:
        return self._model.session(n_ctx=self._n_ctx, kv=KvOptions.parse(policy))

    def _begin(self, prepared: Prepared, policy: str, told: Work) -> Session | None:
        """A session that holds the shared tokens, to be forked."""
        if not prepared.shared:
            return None
        tokens = prepared.tokens[: prepared.shared]
        if (policy, tokens) not in self._begun:
            session = self._session(policy)
            session.prefill(tokens, progress=told.part(0.0))
            self._begun[policy, tokens] = session
        return self._begun[policy, tokens]

    def _reply(self, session: Session, prepared: Prepared, blank: Record, told: Work) -> Record:
        case, tokens = prepared.case, prepared.tokens[prepared.shared :]
        prefilled = told.part(PREFILL_WEIGHT * len(prepared.tokens))
        texts = []
        with session.generate(
            tokens, max_tokens=case.max_tokens, sampler=GREEDY, stop=prepared.stop, progress=prefilled
        ) as reply:
            for piece in reply:
                texts.append(piece.text)
                told.add(1)
        text, finish = "".join(texts), reply.finish_reason or ""
        score = self._task.score(case, text)
        return replace(blank, reply=text, reply_tokens=len(texts), finish=finish, score=score)

    def _predict(self, session: Session, prepared: Prepared, blank: Record, told: Work) -> Record:
        continuation = prepared.case.continuation
        given = Given(prepared.case.id, (*prepared.tokens, *continuation), len(prepared.tokens))
        total, tops = 0.0, []
        for row, token in zip(log_probs(session, given, told, policy=blank.policy), continuation, strict=True):
            total += float(row[token])
            tops.append(int(row.argmax()))
        n = len(continuation)
        return replace(blank, reply_tokens=n, finish="given", score=total / n, tops=tuple(tops))
