"""Made-up prompts, and prompts from files."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from zipcache_rt import ArgumentError, FileError, Model
from zipcache_rt.eval import (
    CommonWords,
    FrequentWords,
    Gsm8k,
    HumanEval,
    Lines,
    MultiKeyNiah,
    Niah,
    Perplexity,
    Task,
    VariableTracking,
)
from zipcache_rt.eval.prompter import Prompter
from zipcache_rt.eval.synthetic import most_units

LENGTHS = (700, 1500)
SYNTHETIC = (
    Niah(LENGTHS, 3),
    MultiKeyNiah(LENGTHS, 3),
    VariableTracking(LENGTHS, 3),
    CommonWords(LENGTHS, 3),
    FrequentWords(LENGTHS, 3),
)


@pytest.fixture(scope="module")
def prompter(smollm2: Model) -> Prompter:
    return Prompter(smollm2)


@pytest.mark.parametrize("task", SYNTHETIC, ids=lambda task: task.name)
def test_prompts_fill_their_length(task: Task, prompter: Prompter) -> None:
    cases = task.cases(prompter)
    assert [case.id for case in cases] == [f"{n}-{i}" for n in LENGTHS for i in range(3)]
    assert [case.group for case in cases] == [f"{n} tokens" for n in LENGTHS for _ in range(3)]
    for case in cases:
        length = int(case.group.split()[0])
        assert length - 30 <= len(prompter.tokens(case)) <= length
    assert len({case.prompt for case in cases}) == len(cases)


@pytest.mark.parametrize("task", (*SYNTHETIC, Lines(lines=(5, 9), n_cases=3)), ids=lambda task: task.name)
def test_the_seed_decides_all(task: Task, prompter: Prompter) -> None:
    kind, fields = type(task), dict(vars(task))
    assert kind(**fields).cases(prompter) == task.cases(prompter)
    fewer = kind(**fields | {"n_cases": 2}).cases(prompter)
    assert set(case.prompt for case in fewer) < set(case.prompt for case in task.cases(prompter))
    other = kind(**fields | {"seed": 1}).cases(prompter)
    assert not {case.prompt for case in other} & {case.prompt for case in task.cases(prompter)}


def test_the_seed_means_the_same_everywhere() -> None:
    (case,) = Lines(lines=(2,), n_cases=1).cases(None)
    assert case.expected == 39645 and case.prompt.count("\nline ") == 2


def test_lines_have_one_answer() -> None:
    for case in Lines(lines=(2, 50, 400), n_cases=4).cases(None):
        lines = re.findall(r"^line (\S+): REGISTER_CONTENT is <(\d+)>$", case.prompt, re.MULTILINE)
        n_lines = int(case.group.split()[0])
        assert len({name for name, _ in lines}) == len({value for _, value in lines}) == len(lines) == n_lines
        (asked,) = re.findall(r"in line (\S+)\?", case.prompt)
        assert dict(lines)[asked] == str(case.expected) and asked in case.lead


@pytest.mark.parametrize("n_keys", [1, 4, 30])
def test_needles_lie_in_the_hay(prompter: Prompter, n_keys: int) -> None:
    depths = []
    for case in MultiKeyNiah((1000,), 8, n_keys=n_keys).cases(prompter):
        needles = re.findall(r"The pass number of the (\w+ \w+) is (\d{7})\.", case.prompt)
        assert len(needles) == n_keys == len({value for _, value in needles})
        (asked,) = re.findall(r"What is the pass number of the (\w+ \w+)\?", case.prompt)
        assert dict(needles)[asked] == str(case.expected)
        depths.append(case.prompt.index(str(case.expected)) / len(case.prompt))
    assert min(depths) < 0.3 and max(depths) > 0.7


def test_variables_are_assigned_in_order(prompter: Prompter) -> None:
    for case in VariableTracking((1000,), 4, n_chains=3, n_hops=5).cases(prompter):
        (asked,) = re.findall(r"hold the value (\d+)", case.prompt)
        held: dict[str, str] = {}
        for name, source, value in re.findall(r"VAR (\w{5}) = (?:VAR (\w+)|(\d+))\.", case.prompt):
            held[name] = value or held[source]  # a KeyError would say: used before it is assigned
        assert [name for name, value in held.items() if value == asked] == case.expected
        assert len(held) == 18 and len(case.expected) == 6


@pytest.mark.parametrize("length", [400, 1500, 6000])
def test_common_words_are_the_most_common(prompter: Prompter, length: int) -> None:
    for case in CommonWords((length,), 2).cases(prompter):
        counts = Counter(re.findall(r"^\d+\. (\w+)$", case.prompt, re.MULTILINE)).most_common()
        assert sorted(word for word, _ in counts[:10]) == case.expected
        assert counts[9][1] >= 2 * counts[10][1]


@pytest.mark.parametrize("length", [400, 1500, 6000])
def test_frequent_words_are_the_most_frequent(prompter: Prompter, length: int) -> None:
    for case in FrequentWords((length,), 2).cases(prompter):
        (text,) = re.findall(r"\n\n([a-z ]+)\n\n", case.prompt)
        counts = Counter(text.split()).most_common(4)
        assert [word for word, _ in counts[:3]] == case.expected and counts[2][1] > counts[3][1]


def test_most_units() -> None:
    for least in (1, 7):
        for most in (least - 1, least, least + 1, 37, 64):
            asked: list[int] = []
            assert most_units(lambda n, most=most, asked=asked: (asked.append(n), n <= most)[1], least) == most
            assert len(asked) < 16 and min(asked) >= least


GSM8K = [
    {
        "question": f"What is {i} and 1,000?",
        "answer": f"It is {i}+1,000=<<{i}+1000={1000 + i}>>{1000 + i}.\n#### 1,{i:03}",
    }
    for i in range(5)
]


def lines_of(path: Path, objects: list[object]) -> Path:
    path.write_text("".join(json.dumps(found) + "\n" for found in objects), "utf-8")
    return path


def test_gsm8k_prompts(tmp_path: Path, prompter: Prompter) -> None:
    data = lines_of(tmp_path / "a.jsonl", GSM8K)
    cases = Gsm8k(data, data, n_shots=3, n_cases=2).cases(prompter)
    assert [case.expected for case in cases] == ["1000", "1001"]
    text = prompter.model.detokenize(prompter.tokens(cases[1]), special=True)
    assert text.count("<|im_start|>user") == 4 and text.count("<|im_start|>assistant") == 4
    assert "It is 2+1,000=1002.\nThe answer is 1002.<|im_end|>" in text and "<<" not in text and "####" not in text
    plain = Prompter(prompter.model, template=False)
    text = prompter.model.detokenize(plain.tokens(cases[1]))
    assert text.startswith(
        "Question: What is 0 and 1,000?\nAnswer: It is 0+1,000=1000.\nThe answer is 1000.\n\nQuestion:"
    )
    assert text.endswith("Question: What is 1 and 1,000?\nAnswer:")


@pytest.mark.parametrize("template", [True, False])
def test_shots_are_what_prompts_share(tmp_path: Path, smollm2: Model, template: bool) -> None:
    data, prompter = lines_of(tmp_path / "a.jsonl", GSM8K), Prompter(smollm2, template)
    cases = Gsm8k(data, data, n_shots=3).cases(prompter)
    shared = {prompter.shared(case) for case in cases}
    tokens = [prompter.tokens(case) for case in cases]
    assert len(shared) == 1 and len({ids[: min(shared)] for ids in tokens}) == 1
    assert smollm2.detokenize(tokens[0][: min(shared)]).rstrip().endswith("1002." if not template else "user")
    assert prompter.shared(Gsm8k(data).cases(prompter)[0]) == 0


def test_lines_and_humaneval_from_files(tmp_path: Path, prompter: Prompter) -> None:
    prompt = {"prompt": "line a: <7>\nWhich? ", "expected_number": 7, "num_lines": 1}
    (case,) = Lines(lines_of(tmp_path / "a.jsonl", [prompt])).cases(prompter)
    assert (case.id, case.prompt, case.expected, case.group) == ("0", "line a: <7>\nWhich?", 7, "1 lines")
    problem = {"task_id": "H/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass\n"}
    data = lines_of(tmp_path / "b.jsonl", [problem])
    (case,) = HumanEval(data).cases(prompter)
    assert "```python\ndef f():\n```" in case.prompt and (case.id, case.expected) == ("H/0", "f")
    (case,) = HumanEval(data).cases(Prompter(prompter.model, template=False))
    assert case.prompt == "def f():\n"


def test_perplexity_chunks_do_not_overlap(tmp_path: Path, prompter: Prompter) -> None:
    path = tmp_path / "a.txt"
    path.write_text(Path(__file__).read_text("utf-8"), "utf-8")
    cases = Perplexity((path,), context=100, n_continue=20, n_chunks=4).cases(prompter)
    ids = [token for case in cases for token in (*case.prompt, *case.continuation)]
    assert tuple(ids) == tuple(prompter.model.tokenize(path.read_text("utf-8"), special=False)[:480])
    assert [case.id for case in cases] == [f"a.txt-{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (Lines(lines=(1,)), ArgumentError, "lines is 1; accepted: 2 to"),
        (Lines(lines=()), ArgumentError, "lines is empty"),
        (Lines(n_cases=0), ArgumentError, "cases is 0; accepted: 1 or more"),
        (Lines(Path("/nowhere.jsonl")), FileError, "cannot read the text /nowhere.jsonl"),
        (Niah((50,)), ArgumentError, "tokens is 50; accepted for niah: [0-9]+ or more"),
        (CommonWords((100,)), ArgumentError, "tokens is 100; accepted for common-words: [0-9]+ or more"),
        (MultiKeyNiah(n_keys=0), ArgumentError, "keys is 0; accepted: 1 to"),
        (VariableTracking(n_hops=0), ArgumentError, "hops is 0; accepted: 1 to 100"),
        (Perplexity((Path(__file__),), context=10**5), ArgumentError, "has [0-9]+ tokens; needed: 100200"),
        (Perplexity((Path(__file__),), n_continue=0), ArgumentError, "continue is 0; accepted: 1 or more"),
    ],
)
def test_bad_tasks(task: Task, error: type[Exception], message: str, prompter: Prompter) -> None:
    with pytest.raises(error, match=message):
        task.cases(prompter)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[1]\n", ArgumentError, r"a.jsonl, line 1, is '\[1\]'; accepted: an object"),
        ('{"question": "a"}\n', ArgumentError, "a.jsonl, line 1: 'answer' is missing; accepted: str"),
        ('{"question": 3, "answer": "#### 1"}\n', ArgumentError, "a.jsonl, line 1: 'question' is 3; accepted: str"),
        ('\n{"question": "a", "answer": "none"}\n', ArgumentError, "a.jsonl, line 2: 'answer' ends in no number"),
        ("{", FileError, "a.jsonl, line 1, is no JSON"),
    ],
)
def test_bad_data(tmp_path: Path, prompter: Prompter, content: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(error, match=message):
        Gsm8k(path).cases(prompter)


def test_too_few_shots(tmp_path: Path, prompter: Prompter) -> None:
    data = lines_of(tmp_path / "a.jsonl", GSM8K)
    with pytest.raises(ArgumentError, match=r"a.jsonl has 5 examples; needed: 8"):
        Gsm8k(data, data).cases(prompter)
