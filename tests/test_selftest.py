"""The self-test passes on the CPU and says FAILED of what is wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from helpers import tiny_models
from zipcache_rt import ArgumentError, Model, _core
from zipcache_rt.eval import RunOptions
from zipcache_rt.options import KvOptions
from zipcache_rt.selftest import __main__ as command
from zipcache_rt.selftest import ops, speed, trial, whole_model
from zipcache_rt.selftest.part import Check, Part, guarded
from zipcache_rt.selftest.trial import Case, Outcome

SMALL = ops.Size(0, 150)
MODEL = whole_model.Size(("f16", "auto"), 180, 12)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.selftest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def quiet(_: float) -> None:
    pass


def test_the_cpu_passes_and_one_report_says_all(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = run("--device", "cpu", "--quick", "--seed", "7", "--threads", "2", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    report = json.loads(out.read_text("utf-8"))
    assert lines[-1] == f"PASSED: {report['n_checks']} checks"
    assert str(out) in lines[-2] and "attach" in lines[-2]
    assert report["format"] == command.FORMAT and report["passed"] and report["n_failed"] == 0
    assert report["device"]["name"] == "cpu" and 0 < report["device"]["free"] <= report["device"]["total"]
    assert {"date", "seconds", "arguments", "machine", "versions"} <= report.keys()
    assert report["versions"]["zipcache-rt"] and report["versions"]["ggml"]["version"]
    parts = report["parts"]
    assert list(parts) == ["operators", "whole model", "speed"]
    assert sum(part["checks"] for part in parts.values()) == report["n_checks"]
    assert parts["operators"]["seed"] == 7 and not parts["operators"]["refused"]
    assert [row["policy"] for row in parts["operators"]["policies"]] == list(ops.POLICIES)
    for row in parts["operators"]["policies"]:
        assert row["worst"].keys() == row["bounds"].keys()
        assert all(row["worst"][name] <= row["bounds"][name] for name in row["worst"])
    assert parts["whole model"]["kl_control"] > 0
    for row in parts["whole model"]["rows"]:
        assert 0 < row["kl_mean"] <= row["kl_bound"] and row["n_positions"] == command.QUICK.model.n_continue
    assert all(min(row["tokens_per_second"].values()) > 0 for row in parts["speed"]["rows"])
    assert report["text"][-1] == lines[-1] and any("Operators on cpu" in line for line in report["text"])


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("--device", "cuda:99", "--quick", "--out", str(tmp_path / "report.json"))
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert len(done.stderr.splitlines()) == 1 and "device is 'cuda:99'; accepted: auto, cpu" in done.stderr


def test_a_file_that_is_no_model_is_told_before_the_work(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nothing")
    done = run(str(bad), "--device", "cpu", "--out", str(tmp_path / "report.json"))
    assert done.returncode == 1 and list(tmp_path.iterdir()) == [bad]
    assert len(done.stderr.splitlines()) == 1 and "not a GGUF file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "100,x"], "--depths is '100,x'; accepted: numbers of tokens above 0"),
        (["--depths", "0"], "--depths is '0'; accepted"),
        (["--cases", "-1"], "--cases is -1; accepted: 0 or more"),
        (["--seed", "-1"], "--seed is -1; accepted: 0 or more"),
        (["--threads", "0"], "--threads is 0; accepted: 1 to 512"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        command.parse(arguments)


def test_cases_repeat_with_their_seed_and_fit_their_policy() -> None:
    for policy in ops.POLICIES:
        cases = [Case.draw(policy, Random(3), 640) for _ in "ab"]
        assert cases[0] == cases[1] and cases[0].policy == policy
    assert {Case.draw("q4_0", Random(i), 10).head_dim for i in range(99)} == {64, 96, 128, 256}


def case_of(policy: str) -> Case:
    return Case(policy, 2, 3, 64, 0, ((300, 41),), 20, seed=5)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {policy: trial.run(case_of(policy), "cpu") for policy in ("f16", "auto", "uniform:8")}


def wrong_attention(made: Outcome) -> Outcome:
    """As if a head read another's rows."""
    return replace(made, looks=[replace(look, out=look.out[::-1]) for look in made.looks])


def wrong_rows(made: Outcome) -> Outcome:
    """As if two tokens in a hundred were read at each other's place, by attention too: only the other rows tell."""
    looks = []
    for look in made.looks:
        order = np.arange(look.k.shape[1])
        order[10:17] = order[10:17][::-1]
        moved = replace(look, k=look.k[:, order], v=look.v[:, order])
        looks.append(replace(moved, out=trial.attention(moved, 0).astype(np.float32)))
    return replace(made, looks=looks)


def lost_row(made: Outcome) -> Outcome:
    return replace(made, looks=[replace(look, k=look.k[:, 1:], v=look.v[:, 1:]) for look in made.looks])


def not_a_number(made: Outcome) -> Outcome:
    return replace(made, looks=[replace(look, out=look.out * np.nan) for look in made.looks])


def more_bytes(made: Outcome) -> Outcome:
    return replace(made, bits=[1.2 * bits for bits in made.bits])


def found(policy: str, got: Outcome, reference: Outcome) -> bool:
    bounds = ops.bounds_of(policy, "cpu", ops.rows_compared(reference))
    return not ops.compare(case_of(policy), got, reference).within(bounds)


@pytest.mark.parametrize("policy", ["f16", "auto", "uniform:8"])
def test_what_is_wrong_is_found(policy: str, outcomes: dict[str, Outcome]) -> None:
    made = outcomes[policy]
    assert not found(policy, made, made)
    for spoil in (wrong_attention, lost_row, not_a_number):
        assert found(policy, spoil(made), made), spoil
    assert found(policy, more_bytes(made), made) == (policy != "f16")  # which compresses nothing


@pytest.mark.parametrize("policy", ["f16", "uniform:8"])
def test_rows_out_of_place_are_found(policy: str, outcomes: dict[str, Outcome]) -> None:
    assert found(policy, wrong_rows(outcomes[policy]), outcomes[policy])


def test_coarser_codes_are_found(outcomes: dict[str, Outcome]) -> None:
    def coarser(side: Any) -> Any:
        return (side + 0.1 * np.random.default_rng(0).standard_normal(side.shape)).astype(np.float16)

    made = outcomes["auto"]
    looks = [replace(look, k=coarser(look.k)) for look in made.looks]
    assert found("auto", replace(made, looks=looks), made)


class Wrong(_core.KvTrial):
    def decode(self, *tokens: Any) -> Any:
        return super().decode(*tokens)[..., ::-1]


class Full(_core.KvTrial):
    def rows(self) -> Any:
        raise _core.ContextError("no memory")


@pytest.mark.parametrize(("device", "said"), [(Wrong, "Found(attend="), (Full, "ContextError: no memory")])
def test_a_wrong_device_fails_its_checks(device: type, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "POLICIES", ops.NEEDED)
    monkeypatch.setattr(_core, "KvTrial", device)  # here, not in the process of the reference
    part = ops.test("cpu", SMALL, 1, quiet)
    assert len(part.checks) == 2 * len(ops.NEEDED)
    assert [failure.name for failure in part.failures] == [f"case {i}" for i in range(len(ops.NEEDED))]
    assert all(failure.detail.startswith(said) and "Case(policy=" in failure.detail for failure in part.failures)


def test_policies_that_a_device_lacks_are_told_and_some_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "POLICIES", ("f16", "auto", "zipcache", "mikv"))
    monkeypatch.setattr(KvOptions, "to_core", lambda self: self)

    def some(*, kv: KvOptions, **_: Any) -> None:
        if kv.policy in ("mikv", "auto"):
            raise ArgumentError(f"no {kv.policy} here")

    with monkeypatch.context() as patch:
        patch.setattr(_core, "KvTrial", some)
        assert ops.refused("cpu") == {"auto": "no auto here", "mikv": "no mikv here"}
    monkeypatch.undo()
    monkeypatch.setattr(ops, "POLICIES", ("f16",))
    monkeypatch.setattr(ops, "refused", lambda device: {"auto": "no auto here", "mikv": "no mikv here"})
    part = ops.test("cpu", SMALL, 1, quiet)
    assert [(failure.name, failure.detail) for failure in part.failures] == [("auto runs there", "no auto here")]
    assert any(note.startswith("mikv is not there: no mikv") for note in part.notes)


def models(folder: Path) -> list[Path]:
    shape = replace(tiny_models.SHAPES["llama"], n_embd=128, head_dim=64, n_ff=192)
    return [
        tiny_models.write(folder / f"{seed}.gguf", shape, tiny_models.random_weights(shape, seed)) for seed in range(2)
    ]


def test_a_wrong_model_fails(tmp_path: Path) -> None:
    right, wrong = models(tmp_path)
    parts = [whole_model.test(right, Model(path, device="cpu", threads=2), MODEL, quiet) for path in (right, wrong)]
    assert not parts[0].failures and len(parts[0].checks) == 2
    assert len(parts[1].failures) == 2
    assert parts[0].facts["rows"][0]["equal_tokens"] == 12  # f16; with auto rounding may decide a near tie
    assert all(row["equal_tokens"] < 12 and row["gap"] > 0 for row in parts[1].facts["rows"])


def test_a_run_that_cannot_be_timed_is_a_failed_check(tmp_path: Path) -> None:
    (path, _) = models(tmp_path)
    part = speed.test(
        path, RunOptions(device="cpu", threads=2), speed.Size(("f16", "q4_0,rotate=maybe"), [20], 2), quiet
    )
    assert [check.passed for check in part.checks] == [True, False] and "rotate" in part.failures[0].detail
    assert speed.Size(("f16",), [100, 250], 10).fitted(256).depths == [100]


def test_a_part_that_breaks_is_a_failed_check() -> None:
    def broken() -> Part:
        raise RuntimeError("the device went away")

    part = guarded("operators", broken)
    assert part.checks == [Check("operators", False, "RuntimeError: the device went away")]
    assert part.as_dict()["failed"] and "broken" in "".join(part.facts["traceback"])


def test_a_random_model_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise _core.FileError("none")

    monkeypatch.setattr(command.cli, "demo_model", none)
    path = command.find_model(None, tmp_path)
    assert path.parent == tmp_path and Model(path, device="cpu").info.n_layers == command.RANDOM.layers
    assert command.find_model(Path("given"), tmp_path) == Path("given")

    def no_writer() -> None:
        raise ArgumentError("it needs gguf")

    monkeypatch.setattr(command.random_gguf, "need_gguf", no_writer)
    with pytest.raises(_core.FileError, match="none; a random one could stand in, but it needs gguf"):
        command.find_model(None, tmp_path)


def kv_trial(**changes: Any) -> _core.KvTrial:
    norms = np.ones((6, 64), np.float32)
    arguments = {"kv": KvOptions().to_core(), "device": "cpu", "norms": norms, "n_kv_heads": 2, "sliding_window": 0}
    return _core.KvTrial(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 4}, "4 KV heads and a sliding window of 0; accepted: a divisor of the 6 heads"),
        ({"n_kv_heads": 0}, "0 KV heads"),
        ({"sliding_window": -1}, "a sliding window of -1"),
        ({"norms": np.zeros((6, 64), np.float32)}, "norms that are none"),
        ({"norms": np.ones(6, np.float32)}, "norms that are none"),
        ({"norms": np.ones((0, 64), np.float32)}, "0 heads; accepted: 1 to 1024"),
        ({"device": "tpu"}, "device is 'tpu'; accepted: auto, cpu"),
    ],
)
def test_a_trial_of_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        kv_trial(**changes)


def test_a_trial_takes_only_tokens_of_its_shape() -> None:
    made, rows = kv_trial(), np.zeros((2, 5, 64), np.uint16)
    with pytest.raises(_core.ContextError, match="no rows yet"):
        made.rows()
    for k, q in ((rows, np.zeros((4, 6, 64))), (rows[:1], np.zeros((5, 6, 64))), (rows[:, :0], np.zeros((0, 6, 64)))):
        for call in (made.prefill, made.decode):
            with pytest.raises(ArgumentError, match="KvTrial got"):
                call(k, k, q.astype(np.float32))
    assert made.decode(rows, rows, np.zeros((5, 6, 64), np.float32)).shape == (5, 6, 64)
    assert made.rows()[0].shape == rows.shape
    for n_tokens in (-1, 6):
        with pytest.raises(ArgumentError, match=f"keep {n_tokens} tokens; accepted: 0 to the 5 that it has"):
            made.truncate(n_tokens)
