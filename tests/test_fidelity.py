"""The fidelity tool on short texts. What it measures of compressed caches is for the tests of those."""

import gzip
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zipcache_rt import (
    ArgumentError,
    FileError,
    KvOptions,
    Model,
    ModelError,
    Session,
    fidelity,
    fidelity_plot,
    plotting,
)
from zipcache_rt.fidelity import Report, Text

CONTEXT, CONTINUE = 64, 16


@pytest.fixture(scope="module")
def texts(smollm2: Model) -> list[Text]:
    tokens = tuple(smollm2.tokenize(Path(__file__).read_text("utf-8"))[:300])
    return [Text("beginning", tokens), Text("later", tokens[200:], skipped=200)]


@pytest.fixture(scope="module")
def report(smollm2: Model, texts: list[Text]) -> Report:
    return fidelity.measure(smollm2, ["f16", KvOptions(policy="f16", seed=3)], texts, CONTEXT, CONTINUE)


def log_probs(model: Model, tokens: tuple[int, ...], prefilled: int) -> np.ndarray:
    """float64 [CONTINUE, n_vocab] before each token after the context."""
    session = model.session(kv=KvOptions(policy="f16"))
    session.prefill(tokens[:prefilled])
    rows = [session.logits]
    for token in tokens[prefilled : CONTEXT + CONTINUE - 1]:
        session.decode(token)
        rows.append(session.logits)
    logits = np.asarray(rows[-CONTINUE:], np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_figures_equal_an_independent_computation(smollm2: Model, texts: list[Text], report: Report) -> None:
    kls = []
    for text, run, base in zip(texts, report.control.runs, report.reference.runs, strict=True):
        expected = log_probs(smollm2, text.tokens, CONTEXT)
        given = log_probs(smollm2, text.tokens, CONTEXT - fidelity.CONTROL_DECODED)
        kl = (np.exp(expected) * (expected - given)).sum(1)
        np.testing.assert_allclose(run.kl, kl, rtol=1e-3, atol=1e-6)
        truth = list(text.tokens[CONTEXT : CONTEXT + CONTINUE])
        np.testing.assert_allclose(base.logprobs, expected[np.arange(CONTINUE), truth], atol=1e-5)
        np.testing.assert_array_equal(run.same_top, expected.argmax(1) == given.argmax(1))
        kls.append(kl)
    made, kl = report.control.figures, np.concatenate(kls)
    assert made.n_positions == 2 * CONTINUE
    assert made.kl_mean == pytest.approx(kl.mean(), rel=1e-3, abs=1e-6)
    assert made.kl_max == pytest.approx(kl.max(), rel=1e-3, abs=1e-6)
    assert made.kl_ci95 == pytest.approx(1.96 * kl.std(ddof=1) / np.sqrt(kl.size), rel=1e-3, abs=1e-6)
    thirds = np.mean([[third.mean() * third.size for third in np.array_split(one, 3)] for one in kls], axis=0)
    np.testing.assert_allclose(np.multiply(made.kl_thirds, [6, 5, 5]), thirds, rtol=1e-3, atol=1e-6)


def test_divergence_of_known_distributions() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    found = fidelity._divergence(np.log(p).astype(np.float32), np.log(q).astype(np.float32))
    assert found == pytest.approx(0.25 * np.log(2), rel=1e-6)


def test_f16_is_its_own_equal_and_the_control_all_but(report: Report) -> None:
    for result in report.results:
        assert result.figures.kl_max == 0 and result.figures.same_top == 1
        assert result.figures.perplexity_ratio == 1 and result.figures.kl_ci95 == 0
    control = report.control.figures
    assert 0 < control.kl_median <= control.kl_q999 <= control.kl_max < 0.1 and control.kl_mean < 0.02
    assert control.same_top > 0.85 and control.perplexity_ratio == pytest.approx(1, abs=0.05)
    assert report.reference.bits >= 16 and report.reference.kv.ratio <= 1
    assert report.reference.kv.n_tokens == 2 * (CONTEXT + CONTINUE - 1)  # the last token is scored, not decoded
    assert [result.options for result in report.results] == ["f16", "f16,seed=3"]


def test_the_reference_may_live_in_a_file(
    smollm2: Model, texts: list[Text], report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "IN_MEMORY", 0)
    told: list[float] = []
    again = fidelity.measure(smollm2, [], texts[:1], CONTEXT, CONTINUE, progress=told.append)
    assert again.control.text_figures[0] == report.control.text_figures[0]
    assert told == sorted(told) and told[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 3000}, "beginning has 300 tokens; needed: 3016"),
        ({"context": 90}, "later has 100 tokens after the 200 skipped; needed: 106"),
        ({"context": 9000}, "context and continue are 9016 tokens; accepted: up to the model's 8192"),
        ({"context": 1}, "context is 1; accepted: 2 or more tokens"),
        ({"n_continue": 2}, "continue is 2; accepted: 3 or more tokens"),
        ({"n_ctx": 79}, "n_ctx is 79; accepted: 80 to 8192, or None"),
        ({"texts": []}, "there are no texts"),
        ({"policies": ["f17"]}, "the KV policy is 'f17'"),
        ({"policies": "f16"}, "policies is str; accepted: several of them"),
    ],
)
def test_bad_arguments(smollm2: Model, texts: list[Text], change: dict[str, object], message: str) -> None:
    arguments = {"policies": ["f16"], "texts": texts, "context": CONTEXT, "n_continue": CONTINUE, **change}
    with pytest.raises(ArgumentError, match=message):
        fidelity.measure(smollm2, **arguments)


def test_logits_that_are_not_finite(smollm2: Model, texts: list[Text], monkeypatch: pytest.MonkeyPatch) -> None:
    score = Session.score
    monkeypatch.setattr(Session, "score", lambda session, tokens: score(session, tokens) * np.float32(np.nan))
    with pytest.raises(ModelError, match="f16: the logits before token 65 of beginning are not finite"):
        fidelity.measure(smollm2, [], texts, CONTEXT, CONTINUE)


QUESTION = {"question": "1 + 1?", "answer": "2\n#### 2", "prompt": "not this"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    lines = [QUESTION, {"prompt": "def f():", "text": "nor this", "answer": 1}, {"text": "a\u2028b"}]
    data = ("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    expected = "Question: 1 + 1?\nLet's think step by step\n2\n#### 2\n\ndef f():\n\na\u2028b\n\n"
    assert fidelity.read(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{', FileError, "a.jsonl, line 2, is no JSON"),
        ("a.jsonl", b'{"answer": "a"}', ArgumentError, "a.jsonl, line 1, is .*; accepted: an object with"),
        ("a.jsonl", b"[1]", ArgumentError, "a.jsonl, line 1, is"),
        ("a.txt", b"\xff", FileError, "cannot read the text"),
        ("a.jsonl.gz", b"no gzip", FileError, "cannot read the text"),
        ("a.txt.gz", gzip.compress(b"abc" * 99)[:-9], FileError, "cannot read the text"),
    ],
)
def test_bad_data(tmp_path: Path, name: str, data: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=message):
        fidelity.read(tmp_path / name)


def test_skip_keeps_bos(smollm2: Model) -> None:
    text = "<|im_end|> one two three four five"
    whole = Text.of(smollm2, "a", text)
    assert smollm2.tokenize("<|im_end|>")[-1] not in whole.tokens[1:]
    bos = 1 if smollm2.info.add_bos else 0
    later = Text.of(smollm2, "a", text, skip=2)
    assert later.tokens == whole.tokens[:bos] + whole.tokens[bos + 2 :] and later.skipped == 2


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.fidelity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_tool_writes_table_json_and_plot(smollm2_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    figures, plot = tmp_path / "out.json", tmp_path / "out.png"
    done = tool(
        *(str(smollm2_path), "--policies", "f16", "f16,seed=1", "--data", __file__, "--skip", "10"),
        *("--context", "64", "--continue", "16", "--threads", "2", "--json", str(figures), "--plot", str(plot)),
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "f16 control" in done.stdout and "f16,seed=1" in done.stdout and "100.00%" in done.stdout
    found = json.loads(figures.read_text())
    assert found["model"] | {"file": smollm2_path.name, "file_bytes": smollm2_path.stat().st_size} == found["model"]
    assert (found["context"], found["continue"], found["n_ctx"], found["threads"]) == (64, 16, 80, 2)
    assert found["texts"][0]["name"] == Path(__file__).name and found["texts"][0]["skipped"] == 10
    assert [result["policy"] for result in found["results"]] == ["f16", "f16,seed=1"]
    assert len(found["control"]["kl_thirds"]) == 3 and found["control"]["texts"][0]["n_positions"] == 16
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert str(tmp_path) not in figures.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policies", "f17"), "the KV policy is 'f17'"),
        (("--json", "/nowhere/a.json"), "cannot write /nowhere/a.json: its folder does not exist"),
        (("--plot", "a.txt"), "the plot is 'a.txt'; accepted: a name that ends in .png"),
        (("--data", "/nowhere.txt"), "cannot read the text /nowhere.txt"),
    ],
)
def test_tool_errors_are_one_line(smollm2_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = tool(str(smollm2_path), "--data", __file__, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'zipcache-rt\[plot\]'"):
        plotting.check(tmp_path / "a.png")


def test_plot_of_many_policies(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    points = [("auto", 3.3, 5e-3), ("auto:2.8", 2.8, 1.2e-2), ("q4_0", 4.5, 3e-2), ("q4_0,rotate=true", 4.5, 2.9e-2)]
    results = [
        replace(
            report.control,
            name=name,
            options=name,
            figures=replace(report.control.figures, kl_mean=mean, kl_ci95=mean / 10),
            kv=replace(report.control.kv, compressed_bits=bits, compressed_elements=1),
        )
        for name, bits, mean in points
    ]
    path = tmp_path / "a.svg"
    fidelity_plot.save(replace(report, results=(*results, report.results[0])), path)
    drawn = path.read_text()
    for text in (*(name for name, _, _ in points), "KL is 0: f16", "f16 control", "64 tokens of context"):
        assert text in drawn, text
