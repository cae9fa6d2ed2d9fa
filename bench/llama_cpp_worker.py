"""llama.cpp's side of a benchmark, in a process of its own: both sides bring ggml under the same library names.

Reads JSON requests from stdin, one a line: {"depth", "prefill", "decode"}; answers {"prefill": s, "decode": s}.
Arguments: MODEL N_THREADS N_CTX.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as lib


@lib.llama_log_callback  # type: ignore[misc]
def silence(_level: int, _text: bytes, _data: Any) -> None: ...


class Worker:
    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        lib.llama_log_set(silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        self.context = lib.llama_init_from_model(self.model, params)
        self.n_past = 0

    def append(self, tokens: list[int], at_once: int) -> None:
        for first in range(0, len(tokens), at_once):
            part = tokens[first : first + at_once]
            ids = (ctypes.c_int32 * len(part))(*part)  # the batch only points at it
            if lib.llama_decode(self.context, lib.llama_batch_get_one(ids, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        self.n_past += len(tokens)

    def truncate(self, n: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, n, -1)
        self.n_past = n

    def measure(self, depth: int, prefill: int, decode: int) -> dict[str, float]:
        if self.n_past > depth:
            self.truncate(depth)
        self.append([100 + i % 1000 for i in range(depth - self.n_past)], 512)
        times = {}
        for name, n, at_once in (("prefill", prefill, 512), ("decode", decode, 1)):
            began = time.perf_counter()
            self.append([100 + i % 1000 for i in range(n)], at_once)
            times[name] = time.perf_counter() - began
            self.truncate(depth)
        return times


def main(path: str, threads: str, n_ctx: str) -> None:
    worker = Worker(path, int(threads), int(n_ctx))
    print(json.dumps({"build": lib.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.measure(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
