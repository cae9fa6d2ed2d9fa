"""llama.cpp's quantizer, in a process of its own (see llama_cpp_oracle.py).

Run as a script: IN OUT FILE_TYPE ALLOW_REQUANTIZE
"""

import ctypes
import subprocess
import sys
from pathlib import Path


def quantize(source: Path, target: Path, file_type: int, *, allow_requantize: bool = False) -> Path:
    """file_type: the number that general.file_type gets."""
    command = [sys.executable, __file__, str(source), str(target), str(file_type), str(int(allow_requantize))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def main(source: str, target: str, file_type: str, allow_requantize: str) -> int:
    import llama_cpp as lib

    lib.llama_backend_init()
    params = lib.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = 2
    params.allow_requantize = bool(int(allow_requantize))
    return int(lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
