"""Saliency of every token against attention in NumPy, and the tool that shows it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from helpers import numpy_forward, tiny_models
from zipcache_rt import ArgumentError, KvOptions, Model, plotting, saliency
from zipcache_rt.saliency_view import SHADES, View

N_TOKENS = 90


def model_of(folder: Path, name: str, **metadata: object) -> Model:
    shape = tiny_models.SHAPES[name]
    path = tiny_models.write(folder / f"{name}.gguf", shape, tiny_models.random_weights(shape), **metadata)
    return Model(path, device="cpu", threads=2)


def random_ids(n: int = N_TOKENS) -> np.ndarray:
    return np.random.default_rng(1).integers(0, tiny_models.N_VOCAB, n).astype(np.int32)


def expected_scores(name: str, ids: np.ndarray, probes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """score [n_layers, n_kv_heads, n] and seen [n_layers, n], from whole attention matrices."""
    shape = tiny_models.SHAPES[name]
    attended: list[np.ndarray] = []
    numpy_forward.logits(shape, tiny_models.random_weights(shape), ids, attended)
    rows = np.stack(attended)[:, :, probes]  # [n_layers, n_heads, n_probes, n]
    groups = rows.reshape(shape.n_layers, shape.n_kv_heads, -1, *rows.shape[2:])
    return groups.sum((2, 3)), (rows[:, 0] > 0).sum(1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", "zipcache,probes=all"),
        ("llama", "zipcache"),
        ("llama", "auto,probes=random,random_probes=0.3,seed=7"),
        ("qwen3", "zipcache,probes=recent,recent_probes=0.2"),
        ("gemma3", "zipcache,probes=all"),  # sliding windows: not every row after a token sees it
        ("phi3", "zipcache,probes=all"),
    ],
)
def test_scores_are_sums_of_attention(tmp_path: Path, name: str, options: str) -> None:
    ids = random_ids()
    found = saliency.measure(model_of(tmp_path, name), ids, kv=KvOptions.parse(options))
    assert found.probes[-1] == N_TOKENS - 1 and len(set(found.probes)) == len(found.probes)
    if "probes=all" in options:
        np.testing.assert_array_equal(found.probes, np.arange(N_TOKENS))
    if "recent" in options:
        np.testing.assert_array_equal(found.probes, np.arange(N_TOKENS - 18, N_TOKENS))
    score, seen = expected_scores(name, ids, found.probes)
    np.testing.assert_array_equal(found.seen, seen)
    np.testing.assert_allclose(found.score, score, rtol=0.02, atol=0.02)
    total = score.sum(1) / found.n_heads
    np.testing.assert_allclose(found.by_layer("accumulated"), total, rtol=0.02, atol=0.01)
    np.testing.assert_allclose(found.by_layer("normalized"), total / np.maximum(seen, 1), rtol=0.02, atol=0.002)
    np.testing.assert_allclose(found.of("accumulated"), total.mean(0), rtol=0.02, atol=0.01)
    np.testing.assert_array_equal(found.of("normalized", 1), found.by_layer("normalized")[1])


PUNCTUATION = "!\"#%&'()*,-./:;?@[\\]_{}"  # of ASCII; the rest of its signs are symbols


def test_special_probes_are_control_tokens_and_punctuation(tmp_path: Path) -> None:
    shape = tiny_models.SHAPES["llama"]
    path = tiny_models.write(tmp_path / "a.gguf", shape, tiny_models.random_weights(shape), vocabulary=True)
    model = Model(path, device="cpu", threads=2)
    ids = random_ids(240)
    pieces = [model.detokenize([int(i)]) for i in ids]
    special = {t for t, piece in enumerate(pieces) if piece in PUNCTUATION or piece.startswith("<|")}
    assert 40 < len(special) < 80
    found = saliency.measure(model, ids, kv=KvOptions.parse("zipcache,probes=special"))
    assert len(found.probes) == 24 + 1 and set(found.probes) <= special | {239}
    every = saliency.measure(model, ids, kv=KvOptions.parse("zipcache,probes=special,recent_probes=1"))
    assert set(every.probes) == special | {239}
    logits = {}
    for probes in ("special", "random+recent"):
        session = model.session(kv=KvOptions.parse(f"zipcache,probes={probes}"))
        session.prefill(ids)
        logits[probes] = session.score(ids[:8])
    assert not np.array_equal(logits["special"], logits["random+recent"])


def test_special_probes_need_a_tokenizer(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    kv = KvOptions.parse("zipcache,probes=special")
    says = "probes is 'special', and .*llama.gguf has no tokenizer .*accepted: any other"
    with pytest.raises(ArgumentError, match=says):
        model.session(kv=kv)
    with pytest.raises(ArgumentError, match=says):
        saliency.measure(model, random_ids(), kv=kv)
    model.session(kv=KvOptions.parse("uniform:4,probes=special")).close()  # which has no probes


def test_salient_share_counts_layers(tmp_path: Path) -> None:
    found = saliency.measure(model_of(tmp_path, "llama"), random_ids())
    share = found.salient_share("normalized", 0.4)
    assert share.sum() == pytest.approx(round(0.4 * N_TOKENS)) and set(np.unique(share)) <= {0.0, 0.5, 1.0}
    for t, value in enumerate(share):
        ranks = (found.by_layer("normalized") > found.by_layer("normalized")[:, t : t + 1]).sum(1)
        assert value == (ranks < round(0.4 * N_TOKENS)).mean()
    np.testing.assert_array_equal(found.salient_share("accumulated", 1), np.ones(N_TOKENS))


def test_scoring_leaves_sessions_alone(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    session = model.session(kv=KvOptions.parse("zipcache"))
    session.prefill(random_ids())
    before = session.logits
    saliency.measure(model, random_ids(40))
    other = model.session(kv=KvOptions.parse("zipcache"))
    other.prefill(random_ids())
    np.testing.assert_array_equal(other.logits, before)
    np.testing.assert_array_equal(session.logits, before)


def test_progress_is_told_and_stops_the_work(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama")
    told: list[float] = []
    saliency.measure(model, random_ids(), progress=told.append)
    assert told == [0.5, 1.0]

    def stop(done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saliency.measure(model, random_ids(), progress=stop)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "score_prompt got 0 tokens; accepted: 1 to 256"),
        ([1] * 257, "score_prompt got 257 tokens; accepted: 1 to 256"),
        ([96], "96"),
        ([1.5], "tokens holds 1.5; accepted: integers"),
    ],
)
def test_bad_tokens(tmp_path: Path, tokens: list[object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        saliency.measure(model_of(tmp_path, "llama"), tokens)  # type: ignore[arg-type]


def test_bad_questions(tmp_path: Path) -> None:
    found = saliency.measure(model_of(tmp_path, "llama"), random_ids())
    with pytest.raises(ArgumentError, match="layer is 2; accepted: 0 to 1, or None"):
        found.of("normalized", 2)
    with pytest.raises(ArgumentError, match="the metric is 'mean'; accepted: normalized, accumulated"):
        found.of("mean")
    with pytest.raises(ArgumentError, match=r"ratio is 1.5; accepted: 0 to 1"):
        found.salient_share("normalized", 1.5)


def tool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.saliency", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_tool_lists_draws_and_writes(smollm2_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    figures, plot = tmp_path / "out.json", tmp_path / "out.svg"
    text = "The 猫 sat.\nWhere did the cat sit?"
    done = tool(str(smollm2_path), "--text", text, "--top", "3", "--json", str(figures), "--plot", str(plot))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads(figures.read_text())
    n = len(found["tokens"])
    assert "".join(found["pieces"])[-25:] == text[-25:] and f"{n} tokens, mean over layers, {n} probes" in done.stdout
    assert np.shape(found["normalized"]) == np.shape(found["accumulated"]) == np.shape(found["seen"]) == (30, n)
    np.testing.assert_allclose(np.sum(found["accumulated"], 1), n, rtol=1e-4)  # each row's probabilities sum to 1
    np.testing.assert_allclose(found["normalized"], np.divide(found["accumulated"], n - np.arange(n)), atol=1e-6)
    first = next(line for line in done.stdout.splitlines() if line.startswith("│        0"))
    assert "The" in first and done.stdout.count("most salient, ") == 2
    drawn = plot.read_text()
    assert "normalized" in drawn and "accumulated" in drawn and "mean over layers" in drawn


def test_tool_reads_stdin_and_takes_one_layer(smollm2_path: Path) -> None:
    done = tool(
        str(smollm2_path), "--prompt", "-", "--layer", "3", "--metric", "normalized", "--most", "7", stdin="a b " * 9
    )
    assert done.returncode == 0 and "7 tokens, layer 3" in done.stdout and "accumulated" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "a", "--layer", "30"), "--layer is 30; accepted: 0 to 29"),
        (("--text", ""), "the prompt is empty"),
        (("--prompt", "/nowhere.txt"), "cannot read the text /nowhere.txt"),
        (("--text", "a", "--top", "0"), "--top is 0; accepted: 1 or more"),
        (("--text", "a", "--plot", "a.txt"), "the plot is 'a.txt'; accepted: a name that ends in .png"),
    ],
)
def test_tool_errors_are_one_line(smollm2_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = tool(str(smollm2_path), *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_colours_follow_ranks(smollm2: Model) -> None:
    found = saliency.measure(smollm2, smollm2.tokenize("The cat sat on the mat."))
    values = found.of("normalized")
    console = Console(force_terminal=True, color_system="truecolor", width=80, record=True, file=io.StringIO())
    View({"normalized": values}, found, None).show(console, 1)
    shown = console.export_html(inline_styles=True)
    for token, shade in ((values.argmax(), SHADES[-1]), (values.argmin(), SHADES[0])):
        assert f'background-color: {shade}">{found.pieces[token]}</span>' in shown


def test_labels_do_not_change_the_text(tmp_path: Path) -> None:
    assert plotting.plain("a$b$\x1b[1m") == r"a\$b\$" + "\N{REPLACEMENT CHARACTER}[1m"
