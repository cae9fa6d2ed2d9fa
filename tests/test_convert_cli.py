"""`python -m zipcache_rt.convert`, as a process and within one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import small_checkpoints, trained_tokenizers
from zipcache_rt import ArgumentError, Model, cli
from zipcache_rt.convert import __main__ as tool
from zipcache_rt.convert import convert, extra

N_VOCAB = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_checkpoints.write(tmp_path / "model", N_VOCAB, sliding_window=64)
    trained_tokenizers.write_byte_level(tmp_path / "model", "qwen2", N_VOCAB)
    return tmp_path / "model"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_converts_and_says_what_it_left_out(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    done = run(folder, out, "--type", "q8_0")
    assert done.returncode == 0 and f"{out}: llama, 21 tensors, " in done.stdout
    assert done.stderr == "note: GGUF's llama has no sliding windows: the context is 64 tokens, one window, not 128\n"
    assert Model(out).info.n_ctx_train == 64


def test_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path / "model.gguf", "--dry-run")
    assert done.returncode == 0 and not list(tmp_path.glob("*.gguf"))
    (line,) = [line for line in done.stdout.splitlines() if "blk.1.attn_k.weight" in line]
    for part in ("8 x 16", "F16", "256", "model.layers.1.self_attn.k_proj.weight", "F32"):
        assert part in line


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "no\x1b[31mne", tmp_path / "out.gguf")
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "is no folder" in done.stderr and "\x1b" not in done.stderr


def test_a_terminated_run_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def terminating_bar(*_: object, **__: object) -> Iterator[Callable[[float], None]]:
        yield lambda done: os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "progress_bar", terminating_bar)
    monkeypatch.setattr(sys, "argv", ["convert", str(folder), str(tmp_path / "out.gguf")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="143"):
            tool.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_packages_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extra.PACKAGES, "no_such.module", "no-such-package")
    with pytest.raises(ArgumentError, match=r"conversion needs no-such-package: pip install 'zipcache-rt\[convert\]'"):
        convert(folder, tmp_path / "out.gguf")
