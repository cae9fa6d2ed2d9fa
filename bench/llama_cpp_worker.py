"""llama.cpp's side of a benchmark, in a process of its own: both sides bring ggml under the same library names.

Arguments: MODEL N_THREADS N_CTX KV LIMIT (KV: f16, q8_0, q4_0; LIMIT: seconds of any prefill). Reads JSON lines:
the token ids of all positions, answered by {"build"}; then {"depth"}, answered by {"reached"}, which fills the cache
or cuts it back, and {"phase", "n"}, answered by {"seconds"}, which leaves the cache as it was.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as lib

from common import too_slow

KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}
BATCH = 512


@lib.llama_log_callback  # type: ignore[misc]
def silence(_level: int, _text: bytes, _data: Any) -> None: ...


class Worker:
    def __init__(self, path: str, threads: int, n_ctx: int, kv: str, limit: float, ids: list[int]) -> None:
        lib.llama_log_set(silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv]
        params.flash_attn_type = 1
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp made no context with a {kv} cache")
        self.limit = limit
        self.ids = ids
        self.depth = self.n_past = 0

    def append(self, n: int, at_once: int) -> float | None:
        """Seconds; None when it gave up because it would take more than the limit."""
        began = time.perf_counter()
        for first in range(0, n, at_once):
            if too_slow(began, first, n, self.limit):
                return None
            part = self.ids[self.n_past : self.n_past + min(at_once, n - first)]
            held = (ctypes.c_int32 * len(part))(*part)  # the batch only points at it
            if lib.llama_decode(self.context, lib.llama_batch_get_one(held, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
            self.n_past += len(part)
        return time.perf_counter() - began

    def truncate(self, n: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, n, -1)
        self.n_past = n

    def prepare(self, depth: int) -> bool:
        if self.n_past > depth:
            self.truncate(depth)
        self.depth = depth
        return self.append(depth - self.n_past, BATCH) is not None

    def run(self, phase: str, n: int) -> float | None:
        if self.depth > 0 or phase == "decode":
            self.append(1, 1)
        seconds = self.append(n, BATCH if phase == "prefill" else 1)
        self.truncate(self.depth)
        return seconds


def main(path: str, threads: str, n_ctx: str, kv: str, limit: str) -> None:
    worker = Worker(path, int(threads), int(n_ctx), kv, float(limit), json.loads(sys.stdin.readline()))
    print(json.dumps({"build": lib.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "depth" in request:
            answer: dict[str, Any] = {"reached": worker.prepare(request["depth"])}
        else:
            answer = {"seconds": worker.run(request["phase"], request["n"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
