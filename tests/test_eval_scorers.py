"""What replies are worth, on replies written by hand."""

from decimal import Decimal
from pathlib import Path

import pytest

from zipcache_rt import ArgumentError
from zipcache_rt.eval import CommonWords, Gsm8k, HumanEval, Limits, Lines, MultiKeyNiah, VariableTracking
from zipcache_rt.eval.case import Case
from zipcache_rt.eval.humaneval import completed
from zipcache_rt.eval.run_code import passes
from zipcache_rt.eval.scorers import final_number, numbers, share_named

QUICK = Limits(seconds=1, megabytes=256)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no number", []),
        ("<41869>", ["41869"]),
        ("first 3, then 4.", ["3", "4"]),
        ("1,234,567 and 12,34 and 1,2345", ["1234567", "12", "34", "1", "2345"]),
        ("-5, (-6), x-7, 8-9, $-10, -$11, \u221212", ["-5", "-6", "7", "8", "9", "-10", "-11", "-12"]),
        ("2.50 or 3. Or .5", ["2.50", "3", "5"]),
        ("16 - 3 - 4 = 9", ["16", "3", "4", "9"]),
        ("$1,000.25", ["1000.25"]),
    ],
)
def test_numbers(text: str, expected: list[str]) -> None:
    assert numbers(text) == [Decimal(number) for number in expected]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("6 * 3 = 18\nThe answer is 18.", "18"),
        ("#### -7", "-7"),
        ("The answer is $70,000, of 130,000.", "70000"),
        ("The answer is 5. Wait: the answer is 6 of 8", "6"),
        ("She has 4 and then 9 left", "9"),
        ("It is 12. The answer is unknown", "12"),
        ("The answer is", None),
        ("nothing", None),
    ],
)
def test_final_number(reply: str, expected: str | None) -> None:
    assert final_number(reply) == (None if expected is None else Decimal(expected))


def test_words_are_whole_and_in_any_case() -> None:
    assert share_named("1. Cat, 2. dogs", ["cat", "dog"]) == 0.5
    assert share_named("VAR ABC = VAR DEF", ["ABC", "DEF", "GHI", "AB"]) == 0.5


@pytest.mark.parametrize(
    ("task", "expected", "reply", "score"),
    [
        (Lines(), 41869, "The <REGISTER_CONTENT> in line 20 is <41869>.", 1),
        (Lines(), 41869, "41,869", 1),
        (Lines(), 41869, "41869 or 3", 0),
        (Lines(), 41869, "-41869", 0),
        (Lines(), 41869, "I do not know", 0),
        (MultiKeyNiah(), 1234567, "It is 1234567, not 7654321", 1),
        (MultiKeyNiah(), 1234567, "7654321 or 1234567", 0),
        (MultiKeyNiah(), 1234567, "", 0),
        (Gsm8k(Path("a")), "18", "so 18.00", 1),
        (Gsm8k(Path("a")), "-3", "The answer is 3", 0),
        (Gsm8k(Path("a")), "70000", "The answer is 70,000", 1),
        (VariableTracking(), ["ABCDE", "FGHIJ"], "ABCDE", 0.5),
        (CommonWords(), ["cat", "dog"], "1. dog\n2. cat", 1),
    ],
)
def test_scores(task: object, expected: object, reply: str, score: float) -> None:
    assert task.score(Case("0", "", expected=expected), reply) == score


PROMPT = 'import math\n\n\ndef half(x):\n    """Half of x."""\n'
RIGHT = (
    "    return x / 2\n",
    "```python\ndef half(x):\n    return x / 2\n```\nIt halves.",
    "Here it is:\n```\ndef half(x):\n    return x / math.sqrt(4)\n```",
    "```python\n    return x / 2\n```",
    "def half(x):\n    return x / 2",
    "```python\ndef half(x):\n    return x / 2",
)
WRONG = (
    "    return x\n",
    "I cannot",
    "",
    "```python\ndef other(x):\n    return x / 2\n```",
    "    import sys\n    sys.exit(0)\n",
)


def humaneval_case() -> Case:
    kept = {"prompt": PROMPT, "test": "def check(candidate):\n    assert candidate(3) == 1.5\n"}
    return Case("a", PROMPT, expected="half", kept_back=kept)


@pytest.mark.parametrize(("reply", "score"), [*((reply, 1) for reply in RIGHT), *((reply, 0) for reply in WRONG)])
def test_completions_are_run(reply: str, score: float) -> None:
    assert HumanEval(Path("a"), run_code=True, limits=QUICK).score(humaneval_case(), reply) == score


def test_nothing_is_run_unasked(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    reply = f"    open({str(trace)!r}, 'w').close()\n    return x / 2\n"
    assert HumanEval(Path("a")).score(humaneval_case(), reply) is None and not trace.exists()
    assert HumanEval(Path("a"), run_code=True, limits=QUICK).score(humaneval_case(), reply) == 1 and trace.exists()


def test_a_prompt_keeps_its_imports_and_helpers() -> None:
    assert completed(PROMPT, "half", "def half(x): ...").startswith(PROMPT)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "x = bytearray(2**30)",
        "x = []\nwhile True: x.append('a' * 10**6)",
        "import os; os._exit(0)",
        "import sys; sys.exit()",
        "raise SystemExit",
        "def f(): f()\nf()",
        "import os\nos.kill(os.getpid(), 9)",
        "open('big', 'wb').write(b'0' * 2**26)",
        "this is no Python",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'], check=True)",
    ],
)
def test_programs_that_do_not_pass(program: str) -> None:
    assert not passes(program, QUICK)


def test_output_and_surrogates_do_not_disturb() -> None:
    assert passes("print('x' * 10**6)\nimport sys; print('y', file=sys.stderr)\nassert __name__ == '__main__'", QUICK)
    assert passes("x = '\ud800'", QUICK)


def test_limits_are_checked() -> None:
    with pytest.raises(ArgumentError, match="seconds is 0; accepted: 1 to 3600"):
        Limits(seconds=0).check()
    with pytest.raises(ArgumentError, match="megabytes is 1; accepted: 64 to"):
        Limits(megabytes=1).check()
