"""The two sides of a speed comparison, behind one interface: ours with any KV policy, llama.cpp with any cache type."""

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import too_slow
from zipcache_rt import KvOptions, Model, Session


class Engine(ABC):
    name: str
    width = 1  # sequences that a run takes n tokens of

    @abstractmethod
    def prepare(self, depth: int) -> bool:
        """Fills the cache up to `depth` tokens and warms up. False when that would take more than the limit."""

    @abstractmethod
    def run(self, phase: str, n: int) -> float | None:
        """Seconds of a "prefill" or a "decode" of n tokens at the prepared depth; None for more than the limit.

        One token goes ahead untimed, save in a prefill from empty: the first one after a fork pays for its room.
        """

    def warm_up(self) -> None:
        self.run("prefill", 16)
        self.run("decode", 2)

    @abstractmethod
    def close(self) -> None:
        """Lets go of caches and processes."""


class OverLimit(Exception):
    pass


class Ours(Engine):
    """This runtime. Every run starts from a fork of the prepared session: truncating would leave compressed tokens."""

    def __init__(self, model: Model, ids: list[int], n_ctx: int, kv: KvOptions, limit: float) -> None:
        self.name = f"ours {kv}"
        self.model, self.ids, self.n_ctx, self.kv, self.limit = model, ids, n_ctx, kv, limit
        self.base = self._session()

    def _session(self) -> Session:
        return self.model.session(n_ctx=self.n_ctx, kv=self.kv)

    def prepare(self, depth: int) -> bool:
        self.base = self._session()
        reached = depth == 0 or self._prefill(self.base, depth) is not None
        if reached:
            self.warm_up()
        return reached

    def run(self, phase: str, n: int) -> float | None:
        with self.base.fork() as session:
            if session.n_past > 0 or phase == "decode":
                session.decode(self.ids[session.n_past])
            return self._prefill(session, n) if phase == "prefill" else self._decode(session, n)

    def _prefill(self, session: Session, n: int) -> float | None:
        ids = self.ids[session.n_past : session.n_past + n]
        began = time.perf_counter()

        def check(done: float) -> None:
            if too_slow(began, done * n, n, self.limit):
                raise OverLimit

        try:
            session.prefill(ids, progress=check)
        except OverLimit:
            return None
        return time.perf_counter() - began

    def _decode(self, session: Session, n: int) -> float:
        ids = self.ids[session.n_past : session.n_past + n]
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
        reached = all(part.prepare(depth) for part in self.parts)
        if reached:
            self.run("decode", 2)
        return reached

    def run(self, phase: str, n: int) -> float | None:
        if phase == "prefill":  # one after the other
            total = 0.0
            for part in self.parts:
                seconds = part.run(phase, n)
                if seconds is None:
                    return None
                total += seconds
            return total
        with ExitStack() as stack:
            sessions = [stack.enter_context(part.base.fork()) for part in self.parts]
            first = sessions[0].n_past
            steps = list(zip(*(part.ids[first : first + 1 + n] for part in self.parts), strict=True))
            model = self.parts[0].model
            model.decode_batch(sessions, steps[0])
            began = time.perf_counter()
            for tokens in steps[1:]:
                model.decode_batch(sessions, tokens)
            return time.perf_counter() - began

    def close(self) -> None:
        for part in self.parts:
            part.close()


class LlamaCpp(Engine):
    """llama.cpp with flash attention, in a process of its own that stays."""

    def __init__(self, path: Path, threads: int, ids: list[int], n_ctx: int, kv: str, limit: float) -> None:
        self.name = f"llama.cpp {kv}"
        script = Path(__file__).with_name("llama_cpp_worker.py")
        command = [sys.executable, str(script), *map(str, (path, threads, n_ctx, kv, limit))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.build: str = self._ask(ids)["build"]

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"the {self.name} worker ended; is llama-cpp-python installed? (pip install '.[bench]')")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def prepare(self, depth: int) -> bool:
        reached: bool = self._ask({"depth": depth})["reached"]
        if reached:
            self.warm_up()
        return reached

    def run(self, phase: str, n: int) -> float | None:
        seconds: float | None = self._ask({"phase": phase, "n": n})["seconds"]
        return seconds

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
