"""llama.cpp's logits, from a process of its own.

llama-cpp-python brings another ggml under the same library names; two of them cannot live in one process.
Run as a script: MODEL TOKENS.npy LOGITS.npy N_THREADS
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def teacher_forced_logits(model: Path, tokens: NDArray[np.int32], threads: int = 2) -> NDArray[np.float32]:
    """float32 [n_tokens, n_vocab]: row i is what llama.cpp (f16 KV, flash attention) gives after tokens[i]."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "tokens.npy", Path(folder) / "logits.npy"
        np.save(given, np.asarray(tokens, np.int32))
        command = [sys.executable, __file__, str(model), str(given), str(made), str(threads)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        result: NDArray[np.float32] = np.load(made)
        return result


def main(model_path: str, given: str, made: str, threads: str) -> None:
    import llama_cpp as lib

    tokens = np.load(given)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(model_path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = len(tokens) + 64
    params.n_threads = params.n_threads_batch = int(threads)
    params.flash_attn_type = 1
    context = lib.llama_init_from_model(model, params)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = []
    for token in tokens:
        one = (ctypes.c_int32 * 1)(int(token))
        if lib.llama_decode(context, lib.llama_batch_get_one(one, 1)) != 0:
            raise SystemExit("llama_decode failed")
        rows.append(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,)).copy())
    np.save(made, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
