"""llama.cpp's side of a benchmark, in a process of its own: both sides bring ggml under the same library names.

Argument: Setup as a JSON object. Reads JSON lines: the token ids of all positions, answered by {"build"}; then
{"depth"}, answered by {"reached"}, which fills the cache or cuts it back, and {"phase", "n"}, answered by {"seconds"},
which leaves the cache as it was. What fails is answered by {"error"}, and ends it.
"""

import ctypes
import json
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib

from common import too_slow

KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}


@dataclass(frozen=True)
class Setup:
    path: str
    gpu: int  # which one; below 0: the CPU
    gpu_layers: int  # the last ones, which it gets with the output; the CPU runs the others
    threads: int
    n_ctx: int
    kv: str  # one of KV_TYPES
    limit: float  # most seconds of any prefill

    @property
    def batch(self) -> int:
        """Tokens of a prompt that are sent together: at what each device reads prompts fastest."""
        return 512 if self.gpu < 0 else 2048


places: dict[int, bytes] = {}  # layer -> the device that llama.cpp says it lies on; the output comes after the layers


@lib.llama_log_callback  # type: ignore[misc]
def listen(_level: int, text: bytes, _data: Any) -> None:
    """In place of printing."""
    if said := re.search(rb"layer +(\d+) assigned to device (\w+)", text):
        places[int(said[1])] = said[2]


def check_split(n_layers: int, gpu_layers: int) -> None:
    """Versions differ in whether the output counts as a layer."""
    on_gpu = sorted(layer for layer, device in places.items() if device != b"CPU")
    if on_gpu != list(range(n_layers - gpu_layers, n_layers + 1)):
        raise RuntimeError(
            f"this llama.cpp does not put the last {gpu_layers} of {n_layers} layers and the output on the GPU, but "
            f"{on_gpu or 'none that it tells of'}; a newer one may, or leave out --vs"
        )


class Worker:
    def __init__(self, setup: Setup, ids: list[int]) -> None:
        if setup.gpu >= 0 and not lib.llama_supports_gpu_offload():
            raise RuntimeError(
                "this llama-cpp-python was built without a GPU; for CUDA: CMAKE_ARGS=-DGGML_CUDA=on pip install "
                "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
            )
        lib.llama_log_set(listen, ctypes.c_void_p(0))
        lib.llama_backend_init()
        model = lib.llama_model_default_params()
        model.n_gpu_layers = setup.gpu_layers + 1 if setup.gpu >= 0 else 0  # the output counts as one
        model.split_mode, model.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, setup.gpu  # below 0: not even for large products
        self.model = lib.llama_model_load_from_file(setup.path.encode(), model)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {setup.path}")
        n_layers = lib.llama_model_n_layer(self.model)
        if 0 < setup.gpu_layers < n_layers:
            check_split(n_layers, setup.gpu_layers)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = setup.n_ctx, setup.batch, setup.batch
        params.n_threads = params.n_threads_batch = setup.threads
        params.type_k = params.type_v = KV_TYPES[setup.kv]
        params.flash_attn_type = 1
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp made no context of {setup.n_ctx} tokens with a {setup.kv} cache")
        self.setup = setup
        self.ids = (ctypes.c_int32 * len(ids))(*ids)  # batches only point into it
        self.depth = self.n_past = 0

    def append(self, n: int, at_once: int) -> float | None:
        """Seconds; None when it gave up because it would take more than the limit.

        Logits are computed of the last token of each batch alone.
        """
        began = time.perf_counter()
        for first in range(0, n, at_once):
            if too_slow(began, first, n, self.setup.limit):
                return None
            n_now = min(at_once, n - first)
            start = ctypes.cast(ctypes.byref(self.ids, 4 * self.n_past), ctypes.POINTER(ctypes.c_int32))
            if lib.llama_decode(self.context, lib.llama_batch_get_one(start, n_now)) != 0:
                raise RuntimeError(f"llama_decode failed behind {self.n_past} tokens")
            self.n_past += n_now
            if at_once == 1:  # who samples needs the logits before the next token is known
                lib.llama_synchronize(self.context)
        lib.llama_synchronize(self.context)  # a GPU works on behind the calls' back
        return time.perf_counter() - began

    def truncate(self, n: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, n, -1)
        self.n_past = n

    def prepare(self, depth: int) -> bool:
        if self.n_past > depth:
            self.truncate(depth)
        self.depth = depth
        return self.append(depth - self.n_past, self.setup.batch) is not None

    def run(self, phase: str, n: int) -> float | None:
        if self.depth > 0 or phase == "decode":
            self.append(1, 1)
        seconds = self.append(n, self.setup.batch if phase == "prefill" else 1)
        self.truncate(self.depth)
        return seconds


def answer(line: str) -> None:
    print(line, flush=True)


def main(setup: str) -> None:
    try:
        worker = Worker(Setup(**json.loads(setup)), json.loads(sys.stdin.readline()))
        answer(json.dumps({"build": lib.llama_print_system_info().decode()}))
        for line in sys.stdin:
            request = json.loads(line)
            if "depth" in request:
                answer(json.dumps({"reached": worker.prepare(request["depth"])}))
            else:
                answer(json.dumps({"seconds": worker.run(request["phase"], request["n"])}))
    except RuntimeError as error:
        answer(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main(sys.argv[1])
