"""The report on a tiny random model: what is made, that nothing is made twice, and what is said of failures."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import tiny_models
from zipcache_rt import (
    ArgumentError,
    FileError,
    KvOptions,
    KvStats,
    Model,
    ModelError,
    fidelity,
    fidelity_report,
    report,
)
from zipcache_rt.fidelity import Text
from zipcache_rt.report import plan, shown, texts, worker
from zipcache_rt.report.store import Store

pytest.importorskip("matplotlib", reason="the plot extra is not installed")

SIZE = report.Size(
    "tiny",
    context=150,
    n_continue=8,
    lines=(2, 999),
    n_cases=2,
    contexts=(64, 9999),
    n_decode=4,
    repeat=2,
    prompt_lines=2,
)
NAMES = ("table1", "table2", "table3", "tableA", "figure1", "figure3", "figure5", "figure6")


def write_model(folder: Path, name: str = "tiny.gguf", seed: int = 0, n_ctx: int = 2048) -> Path:
    shape = tiny_models.SHAPES["llama"]
    weights = tiny_models.random_weights(shape, seed)
    return tiny_models.write(folder / name, shape, weights, vocabulary=True, llama__context_length=n_ctx)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole report."""
    folder = tmp_path_factory.mktemp("report")
    model = write_model(folder)
    page = report.build([model], folder / "out", SIZE, device="cpu", threads=2, command="python -m the.command")
    assert page == folder / "out" / "index.html"
    return folder / "out"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_every_artefact_is_made(made: Path, name: str) -> None:
    folder = made / "tiny"
    assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (folder / f"{name}.svg").read_text()
    rows = rows_of(folder / f"{name}.csv")
    assert rows
    if name != "figure3":
        assert {"name", "policy"} <= rows[0].keys() and rows[0]["policy"] in (plan.F16, *(r.policy for r in all_rows()))


def all_rows() -> Iterator[plan.Row]:
    for artefact in report.ARTEFACTS:
        yield from artefact.rows


def test_table_1_holds_what_fidelity_measures(made: Path) -> None:
    with Model(made.parent / "tiny.gguf", device="cpu", threads=2) as model:
        measured = [Text.of(model, name, text) for name, text in texts.own().items()]
        policies = [row.policy for row in plan.TABLE_1.rows if "groupwise" not in row.policy]
        expected = fidelity.measure(model, policies, measured, SIZE.context, SIZE.n_continue)
    rows = {row["policy"]: row for row in rows_of(made / "tiny" / "table1.csv")}
    assert list(rows) == [row.policy for row in plan.TABLE_1.rows]
    for result in expected.results:
        row = rows[result.name]
        assert row["status"] == "measured"
        assert float(row["kl_mean_nats"]) == pytest.approx(result.figures.kl_mean, rel=1e-4)
        assert float(row["kl_ci95_nats"]) == pytest.approx(result.figures.kl_ci95, rel=1e-4)
        assert float(row["same_top"]) == pytest.approx(result.figures.same_top)
        assert float(row["ratio"]) == pytest.approx(16 / result.bits, rel=1e-4)
        assert float(row["perplexity_ratio"]) == pytest.approx(result.figures.perplexity_ratio, rel=1e-4)


def test_what_cannot_run_is_shown_with_its_reason(made: Path) -> None:
    row = next(row for row in rows_of(made / "tiny" / "table3.csv") if row["policy"] == "q8_0")
    reason = "stores blocks of 32 channels, and the model's heads have 8"  # of the tiny model
    assert row["status"].startswith("failed: ") and reason in row["status"] and row["kl_mean_nats"] == ""
    page = (made / "index.html").read_text()
    assert "q8_0 (q8_0) failed: " in page and "blocks of 32 channels" in page


def test_figures_hold_every_policy_and_what_fits(made: Path) -> None:
    speed = rows_of(made / "tiny" / "figure6.csv")
    assert {row["context_tokens"] for row in speed} == {"64"}  # 9999 tokens do not fit the model
    assert {"f16", "zipcache", "auto"} <= {row["policy"] for row in speed}
    for row in speed:
        assert float(row["prefill_seconds"]) > 0 and float(row["peak_mb"]) >= float(row["loaded_mb"]) > 1
        if row["policy"] == "f16":
            assert (row["prefill_of_f16"], row["decode_of_f16"], row["peak_minus_f16_mb"]) == ("1.0", "1.0", "0.0")
    lines = rows_of(made / "tiny" / "figure5.csv")
    assert {row["n_lines"] for row in lines} == {"2"} and {row["n_cases"] for row in lines} == {"2"}
    tokens = rows_of(made / "tiny" / "figure3.csv")
    assert [row["position"] for row in tokens] == [str(i) for i in range(len(tokens))]
    for metric in ("accumulated", "normalized"):
        share = np.array([float(row[f"{metric}_salient_share"]) for row in tokens])
        assert share.mean() == pytest.approx(0.4, abs=0.01)


class References(HTMLParser):
    """What a page loads or leads to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else(made: Path) -> None:
    page = (made / "index.html").read_text()
    found = References(page)
    assert len(found.references) == len(NAMES)
    assert all(reference.startswith("data:image/png;base64,") for reference in found.references)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[^\"]*", "", page))
    text = "".join(found.text)
    for artefact in report.ARTEFACTS:
        assert artefact.title in text and f"python -m the.command --only {artefact.name}" in text
    with Model(made.parent / "tiny.gguf") as model:
        assert f"{model.info.n_layers} layers" in text
    for fact in ("SHA-256", "ggml", "numpy", "-m zipcache_rt.fidelity", "-m zipcache_rt.eval lines", "Rounding alone"):
        assert fact in text, fact
    assert "above" in text and ("holds" in text or "cannot be told apart" in text)


def test_the_commands_on_the_page_are_ones_that_the_tools_take(made: Path) -> None:
    commands = re.findall(r"python -m zipcache_rt\.(saliency|fidelity) ([^\n<]*)", (made / "index.html").read_text())
    name, words = next(command for command in commands if command[0] == "saliency")
    done = subprocess.run(
        [sys.executable, "-m", f"zipcache_rt.{name}", *words.split()], capture_output=True, text=True, timeout=120
    )
    n_tokens = len(rows_of(made / "tiny" / "figure3.csv"))
    assert done.returncode == 0 and f"{n_tokens:,} tokens, mean over layers" in done.stdout, done.stderr
    name, words = next(command for command in commands if command[0] == "fidelity")
    assert "uniform:4,keys=tokenwise,values=tokenwise" in words
    assert fidelity.parse(words.split()).n_continue == SIZE.n_continue


def snapshot(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("results.jsonl", "lines.jsonl")]


def test_a_rerun_makes_only_what_is_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = made.parent / "tiny.gguf", snapshot(made)
    ran: list[str] = []
    monkeypatch.setattr(fidelity, "measure", lambda *args, **kwargs: pytest.fail("fidelity was measured again"))
    monkeypatch.setattr("zipcache_rt.report.measure.in_fresh_process", lambda spec: ran.append(spec.policy))
    report.build([model], made, SIZE, device="cpu", threads=2)
    assert snapshot(made) == before and ran == []
    lines = before[0].splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if b'"speed"' in line and b'"auto"' in line)
    kept = b"".join(lines[:lost] + lines[lost + 1 :])
    (made / "results.jsonl").write_bytes(kept + b'{"key": {"ki')  # a run that was ended while it wrote
    monkeypatch.undo()
    report.build([model], made, SIZE, device="cpu", threads=2)
    after = snapshot(made)
    assert after[0].startswith(kept) and after[1] == before[1]
    (again,) = after[0][len(kept) :].splitlines()
    assert json.loads(again)["key"] == json.loads(lines[lost])["key"]


def test_only_measures_the_artefacts_asked_for(tmp_path: Path) -> None:
    model, other = write_model(tmp_path), write_model(tmp_path, "other.gguf", seed=1)
    out = tmp_path / "out"
    report.build([model, other], out, SIZE, artefacts=plan.chosen("tablea"), device="cpu", threads=2)
    keys = [json.loads(line)["key"] for line in (out / "results.jsonl").read_text().splitlines()]
    wanted = {row.policy for row in plan.TABLE_A.rows} | {plan.F16, fidelity_report.CONTROL}
    assert {key["kind"] for key in keys} == {"fidelity"} and {key["policy"] for key in keys} == wanted
    assert len({key["model"] for key in keys}) == 2 and not (out / "lines.jsonl").exists()
    assert (out / "tiny" / "tableA.csv").exists() and (out / "other" / "tableA.csv").exists()
    page = (out / "index.html").read_text()
    assert "tiny.gguf" in page and "other.gguf" in page and page.count("Not measured yet.") >= 2


@pytest.mark.parametrize("words", ["", "table9", "table1,figure9"])
def test_unknown_artefacts(words: str) -> None:
    with pytest.raises(ArgumentError, match="--only is .*; accepted: table1, table2, table3, tableA, figure1"):
        plan.chosen(words)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = write_model(tmp_path), tmp_path / "out"
    with pytest.raises(ArgumentError, match="there are no models"):
        report.build([], out, SIZE)
    with pytest.raises(FileError, match="nowhere.gguf"):
        report.build([tmp_path / "nowhere.gguf"], out, SIZE)
    with pytest.raises(FileError, match="cannot read the text"):
        report.build([model], out, SIZE, data=[tmp_path / "nowhere.txt"])
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ArgumentError, match=r"short.txt has \d+ tokens; needed: 158"):
        report.build([model], out, SIZE, data=[tmp_path / "short.txt"])
    with pytest.raises(ArgumentError, match="two texts have the same name"):
        report.build([model], out, SIZE, data=[tmp_path / "short.txt"] * 2)
    with pytest.raises(ArgumentError, match="the model's context is 64 tokens; accepted: 84 or more"):
        report.build([write_model(tmp_path, "small.gguf", n_ctx=64)], out, SIZE)
    with pytest.raises(FileError, match="cannot make the folder"):
        report.build([model], tmp_path / "short.txt", SIZE)
    (out / "results.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(FileError, match="results.jsonl, line 1, is no result of a report"):
        report.build([model], out, SIZE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'zipcache-rt\[plot\]'"):
        report.build([model], out, SIZE)


@pytest.mark.parametrize(("shares", "told"), [((0.3, 0.95), "30% to 95%"), ((0.9, 0.97), None), ((), None)])
def test_times_of_a_busy_machine_are_said_to_be(shares: tuple[float, ...], told: str | None) -> None:
    runs = {("f16", i): worker.Speed(1, 1, 1, 1, 1, 1, 16, share) for i, share in enumerate(shares)}
    for device in ("cpu", "cuda:0"):  # a GPU's threads wait for it
        found = SimpleNamespace(speed=runs, subject=SimpleNamespace(info=SimpleNamespace(device=device)))
        notes = shown.busy_note(found)  # type: ignore[arg-type]
        assert (told in notes[0]) if told and device == "cpu" else notes == []


def test_a_worker_tells_its_share_of_the_processor(tmp_path: Path) -> None:
    speed = worker.in_fresh_process(worker.Spec(str(write_model(tmp_path)), "cpu", 1, "f16", 512, 4))
    assert 0 < speed.cpu_share <= 1.1


def test_a_worker_says_why_it_failed(tmp_path: Path) -> None:
    spec = worker.Spec(str(write_model(tmp_path)), "cpu", 1, "q4_0", 32, 4)
    with pytest.raises(ModelError, match="blocks of 32 channels"):
        worker.in_fresh_process(spec)
    with pytest.raises(ModelError, match="the process that measured f16 ended with 1: .*TypeError"):
        worker.in_fresh_process(worker.Spec(str(tmp_path / "tiny.gguf"), "cpu", 1, "f16", 32, "four"))  # type: ignore[arg-type]


def test_a_policy_that_fails_while_it_runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = fidelity.measure

    def failing(model: Model, policies: list[str], *args: object, **kwargs: object) -> fidelity.Report:
        if "zipcache,saliency=random" in policies:
            raise ModelError("the logits are not finite")
        return measure(model, policies, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(fidelity, "measure", failing)
    out = tmp_path / "out"
    report.build([made.parent / "tiny.gguf"], out, SIZE, artefacts=[plan.TABLE_A], device="cpu", threads=2)
    status = {row["name"]: row["status"] for row in rows_of(out / "tiny" / "tableA.csv")}
    assert status == {
        "normalized": "measured",
        "accumulated": "measured",
        "normalized, all probes": "measured",
        "accumulated, all probes": "measured",
        "random": "failed: the logits are not finite",
    }


def result_of(kl: np.ndarray) -> fidelity.Result:
    n = len(kl)
    run = fidelity.Run(kl, np.ones(n, np.bool_), np.zeros(n), KvStats(1, 1, 8.0, 2.0, 1, 1, 1, 8.0))
    return fidelity.Result.of("a", "a", [run], [run])


def test_verdicts_are_paired() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400) ** 2
    found = {
        "zipcache": result_of(noise),
        "zipcache,saliency=accumulated": result_of(noise + 0.01 + 0.02 * np.sin(np.arange(400))),
        "zipcache,saliency=random": result_of(noise + np.where(np.arange(400) % 2, 0.5, -0.5)),
    }
    verdicts = shown.verdicts(plan.TABLE_A, found)
    assert [verdict.holds for verdict in verdicts] == [True, None]
    assert verdicts[0].difference == pytest.approx(0.01, abs=0.002)
    assert (
        "normalized above accumulated (section 4.2): holds here; the KL of accumulated is higher by 0.01"
        in verdicts[0].text
    )
    swapped = {"zipcache": found["zipcache,saliency=accumulated"], "zipcache,saliency=accumulated": found["zipcache"]}
    assert [verdict.holds for verdict in shown.verdicts(plan.TABLE_A, swapped)] == [False]


@pytest.mark.parametrize("policy", sorted({row.policy for artefact in report.ARTEFACTS for row in artefact.rows}))
def test_policies_of_the_plan_are_known(policy: str) -> None:
    assert KvOptions.parse(policy).policy == policy.partition(":")[0].partition(",")[0]


def test_store_keeps_the_newest_value(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.jsonl")
    store.add({"b": 1, "a": (2,)}, [1])
    store.add({"a": [2], "b": 1}, {"x": 2.5})
    assert store.find({"b": 1, "a": [2]}) == {"x": 2.5} and store.find({"b": 2}) is None
    assert Store(tmp_path / "a.jsonl").find({"a": [2], "b": 1}) == {"x": 2.5}


def test_tool(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    model = write_model(tmp_path, n_ctx=1100)
    command = [sys.executable, "-m", "zipcache_rt.report", str(model), "--out", str(tmp_path / "out"), "--quick"]
    command += ["--only", "table1", "--data", str(tmp_path / "text.txt"), "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "out" / "index.html"), done.stderr
    assert len(rows_of(tmp_path / "out" / "tiny" / "table1.csv")) == len(plan.TABLE_1.rows)
    done = subprocess.run([*command, "--only", "table9"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: --only is 'table9'; accepted: table1")
