"""Tasks for compressed KV caches: accuracy, and agreement with what the f16 cache answers.

>>> from zipcache_rt import eval
>>> task = eval.Lines(lines=(20, 40), n_cases=10)
>>> records = eval.run("model.gguf", task, ["auto", "zipcache"], out="results.jsonl")
>>> for summary in eval.summarize(records):  # or of eval.load("results.jsonl")
...     print(summary.table())
"""

from .case import Case, Task
from .counting import CommonWords, FrequentWords
from .gsm8k import Gsm8k
from .humaneval import HumanEval
from .intervals import Estimate, mean_interval, paired_difference, wilson
from .lines import Lines
from .niah import MultiKeyNiah, Niah
from .perplexity import Perplexity
from .record import Record, Results, load
from .run import run
from .run_code import Limits
from .run_options import RunOptions
from .summary import Row, Summary, summarize
from .tracking import VariableTracking

__all__ = [
    "Case",
    "CommonWords",
    "Estimate",
    "FrequentWords",
    "Gsm8k",
    "HumanEval",
    "Limits",
    "Lines",
    "MultiKeyNiah",
    "Niah",
    "Perplexity",
    "Record",
    "Results",
    "Row",
    "RunOptions",
    "Summary",
    "Task",
    "VariableTracking",
    "load",
    "mean_interval",
    "paired_difference",
    "run",
    "summarize",
    "wilson",
]
