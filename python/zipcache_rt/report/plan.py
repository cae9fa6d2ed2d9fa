"""What the report shows, as data: methods, the rows of tables, what each needs measured, and how much of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .._core import ArgumentError
from ..model import ModelInfo

F16 = "f16"
MARGIN = 16  # tokens that a session holds beyond those measured


@dataclass(frozen=True)
class Row:
    """One way to keep the cache, as tables and legends show it."""

    name: str
    policy: str  # as KvOptions.parse() takes it
    colour: str = "#1f6feb"
    marker: str = "o"


@dataclass(frozen=True)
class Claim:
    """What the paper found: one row is more faithful than another."""

    better: str  # Row.name
    worse: str
    source: str  # where the paper says so


@dataclass(frozen=True)
class Artefact:
    """A table or figure."""

    name: str
    title: str
    about: str  # what is shown and what the paper's shows
    rows: tuple[Row, ...]
    measures: tuple[str, ...]  # of fidelity, lines, speed, saliency: what it shows of every row
    claims: tuple[Claim, ...] = ()


METHODS = (
    Row("f16", F16, "#5f6670", "D"),
    Row("H2O", "h2o", "#b7791f", "v"),
    Row("GEAR", "gear:4", "#7a5195", "^"),
    Row("KIVI-2", "kivi:2", "#2a9d5c", "s"),
    Row("MiKV", "mikv", "#c2552d", "P"),
    Row("ZipCache", "zipcache", "#1f6feb", "o"),
    Row("auto", "auto", "#0b3d91", "*"),
    Row("q8_0", "q8_0", "#a3a9b1", "<"),
    Row("q4_0", "q4_0", "#d16ba5", ">"),
)

TABLE_1 = Artefact(
    "table1",
    "Table 1: quantization granularities",
    "4 bits for every token; what shares a scale. The paper's (LLaMA3-8B, GSM8K): tokenwise 49.81 % at 3.99x, "
    "groupwise at 3.20x, channelwise keys with channel-separable tokenwise (CST) values 54.74 % at 3.995x.",
    (
        Row("tokenwise K, V", "uniform:4,keys=tokenwise,values=tokenwise", "#c2552d"),
        Row("groupwise K, V (32)", "uniform:4,keys=groupwise,values=groupwise", "#2a9d5c"),
        Row("channelwise K, tokenwise V", "uniform:4,keys=channelwise,values=tokenwise", "#b7791f"),
        Row("channelwise K, CST V", "uniform:4,keys=channelwise,values=cst", "#1f6feb"),
    ),
    ("fidelity",),
    (
        Claim("channelwise K, CST V", "tokenwise K, V", "Table 1"),
        Claim("channelwise K, CST V", "channelwise K, tokenwise V", "section 4.1"),
        Claim("channelwise K, tokenwise V", "tokenwise K, V", "section 4.1"),
    ),
)

TABLE_2 = Artefact(
    "table2",
    "Table 2: whose attention is scored",
    "ZipCache with other probe tokens. The paper's (LLaMA3-8B, GSM8K): random + recent 52.08 %, recent 51.10 %, random "
    "47.46 %, special tokens (control tokens and punctuation) 46.78 %; all tokens are the full attention matrix that "
    "probes stand for.",
    (
        Row("all tokens", "zipcache,probes=all", "#5f6670"),
        Row("random, 10 %", "zipcache,probes=random,random_probes=0.1", "#b7791f"),
        Row("special tokens, 10 %", "zipcache,probes=special", "#c2552d"),
        Row("recent, 10 %", "zipcache,probes=recent,recent_probes=0.1", "#2a9d5c"),
        Row("random 5 % + recent 5 %", "zipcache", "#1f6feb"),
    ),
    ("fidelity",),
    (
        Claim("random 5 % + recent 5 %", "recent, 10 %", "Table 2"),
        Claim("random 5 % + recent 5 %", "random, 10 %", "Table 2"),
        Claim("recent, 10 %", "random, 10 %", "Table 2"),
        Claim("random, 10 %", "special tokens, 10 %", "Table 2"),
    ),
)

TABLE_3 = Artefact(
    "table3",
    "Table 3: methods",
    "Compression and accuracy. The paper's (LLaMA3-8B, GSM8K): FP16 55.88 %, ZipCache 53.75 % at 4.69x, KIVI-2 "
    "47.99 %, MiKV 35.48 %. auto is this package's own recipe; q8_0 and q4_0 are blocks of 32 channels, as llama.cpp "
    "stores them.",
    METHODS,
    ("fidelity", "lines"),
    (
        Claim("ZipCache", "KIVI-2", "Table 3"),
        Claim("ZipCache", "MiKV", "Table 3"),
        Claim("KIVI-2", "MiKV", "Table 3"),
    ),
)

TABLE_A = Artefact(
    "tableA",
    "Table A: how salient tokens are found",
    "ZipCache with other measures of saliency at the same bits. The paper: normalized attention above accumulated. "
    "Recent probes see nearly all tokens alike, which leaves little to normalize: hence both with all probes, too.",
    (
        Row("normalized", "zipcache", "#1f6feb"),
        Row("accumulated", "zipcache,saliency=accumulated", "#c2552d"),
        Row("normalized, all probes", "zipcache,probes=all", "#1f6feb"),
        Row("accumulated, all probes", "zipcache,probes=all,saliency=accumulated", "#c2552d"),
        Row("random", "zipcache,saliency=random", "#5f6670"),
    ),
    ("fidelity",),
    (
        Claim("normalized", "accumulated", "section 4.2"),
        Claim("normalized, all probes", "accumulated, all probes", "section 4.2"),
        Claim("normalized", "random", "the premise"),
    ),
)

FIGURE_1 = Artefact(
    "figure1",
    "Figure 1: accuracy over compression and latency",
    "How often the most probable next token is that of f16, over compression ratio and over latency at the longest "
    "measured context. Up and to the right (left panel), up and to the left (others) is better.",
    METHODS,
    ("fidelity", "speed"),
)

FIGURE_3 = Artefact(
    "figure3",
    "Figure 3: who is salient",
    "The share of layers in which a token is among the most salient 40 %, by accumulated and by normalized attention "
    "of all tokens, in a prompt whose question comes last. The paper: accumulated scores favour the first tokens and "
    "miss those of the final question.",
    (),
    ("saliency",),
)

FIGURE_5 = Artefact(
    "figure5",
    "Figure 5: line retrieval",
    "Accuracy over the number of lines, and how often the reply is that of f16 to the letter. The paper's "
    "(Mistral-7B): at 200 lines ZipCache is 42 points above MiKV.",
    METHODS,
    ("lines",),
)

FIGURE_6 = Artefact(
    "figure6",
    "Figure 6: latency and memory",
    "Every run in a fresh process: prefill of the whole context, then decoding after it; the most memory that the "
    "process ever held. The baseline is f16 with flash attention (the paper's: MiKV with standard attention).",
    METHODS,
    ("speed",),
)

ARTEFACTS = (TABLE_1, TABLE_2, TABLE_3, TABLE_A, FIGURE_1, FIGURE_3, FIGURE_5, FIGURE_6)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    name: str
    context: int = 3000  # fidelity: tokens prefilled of each text
    n_continue: int = 300  # fidelity: tokens decoded and scored after them
    lines: tuple[int, ...] = (20, 40, 80, 120, 160, 200)  # line retrieval
    n_cases: int = 20  # of each number of lines
    contexts: tuple[int, ...] = (1000, 2000, 4000, 8000)  # speed: tokens before decoding
    n_decode: int = 200  # speed: tokens decoded at each
    repeat: int = 3  # speed: runs, medians of which are shown
    prompt_lines: int = 20  # saliency: lines of the prompt

    def fitted(self, info: ModelInfo) -> Size:
        """What of it fits the model's context. Raises ArgumentError where too little does."""
        most = info.n_ctx_train - MARGIN
        context = min(self.context, most - self.n_continue)
        contexts = tuple(n for n in self.contexts if n + self.n_decode <= most)
        if context < 2 or not contexts:
            least = min(self.contexts) + self.n_decode + MARGIN
            raise ArgumentError(f"the model's context is {info.n_ctx_train} tokens; accepted: {least} or more")
        return replace(self, context=context, contexts=contexts)


FULL = Size("full")
QUICK = Size(
    "quick",
    context=600,
    n_continue=128,
    lines=(5, 10, 20),
    n_cases=4,
    contexts=(400, 800, 1600),
    n_decode=100,
    repeat=1,
)


def chosen(words: str | None) -> tuple[Artefact, ...]:
    """Artefacts by their names, separated by commas; all for None. Raises ArgumentError."""
    if words is None:
        return ARTEFACTS
    known = {artefact.name.lower(): artefact for artefact in ARTEFACTS}
    names = [word.strip().lower() for word in words.split(",") if word.strip()]
    if not names or (unknown := [name for name in names if name not in known]):
        accepted = ", ".join(artefact.name for artefact in ARTEFACTS)
        raise ArgumentError(f"--only is {unknown[0] if names else words!r}; accepted: {accepted}, separated by commas")
    return tuple(artefact for artefact in ARTEFACTS if artefact.name.lower() in names)


def policies(artefacts: Iterable[Artefact], measure: str) -> list[str]:
    """What `measure` has to be done for, f16 first, each once."""
    wanted = [artefact for artefact in artefacts if measure in artefact.measures]
    return list(dict.fromkeys([F16, *(row.policy for a in wanted for row in a.rows)])) if wanted else []
