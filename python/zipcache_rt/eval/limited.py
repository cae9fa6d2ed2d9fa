"""Runs a program with limits on itself: `python -I limited.py SECONDS MEGABYTES PROGRAM WORD`.

Writes WORD to standard output once the program has run to its end. Started by run_code.py, in a process of its own.
"""

import os
import resource
import sys
from pathlib import Path


def limit(seconds: int, megabytes: int) -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            if kind != resource.RLIMIT_AS or sys.platform != "darwin":  # macOS knows no limit of address space
                raise


def main() -> None:
    seconds, megabytes, path, word = sys.argv[1:]
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    limit(int(seconds), int(megabytes))
    sys.argv[1:] = []
    exec(compile(Path(path).read_text("utf-8"), "program.py", "exec"), {"__name__": "__main__"})
    os.write(out, word.encode())


if __name__ == "__main__":
    main()
