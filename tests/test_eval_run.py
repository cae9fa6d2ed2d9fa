"""Whole evaluations, on a tiny model with random weights: what is asked, kept, and taken up again."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_models
from zipcache_rt import ArgumentError, ContextError, KvOptions, Model, ModelError, SamplerOptions
from zipcache_rt.eval import Gsm8k, HumanEval, Lines, Niah, Perplexity, RunOptions, Task, load, run, summarize
from zipcache_rt.eval import worker as workers
from zipcache_rt.eval.prompter import Prompter

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
CPU = RunOptions(device="cpu", threads=2)
SIZED = replace(CPU, n_ctx=1024)  # what a cache allocates depends on it
LINES = Lines(lines=(3, 4), n_cases=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "tiny.gguf"
    shape = replace(tiny_models.SHAPES["llama"], extra={"context_length": 4096})
    weights = tiny_models.random_weights(shape)
    return tiny_models.write(path, shape, weights, vocabulary=True, tokenizer__chat_template=TEMPLATE)


def lines_of(path: Path, objects: list[object]) -> Path:
    path.write_text("".join(json.dumps(found) + "\n" for found in objects), "utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return lines_of(
        tmp_path / "q.jsonl", [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(4)]
    )


def test_records_hold_what_was_asked_and_said(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    told: list[float] = []
    made = run(tiny, LINES, ["zipcache,seed=0", "auto:2.8"], out=out, options=SIZED, progress=told.append)
    assert load(out) == made
    assert [(record.case, record.policy) for record in made] == [
        (case, policy) for case in ("3-0", "3-1", "4-0", "4-1") for policy in ("f16", "zipcache", "auto:2.8")
    ]
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    model = Model(tiny, device="cpu")
    prompter = Prompter(model)
    cases = {case.id: case for case in LINES.cases(prompter)}
    for record in made:
        tokens = prompter.tokens(cases[record.case])
        session = model.session(n_ctx=SIZED.n_ctx, kv=KvOptions.parse(record.policy))
        reply = session.generate(tokens, max_tokens=64, sampler=SamplerOptions(temperature=0))
        assert record.reply == "".join(piece.text for piece in reply) and record.finish == reply.finish_reason
        assert record.prompt_tokens == len(tokens) and record.expected == cases[record.case].expected
        assert (record.kv_bytes, record.kv_ratio) == (session.kv_stats().bytes, session.kv_stats().ratio)
        assert record.decode_tokens == session.stats.decode_tokens and record.decode_seconds > 0
        assert record.prefill_seconds > 0 and record.score == LINES.score(cases[record.case], record.reply)
        assert record.options == {"seed": 0, "template": True, "share_shots": False}
        assert (record.device, record.threads, record.jobs, record.group) == ("cpu", 2, 1, f"{record.case[0]} lines")


def test_what_is_done_is_not_done_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    first = run(tiny, LINES, ["auto"], out=out, options=CPU)
    whole = out.read_bytes()
    answered: list[tuple[str, str]] = []
    answer = workers.Worker.answer
    monkeypatch.setattr(
        workers.Worker,
        "answer",
        lambda self, case, blank, told: (answered.append((blank.case, blank.policy)), answer(self, case, blank, told))[
            1
        ],
    )
    assert run(tiny, LINES, ["auto"], out=out, options=CPU) == first and not answered and out.read_bytes() == whole
    out.write_bytes(whole[:-30])  # as if cut off in the last record
    again = run(tiny, LINES, ["auto"], out=out, options=CPU)
    assert answered == [("4-1", "auto")]
    assert [record.reply for record in again] == [record.reply for record in first]
    more = run(tiny, replace(LINES, n_cases=3), ["auto", "uniform:8"], out=out, options=CPU)
    assert len(more) == 18 and len(answered) == 1 + 12 - 2 - 2 + 2
    assert len(load(out)) == 18
    run(tiny, LINES, [], out=out, options=replace(CPU, template=False))
    assert len(answered) == 11 + 4


def test_jobs_say_the_same(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    alone = run(tiny, LINES, ["auto"], options=replace(CPU, threads=1))
    told: list[float] = []
    together = run(tiny, LINES, ["auto"], out=out, options=replace(CPU, jobs=2), progress=told.append)
    assert [(record.key, record.reply) for record in together] == [(record.key, record.reply) for record in alone]
    assert {(record.jobs, record.threads) for record in together} == {(2, 1)}
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    assert sorted(record.key for record in load(out)) == sorted(record.key for record in alone)


class Dies(Lines):
    """Ends its process."""

    def score(self, case: object, reply: str) -> float:
        import os

        os._exit(3)


class Fails(Lines):
    def score(self, case: object, reply: str) -> float:
        raise ArgumentError("no score")


def test_errors_of_processes_are_typed(tiny: Path) -> None:
    with pytest.raises(ModelError, match="a process that answers cases died"):
        run(tiny, Dies(lines=(3,), n_cases=2), ["auto"], options=replace(CPU, jobs=2))
    with pytest.raises(ArgumentError, match="no score"):
        run(tiny, Fails(lines=(3,), n_cases=2), ["auto"], options=replace(CPU, jobs=2))


def test_shared_shots(tiny: Path, questions: Path) -> None:
    task = Gsm8k(questions, questions, n_shots=2, n_cases=2, max_tokens=12)
    apart = run(tiny, task, ["zipcache"], options=CPU)
    shared = run(tiny, task, ["zipcache"], options=replace(CPU, share_shots=True))
    assert {record.shared_tokens for record in apart} == {0}
    (n_shared,) = {record.shared_tokens for record in shared}
    assert 0 < n_shared < min(record.prompt_tokens for record in shared)
    assert not {record.key for record in apart} & {record.key for record in shared}
    model = Model(tiny, device="cpu", threads=2)
    prompter = Prompter(model)
    for case in task.cases(prompter):
        tokens = prompter.tokens(case)
        for policy in ("f16", "zipcache"):
            session = model.session(kv=KvOptions.parse(policy))
            session.prefill(tokens[:n_shared])
            reply = session.generate(tokens[n_shared:], max_tokens=12, sampler=SamplerOptions(temperature=0))
            (record,) = [one for one in shared if (one.case, one.policy) == (case.id, policy)]
            assert record.reply == "".join(piece.text for piece in reply)


def test_code_is_scored_later(tiny: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "out.jsonl", tmp_path / "trace"
    test = f"open({str(trace)!r}, 'a').write('x')\ndef check(f): pass\n"
    problem = {"task_id": "H/0", "prompt": "def f():\n    '''a'''\n", "entry_point": "f", "test": test}
    task = HumanEval(lines_of(tmp_path / "h.jsonl", [problem]), max_tokens=8)
    unscored = run(tiny, task, ["auto"], out=out, options=CPU)
    assert [record.score for record in unscored] == [None, None] and not trace.exists()
    assert summarize(unscored)[0].rows[1].same_reply is not None
    scored = run(tiny, replace(task, run_code=True), ["auto"], out=out, options=CPU)
    assert [replace(record, score=None) for record in scored] == unscored
    assert all(record.score in (0, 1) for record in scored) and load(out) == scored
    assert len(out.read_text().splitlines()) == 4


def test_perplexity_is_that_of_the_text(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 40)
    task = Perplexity((path,), context=100, n_continue=30, n_chunks=2)
    made = run(tiny, task, ["uniform:8"], options=CPU)
    model = Model(tiny, device="cpu", threads=2)
    for record, case in zip(made[::2], task.cases(Prompter(model)), strict=True):
        session = model.session(kv=KvOptions(policy="f16"))
        session.prefill(case.prompt)
        rows = np.concatenate([session.logits[None], session.score(case.continuation[:-1])]).astype(np.float64)
        logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        assert record.score == pytest.approx(logs[np.arange(30), case.continuation].mean(), rel=1e-5)
        assert record.tops == tuple(rows.argmax(1)) and (record.reply_tokens, record.finish) == (30, "given")
    row = summarize(made)[0].rows[1]
    assert row.n == 2 and row.same_reply.value > 0.8 and abs(row.difference.value) < 1


@pytest.mark.parametrize(
    ("task", "policies", "options", "error", "message"),
    [
        (LINES, ["f17"], CPU, ArgumentError, "the KV policy is 'f17'"),
        (LINES, "auto", CPU, ArgumentError, "policies is str; accepted: several"),
        (LINES, ["auto"], replace(CPU, jobs=0), ArgumentError, "jobs is 0; accepted: 1 to 256"),
        (LINES, ["auto"], replace(CPU, n_ctx=300), ContextError, "of 4-[01] takes [0-9]+ tokens and 64 more .*: 300"),
        (Niah((4096,), 1), ["auto"], CPU, ContextError, "takes [0-9]+ tokens and 32 more .*; accepted: 4096 together"),
        (Lines(lines=(3, 3)), ["auto"], CPU, ArgumentError, "2 cases of lines are called '3-0'"),
    ],
)
def test_bad_runs(
    tiny: Path, task: Task, policies: list[str], options: RunOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tiny, task, policies, options=options)


def test_a_template_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    shape = tiny_models.SHAPES["llama"]
    bare = tiny_models.write(tmp_path / "bare.gguf", shape, tiny_models.random_weights(shape), vocabulary=True)
    with pytest.raises(ModelError, match="no chat template"):
        run(bare, LINES, ["auto"], options=replace(CPU, template=True))


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_tool(tiny: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "out.jsonl", tmp_path / "a.json"
    words = ("lines", str(tiny), "--device", "cpu", "--lines", "3,4", "--cases", "2", "--jobs", "2")
    done = tool(*words, "--policies", "auto", "uniform:8", "--out", str(out), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    for text in (
        "lines, 3 lines: tiny.gguf on cpu",
        "lines, all: tiny.gguf",
        "│ f16 ",
        "│ auto ",
        "│ uniform:8 ",
        "same reply",
    ):
        assert text in done.stdout, text
    found = json.loads(figures.read_text())
    assert [part["group"] for part in found] == ["3 lines", "4 lines", ""]
    assert found == json.loads(json.dumps([asdict(summary) for summary in summarize(load_in_order(out))]))
    assert str(tmp_path) not in out.read_text() and str(tmp_path) not in figures.read_text()
    before = out.read_bytes()
    assert tool(*words, "--out", str(out)).returncode == 0 and out.read_bytes() == before


def load_in_order(path: Path) -> list[object]:
    order = ["f16", "auto", "uniform:8"]
    return sorted(load(path), key=lambda record: (record.case, order.index(record.policy)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lines", "--policies", "f17"), "the KV policy is 'f17'"),
        (("lines", "--json", "/nowhere/a.json"), "cannot write /nowhere/a.json: its folder does not exist"),
        (("gsm8k", "--data", "/nowhere.jsonl"), "cannot read the text /nowhere.jsonl"),
        (("niah", "--tokens", "20"), "tokens is 20; accepted for niah"),
    ],
)
def test_tool_errors_are_one_line(tiny: Path, arguments: tuple[str, ...], message: str) -> None:
    done = tool(*arguments[:1], str(tiny), "--device", "cpu", *arguments[1:])
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_tool_help_warns_of_code() -> None:
    done = tool("humaneval", "--help")
    assert done.returncode == 0 and "NOT isolated" in " ".join(done.stdout.split())
