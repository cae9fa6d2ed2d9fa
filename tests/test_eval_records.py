"""Results files, intervals, and what summaries make of records."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from zipcache_rt import FileError
from zipcache_rt.eval import Record, Results, load, mean_interval, paired_difference, summarize, wilson
from zipcache_rt.eval.intervals import bootstrap

BLANK = Record(
    task="lines",
    metric="accuracy",
    model="a.gguf",
    model_sha256="00",
    device="cpu",
    options={"seed": 0},
    version="1",
    jobs=1,
    threads=2,
)


def records(policy: str, replies: list[str], scores: list[float | None], **fields: object) -> list[Record]:
    pairs = enumerate(zip(replies, scores, strict=True))
    return [
        replace(BLANK, case=str(i), policy=policy, reply=reply, score=score, **fields) for i, (reply, score) in pairs
    ]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    results = Results(path)
    made = records("f16", ["a\n\u2603", "\x00\ud800"], [0.5, None], tops=(1, 2), expected=["x"])
    for record in made:
        results.add(record)
    assert load(path) == made == Results(path).records
    results.add(replace(made[1], score=1.0))
    assert load(path) == [made[0], replace(made[1], score=1.0)] and path.read_text().count("\n") == 3


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_last_line_is_repaired(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    results = Results(path)
    made = records("f16", ["a", "b", "c"], [1.0, 0.0, 1.0])
    for record in made:
        results.add(record)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: last + cut] if cut > 0 else whole[:cut])
    assert load(path) == made[:2]
    again = Results(path)
    assert path.read_bytes() == whole[:last] and not again.find(made[2].key)
    again.add(made[2])
    assert path.read_bytes() == whole


def test_what_may_change_a_reply_is_in_the_key() -> None:
    (record,) = records("f16", ["a"], [1.0])
    for change in ({"policy": "auto"}, {"case": "1"}, {"task": "niah"}, {"model_sha256": "01"}, {"device": "cuda:0"}):
        assert replace(record, **change).key != record.key
    assert replace(record, options={"seed": 1}).key != record.key != replace(record, prompt_sha256="1").key
    assert replace(record, reply="b", score=0.0, jobs=2, threads=1, version="2").key == record.key


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl, line 2, is no result"),
        ("[]", r"line 2, is no result: '\[\]' is no record; accepted: objects"),
        ("{}", "line 2, is no result: 'task' is missing; accepted: str"),
        (json.dumps(asdict(BLANK) | {"score": "1"}), r"'score' is '1'; accepted: float \| None"),
        (json.dumps(asdict(BLANK) | {"metric": "speed"}), "'metric' is 'speed'; accepted: accuracy, perplexity"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(asdict(BLANK))}\n{line}\n")
    with pytest.raises(FileError, match=message):
        load(path)
    before = path.read_bytes()
    with pytest.raises(FileError, match=message):
        Results(path)
    assert path.read_bytes() == before


def test_other_files_are_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("one line without an end", f"{json.dumps(asdict(BLANK))}\nand more", '{"name": 1'):
        path.write_text(text)
        with pytest.raises(FileError, match=r"a.txt ends in .* which is no result"):
            Results(path)
        assert path.read_text() == text


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write the results"):
        Results(tmp_path / "none" / "a.jsonl")
    with pytest.raises(FileError, match="cannot read the results"):
        load(tmp_path / "a.jsonl")
    with pytest.raises(FileError, match="cannot read the results"):
        Results(tmp_path)


@pytest.mark.parametrize(  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = wilson(n - successes, n)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))
    assert found == mean_interval([1.0] * successes + [0.0] * (n - successes))


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(lambda given: given.mean(-1), values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (
        pytest.approx(found.value - half, rel=0.01),
        pytest.approx(found.value + half, rel=0.01),
    )


def test_differences_are_paired_and_seeded() -> None:
    base = np.random.default_rng(2).normal(0, 10, 50)
    assert paired_difference(base + 1, base) == paired_difference(base + 1, base, seed=3)  # no spread in the pairs
    assert paired_difference(base + 1, base).low == pytest.approx(1)
    other = np.random.default_rng(3).normal(0, 10, 50)
    assert paired_difference(other, base) == paired_difference(other, base) != paired_difference(other, base, seed=1)


def test_summary_of_accuracy() -> None:
    base = records("f16", ["a", "b", "c", "d"], [1, 1, 0, 0], group="x", decode_seconds=2.0, decode_tokens=10)
    made = records("auto", ["a", "B", "c", "D"], [1, 0, 0, 1], group="x", kv_ratio=4.0, kv_bytes=100)
    (summary,) = summarize([*made, *base])
    first, second = summary.rows
    assert (summary.group, summary.task, summary.metric) == ("x", "lines", "accuracy")
    assert (first.policy, first.n, first.score.value) == (
        "f16",
        4,
        0.5,
    ) and first.difference is first.same_reply is None
    assert (second.policy, second.difference.value, second.same_reply.value) == ("auto", 0, 0.5)
    assert second.same_score == wilson(2, 4) and second.difference.low < 0 < second.difference.high
    assert (first.seconds_per_token, first.seconds, second.kv_ratio, second.kv_bytes) == (0.2, 2.0, 4.0, 100)
    assert json.loads(json.dumps(summary.as_dict()))["rows"][1]["score"]["value"] == 0.5


def test_groups_options_and_models_stand_apart() -> None:
    parts = [{"group": "x"}, {"group": "y", "prompt_sha256": "1"}, {"options": {"seed": 1}}, {"model_sha256": "01"}]
    made = [record for part in parts for policy in ("f16", "auto") for record in records(policy, ["a"], [1.0], **part)]
    found = [(one.group, one.options["seed"], one.model_sha256, [row.n for row in one.rows]) for one in summarize(made)]
    assert found[:3] == [("x", 0, "00", [1, 1]), ("y", 0, "00", [1, 1]), ("", 0, "00", [2, 2])]
    assert sorted(found[3:]) == [("", 0, "01", [1, 1]), ("", 1, "00", [1, 1])]


def test_cases_without_f16_or_score_are_not_compared() -> None:
    base, made = records("f16", ["a"], [None]), records("auto", ["a", "b"], [None, None])
    row = summarize([*base, *made])[0].rows[1]
    assert (row.n, row.score, row.difference, row.same_score, row.same_reply) == (2, None, None, None, wilson(1, 1))
    (alone,) = summarize(made)[0].rows
    assert alone.same_reply is None and alone.difference is None
    assert summarize([]) == []


def test_summary_of_perplexity() -> None:
    base = records("f16", ["", ""], [-1.0, -2.0], metric="perplexity", tops=(1, 2, 3, 4))
    made = records("auto", ["", ""], [-1.5, -2.5], metric="perplexity", tops=(1, 2, 3, 5))
    first, second = summarize([*base, *made])[0].rows
    assert first.score.value == pytest.approx(np.exp(1.5)) and first.score.low == pytest.approx(np.exp(1))
    assert second.difference.value == pytest.approx(np.exp(2) - np.exp(1.5)) and second.difference.low > 0
    assert second.same_reply.value == 0.75 and second.same_score is None
