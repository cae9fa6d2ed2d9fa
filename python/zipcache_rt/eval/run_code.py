"""Runs Python that a model wrote, within limits of time and memory.

It is no sandbox: the code runs as this user, who can read and write files and reach the network.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .. import checks
from .._core import ArgumentError

_LIMITED = Path(__file__).with_name("limited.py")


@dataclass(frozen=True)
class Limits:
    """Of one program. Memory is address space, which macOS does not limit."""

    seconds: int = 10  # of wall clock, and of processor time
    megabytes: int = 1024

    def check(self) -> None:
        """Raises ArgumentError."""
        if os.name != "posix":
            raise ArgumentError("running code takes a POSIX system, which can limit it; accepted here: not to run it")
        checks.integer(self.seconds, "seconds", 1, 3600, "1 to 3600")
        checks.integer(self.megabytes, "megabytes", 64, 2**20, "64 to 1048576")


def passes(program: str, limits: Limits) -> bool:
    """Whether the program runs to its end without an exception and within its limits. Its output is dropped."""
    word = secrets.token_hex(16)  # written after the program's last line: sys.exit(0) in its midst is no success
    with tempfile.TemporaryDirectory(prefix="zipcache-code-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "program.py")
        path.write_text(program, "utf-8", errors="replace")
        command = [sys.executable, "-I", str(_LIMITED), str(limits.seconds), str(limits.megabytes), str(path), word]
        with subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=limits.seconds + 1)
            except subprocess.TimeoutExpired:
                said = b""
            finally:
                _end(process.pid)  # with all that it started
    return said.decode("ascii", "replace") == word


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
