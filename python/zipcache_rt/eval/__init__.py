"""Tasks for compressed KV caches: accuracy, and agreement with what the f16 cache answers.

>>> from zipcache_rt import eval
>>> task = eval.Lines(lines=(20, 40), n_cases=10)
>>> records = eval.run("model.gguf", task, ["auto", "zipcache"], out="results.jsonl")
>>> for summary in eval.summarize(records):  # or of eval.load("results.jsonl")
...     print(summary.table())
"""

from .case import Case, Task
from .intervals import Estimate, mean_interval, paired_difference, wilson
from .record import Record, Results, load
from .lines import Lines
from .run import RunOptions, run
from .summary import Row, Summary, summarize

__all__ = [
    "Case",
    "Estimate",
    "Lines",
    "Record",
    "Results",
    "Row",
    "RunOptions",
    "Summary",
    "Task",
    "load",
    "mean_interval",
    "paired_difference",
    "run",
    "summarize",
    "wilson",
]
