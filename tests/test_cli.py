"""The command-line tools, as processes; chat also on a pseudo-terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from zipcache_rt import KvOptions, Model


def run(*arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=check)


def test_chat_answers_one_prompt() -> None:
    done = run("zipcache_rt.chat", "--prompt", "What is the capital of France?", "--max-tokens", "40")
    assert len(done.stdout.split()) >= 3
    assert re.search(
        r"first token after [\d.]+ s; prefill \d+ tokens at \d+ tokens/s; decode \d+ at [\d.]+", done.stderr
    )
    assert re.search(r"KV [\d.]+ MiB for \d+ tokens \([\d.]+ bits/element", done.stderr)


def test_chat_through_a_pipe_keeps_its_cache() -> None:
    turns = "Remember the word blue.\nWhich word?\n/stats\n/reset\n/stats\n/nonsense\n/quit\nnot read\n"
    done = run("zipcache_rt.chat", "--temp", "0", "--max-tokens", "12", stdin=turns)
    assert len([line for line in done.stdout.splitlines() if line]) >= 2 and "not read" not in done.stdout
    prefilled = [int(n) for n in re.findall(r"; prefill (\d+) tokens at", done.stderr)]
    assert len(prefilled) == 2 and prefilled[1] < prefilled[0]
    assert "context 0 of 8192" in done.stderr and "unknown command /nonsense" in done.stderr


def test_errors_are_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad\x1b[31m.gguf"
    bad.write_bytes(b"nothing")
    for tool in ("chat", "generate", "inspect"):
        done = run(f"zipcache_rt.{tool}", str(bad), check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "not a GGUF file" in done.stderr and "\x1b" not in done.stderr


def test_layers_for_a_gpu_need_one(smollm2_path: Path) -> None:
    options = ("zipcache_rt.generate", str(smollm2_path), "--prompt", "1, 2,", "--max-tokens", "2", "--device", "cpu")
    done = run(*options, "--gpu-layers", "3", check=False)
    assert done.returncode == 1 and "error: gpu_layers is 3, and device 'cpu' is no GPU; accepted: 0" in done.stderr
    assert run(*options, "--gpu-layers", "0").stdout == run(*options).stdout


def test_generate_text_and_json(smollm2_path: Path) -> None:
    options = ("zipcache_rt.generate", str(smollm2_path), "--temp", "0", "--max-tokens", "8")
    plain = run(*options, stdin="1, 2, 3, 4,").stdout
    lines = [json.loads(line) for line in run(*options, "--prompt", "1, 2, 3, 4,", "--json").stdout.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) + "\n" == plain
    assert lines[-1]["finish_reason"] == "length" and lines[-1]["kv"]["n_tokens"] > 8


def test_inspect(smollm2_path: Path) -> None:
    shown = run("zipcache_rt.inspect", str(smollm2_path), "--ctx", "1000").stdout
    for text in ("general.architecture", "token_embd.weight", "q8_0", "Plan for 1,000 tokens"):
        assert text in shown
    options = ("zipcache_rt.inspect", str(smollm2_path), "--ctx", "1000", "--json", "--kv", "f16")
    report = json.loads(run(*options).stdout)
    assert report["plan"]["kv_bytes"] == 1000 * 30 * 2 * 3 * 64 * 2 and len(report["tensors"]) == 272


PLANNED = ["f16", "auto", "auto:2.8", "zipcache", "zipcache,per_head=true", "uniform:3", "q4_0"]
PLANNED += ["kivi", "mikv", "h2o", "snapkv", "gear", "gear:2"]


@pytest.mark.parametrize("kv", PLANNED)
def test_the_memory_plan_foresees_the_cache_and_prefill(kv: str, smollm2_path: Path) -> None:
    """Within what the plan leaves out: transforms, whole pages, how ggml lays out activations."""
    options = ("zipcache_rt.inspect", str(smollm2_path), "--ctx", "1000", "--json", "--kv", kv)
    planned = json.loads(run(*options).stdout)["plan"]
    session = Model(smollm2_path).session(n_ctx=1000, kv=KvOptions.parse(kv))
    session.prefill(list(range(999)))
    scratch = session.stats.scratch_bytes  # with mikv the queries of all tokens are 11 % of it
    assert scratch <= planned["scratch_bytes"] <= 1.08 * scratch
    session.decode(0)  # makes the window
    assert session.kv_stats().bytes == pytest.approx(planned["kv_bytes"], rel=0.1)


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background inherit that it is ignored
            # nobody here says where the cursor is, and a warning of that after two seconds passes for a reply's words
            os.environ.update(HOME=str(home), XDG_STATE_HOME=str(home), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
            os.execv(sys.executable, [sys.executable, "-m", *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = ""

    def wait_for(self, text: str) -> None:
        self.wait_for_pattern(re.escape(text))

    def wait_for_pattern(self, pattern: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:  # the program ended
                assert re.search(pattern, self.seen), self.seen[-2000:]
                return

    def write(self, text: str) -> None:
        self.seen = ""
        os.write(self.fd, text.encode())


@pytest.mark.skipif(not hasattr(pty, "fork"), reason="needs a POSIX pseudo-terminal")
def test_ctrl_c_stops_the_reply_and_not_the_program(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "zipcache_rt.chat", "--temp", "0")
    terminal.wait_for("/help lists the commands")
    terminal.wait_for(">")
    terminal.write("Write a very long story about a dragon.\r")
    # bracketed paste goes off when the line is taken; words after that are the reply's
    terminal.wait_for_pattern(r"\?2004l[^>]*?[a-z]{4}")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("first token after")
    terminal.write("/help\r")
    terminal.wait_for("Ctrl-C stops a reply")
    terminal.write("/quit\r")
    _, status = os.waitpid(terminal.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "dragon" in (tmp_path / "zipcache-rt" / "chat_history").read_text()
