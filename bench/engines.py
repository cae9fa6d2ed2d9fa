"""The two sides of a speed comparison, behind one interface: ours with any KV policy, llama.cpp with any cache type."""

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import too_slow
from zipcache_rt import KvOptions, Model, ModelError, Session


@dataclass(frozen=True)
class Work:
    """What all sides of a comparison get."""

    model: Model  # llama.cpp opens its file anew, and runs where it runs
    ids: list[int]  # of all positions
    n_ctx: int
    limit: float  # most seconds to fill a cache


@dataclass(frozen=True)
class Shares:
    """Of the time that a prefill takes."""

    compress: float  # probes chosen and scored, tokens given their bits, codes written
    dequantize: float  # the earlier tokens' rows brought back


class Engine(ABC):
    name: str
    width = 1  # sequences that a run takes n tokens of

    @abstractmethod
    def prepare(self, depth: int) -> bool:
        """Fills the cache up to `depth` tokens. False when that would take more than the limit."""

    @abstractmethod
    def run(self, phase: str, n: int) -> float | None:
        """Seconds of a "prefill" or a "decode" of n tokens at the prepared depth; None for more than the limit.

        One token goes ahead untimed, save in a prefill from empty: the first one after a fork pays for its room.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of caches and processes."""


class OverLimit(Exception):
    pass


class Ours(Engine):
    """This runtime. Every run starts from a fork of the prepared session: truncating would leave compressed tokens."""

    def __init__(self, work: Work, kv: KvOptions) -> None:
        self.name = f"ours {kv}"
        self.work, self.kv = work, kv
        self.base = self._session()

    def _session(self) -> Session:
        return self.work.model.session(n_ctx=self.work.n_ctx, kv=self.kv)

    def prepare(self, depth: int) -> bool:
        self.base.close()  # first: the next one finds its memory free
        self.base = self._session()
        return depth == 0 or self._prefill(self.base, depth) is not None

    def run(self, phase: str, n: int) -> float | None:
        with self._fork(phase) as session:
            return self._prefill(session, n) if phase == "prefill" else self._decode(session, n)

    def shares(self, n: int) -> Shares | None:
        """Of one prefill of n tokens, whose clock waits for each part; None for more than the limit."""
        with self._fork("prefill") as session:
            session.time_cache()
            if self._prefill(session, n) is None:
                return None
            stats = session.stats
            return Shares(
                *(part / stats.prefill_seconds for part in (stats.compress_seconds, stats.dequantize_seconds))
            )

    def _fork(self, phase: str) -> Session:
        session = self.base.fork()
        if session.n_past > 0 or phase == "decode":
            session.decode(self.work.ids[session.n_past])
        return session

    def _prefill(self, session: Session, n: int) -> float | None:
        ids = self.work.ids[session.n_past : session.n_past + n]
        began = time.perf_counter()

        def check(done: float) -> None:
            if too_slow(began, done * n, n, self.work.limit):
                raise OverLimit

        try:
            session.prefill(ids, progress=check)
        except OverLimit:
            return None
        return time.perf_counter() - began

    def _decode(self, session: Session, n: int) -> float:
        ids = self.work.ids[session.n_past : session.n_past + n]
        began = time.perf_counter()
        for token in ids:
            session.decode(token)
        return time.perf_counter() - began

    def close(self) -> None:
        self.base.close()


class Together(Engine):
    """Some of ours, with one model and one policy, that decode in one pass. Each has its own text, prefilled by itself:
    forks of one would read the same compressed bytes."""

    def __init__(self, parts: list[Ours]) -> None:
        self.name = f"{parts[0].name} x{len(parts)}"
        self.parts, self.width = parts, len(parts)

    def prepare(self, depth: int) -> bool:
        return all(part.prepare(depth) for part in self.parts)

    def run(self, phase: str, n: int) -> float:
        assert phase == "decode"
        with ExitStack() as stack:
            sessions = [stack.enter_context(part.base.fork()) for part in self.parts]
            first = sessions[0].n_past
            steps = list(zip(*(part.work.ids[first : first + 1 + n] for part in self.parts), strict=True))
            model = self.parts[0].work.model
            model.decode_batch(sessions, steps[0])
            began = time.perf_counter()
            for tokens in steps[1:]:
                model.decode_batch(sessions, tokens)
            return time.perf_counter() - began

    def close(self) -> None:
        for part in self.parts:
            part.close()


class LlamaCpp(Engine):
    """llama.cpp with flash attention, in a process of its own that stays, on the device that our model is on, with as
    many layers there."""

    def __init__(self, work: Work, kv: str) -> None:
        self.name = f"llama.cpp {kv}"
        info = work.model.info
        gpu = -1 if info.device == "cpu" else int(info.device.partition(":")[2] or 0)
        setup = {"path": info.path, "gpu": gpu, "gpu_layers": info.gpu_layers, "threads": info.threads}
        setup |= {"n_ctx": work.n_ctx, "kv": kv, "limit": work.limit}
        command = [sys.executable, str(Path(__file__).with_name("llama_cpp_worker.py")), json.dumps(setup)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.build: str = self._ask(work.ids)["build"]

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ModelError(f"the {self.name} worker ended; is llama-cpp-python installed? (pip install '.[bench]')")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ModelError(f"{self.name}: {answer['error']}")
        return answer

    def prepare(self, depth: int) -> bool:
        reached: bool = self._ask({"depth": depth})["reached"]
        return reached

    def run(self, phase: str, n: int) -> float | None:
        seconds: float | None = self._ask({"phase": phase, "n": n})["seconds"]
        return seconds

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
